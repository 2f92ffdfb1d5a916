"""Which commit a result is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit(folder: Path = ROOT) -> str:
    """The commit checked out in ``folder``, "-dirty" after it where files differ; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
