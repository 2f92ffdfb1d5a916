"""Which commit, day and processor a result is of."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minicpm4.machine import cpu_name

ROOT = Path(__file__).parents[1]


def commit(folder: Path = ROOT) -> str:
    """The commit checked out in ``folder``, "-dirty" after it where files differ; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def dated() -> dict[str, Any]:
    """The day and the commit alone, for results that say the machine in a way of their own."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}


def heading() -> dict[str, Any]:
    """What each result says of itself first."""
    return {**dated(), "cpu": cpu_name()}
