"""These tests need bubblewrap. MINICPM4_NEED_SANDBOX: a machine without fails them rather than skipping."""

from __future__ import annotations

import os

import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.sandbox import require_sandbox


@pytest.fixture(autouse=True, scope="session")
def sandbox() -> None:
    try:
        require_sandbox()
    except UnsupportedError as error:
        if os.environ.get("MINICPM4_NEED_SANDBOX"):
            raise
        pytest.skip(str(error))
