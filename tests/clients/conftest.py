"""Programs that people plug into a server. `make test-clients` installs them into an environment of their
own, from which these tests run; the server runs in the package's, whose Python MINICPM4_PYTHON names. What
runs a model in this process finds the package's environment behind its own (MINICPM4_SITE); programs that
tests start do not: `llm` would load the plugins there."""

from __future__ import annotations

import importlib
import os
import site
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.processes import Running, scripted, small

if place := os.environ.get("MINICPM4_SITE"):
    site.addsitedir(place)


def needed(module: str) -> Any:
    """A module of such a program; where it is missing its tests are skipped, but not by make test-clients."""
    if "MINICPM4_PYTHON" in os.environ:
        return importlib.import_module(module)
    return pytest.importorskip(module, reason=f"{module} is not installed here: make test-clients")


@pytest.fixture(scope="session")
def scripted_server() -> Iterator[Running]:
    """It answers ``say: "text"`` by that text."""
    with scripted() as running:
        yield running


@pytest.fixture(scope="session")
def small_server() -> Iterator[Running]:
    """The embedded model, called small."""
    with small("--name", "small") as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Connections that these programs leave open are theirs, and are found whenever memory is tidied up: a
    test that runs at that moment has nothing to do with them. The server is another process."""
    left_open = "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings(left_open))
