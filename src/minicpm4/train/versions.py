"""Which code made a checkpoint: versions, and the commit where the package runs from its own checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["versions"]


@cache
def versions() -> dict[str, str]:
    """``minicpm4``, ``torch``, and ``commit`` ("-dirty" where files were changed) if it is known."""
    found = {"minicpm4": version("minicpm4"), "torch": torch.__version__}
    root = Path(__file__).resolve().parents[3]
    # A package that was installed lies in somebody else's repository, if in any.
    if (root / ".git").exists() and (root / "src" / "minicpm4").is_dir():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return found
        found["commit"] = told.strip()
    return found
