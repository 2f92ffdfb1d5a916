"""Standard streams that are closed, or take nothing more: one line, and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

from minicpm4.errors import ConfigError

__all__ = ["complain", "drop", "flush", "mend"]


class _Closed(io.TextIOBase):
    """Standard input that is not there: whoever reads it hears so."""

    def isatty(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> str:
        raise ConfigError("standard input is closed", "give text on it, or leave it open")

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return self.read()

    @property
    def buffer(self) -> Any:
        return self


def mend() -> str:
    """Give what is closed a stream; return what is wrong beyond that. To be called before anything is
    opened: the next file would take the closed stream's number, and be written to."""
    closed = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            closed.append(number)
    if sys.stdin is None:
        sys.stdin = _Closed()
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    return "standard output is closed. send it to a file, or to /dev/null" if 1 in closed else ""


def complain(line: str) -> None:
    """Print a line to standard error, if that takes it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop(sys.stderr)


def flush(code: int) -> int:
    """Write what standard output still holds, which Python would do after us; the exit code with that."""
    try:
        sys.stdout.flush()
    except ValueError:  # closed by somebody
        return code
    except OSError as error:
        drop(sys.stdout)
        if code:
            return code
        if error.errno == errno.EPIPE:
            return 1
        complain(f"error: standard output: {error.strerror or error}. send it to another place")
        return 2
    return code


def drop(stream: Any) -> None:
    """Send what ``stream`` holds nowhere: Python flushes it once more on exit, and would complain."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
