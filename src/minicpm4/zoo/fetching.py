"""Wheels that pip fetches and does not install; other programs run without a terminal, for a limited time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minicpm4.errors import Minicpm4Error

__all__ = ["download_wheel", "reason", "run"]

MAX_SECONDS = 3600.0

Refuse = Callable[[str], Minicpm4Error]
"""``refuse(condition)``: the error to raise, with its remedy."""


def download_wheel(requirement: str, folder: Path, refuse: Refuse) -> Path:
    """The wheel of ``requirement`` (NAME==VERSION) in ``folder``, without what it depends on. Raises what
    ``refuse`` makes."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "10", "--dest", str(folder)]
    # Not in ``folder``: paths in the user's own settings of pip may be relative.
    done = run([*command, requirement], None, refuse, name="pip")
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        raise refuse(f"pip cannot download {requirement}: {reason(done)}")
    return found[0]


def run(
    command: Sequence[str], folder: Path | None, refuse: Refuse, *, name: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program in ``folder`` (None: here), whatever it returns; ``name``: what errors call it.

    Raises what ``refuse`` makes where it cannot be run, or takes more than MAX_SECONDS.
    """
    name = name or command[0]
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise refuse(f"{name} was not done after {MAX_SECONDS:,.0f} s") from error
    except OSError as error:
        raise refuse(f"{name} failed: {error}") from error


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why it failed: its first line of error, else its last line."""
    lines = [line.strip() for line in (done.stderr or "").splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    return next((line for line in lines if line.startswith(("E:", "ERROR"))), last)[:300]
