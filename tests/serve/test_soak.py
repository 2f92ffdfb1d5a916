"""A minute of benchmarks/serving.py's soak, and what it calls a failure."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.endurance import faults, quarters
from tests.serve.processes import ROOT

GOOD = {
    "requests": 90,
    "told to leave early": 30,
    "errors": 0,
    "first errors": [],
    "pages held afterwards": 0.0,
    "requests held afterwards": 0.0,
    "quarters": {"MB": [300.0, 305.0], "threads": [9.0, 9.0], "files": [40.0, 41.0]},
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, None),
        ({"errors": 1, "first errors": ["503: b'x'"]}, "1 errors: .*503"),
        ({"pages held afterwards": 3.0}, "3 pages held afterwards"),
        ({"requests held afterwards": 1.0}, "1 requests held afterwards"),
        ({"told to leave early": 0}, "no client left early"),
        ({"quarters": {**GOOD["quarters"], "MB": [300.0, 320.0]}}, "MB grew from 300 to 320"),
        ({"quarters": {**GOOD["quarters"], "threads": [9.0, 12.0]}}, "threads grew"),
        ({"quarters": {**GOOD["quarters"], "files": [40.0, 60.0]}}, "files grew"),
    ],
)
def test_what_fails(wrong: dict, said: str | None) -> None:
    found = faults({**GOOD, **wrong})
    if said is None:
        assert found == []
    else:
        (only,) = found
        assert re.search(said, only)


def test_quarters_leave_out_the_start() -> None:
    seen = [{"MB": float(mb), "threads": 1.0, "files": 2.0} for mb in (10, 20, 30, 30, 30, 31, 31, 31)]
    assert quarters(seen) == {"MB": [30.0, 31.0], "threads": [1.0, 1.0], "files": [2.0, 2.0]}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a process is looked at in /proc")
def test_a_minute_of_chats_some_of_which_are_broken_off(tmp_path: Path) -> None:
    """With a small cache, whose pages are all in use soon: what grows then is a leak."""
    file = tmp_path / "soak.json"
    command = [sys.executable, "benchmarks/serving.py", "soak", "--minutes", "1", "--slots", "8"]
    command += ["--context", "512", "--json", str(file)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(found.stdout, found.stderr)
    assert found.returncode == 0, found.stderr
    (result,) = json.loads(file.read_text(encoding="utf-8"))["results"]["soak"]["minicpm4"]
    assert result["requests"] > 32 and result["told to leave early"] > 5
