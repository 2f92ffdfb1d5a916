"""Standard streams that are closed, or take nothing more: one line, and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

from minicpm4.errors import ConfigError

__all__ = ["complain", "drop", "flush", "mend", "told"]

OUTPUT = "standard output"


class _Output(io.FileIO):
    """Standard output's file: errors of writing name it, whoever wrote and however much was buffered. To
    flush once more afterwards tells nothing, as what could not be written may be gone by then."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            error.filename = OUTPUT
            raise
        if written is None:  # it does not block, and takes nothing now
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), OUTPUT)
        return written


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
    sys.stdout = _naming(sys.stdout)
    return "standard output is closed. send it to a file, or to /dev/null" if 1 in closed else ""


def _naming(stream: Any) -> Any:
    """``stream`` anew over _Output; itself where it is no ordinary file, as a console of Windows is not."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # unbuffered, there is nothing between
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO:
        return stream
    file = _Output(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        file if raw is buffer else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def told(error: OSError) -> str:
    """One line on an error of the system."""
    why = error.strerror or str(error)
    if error.filename is OUTPUT:  # a file may have this name, too
        return f"{OUTPUT}: {why}. send it to another place"
    what = f"{error.filename}: " if error.filename is not None else ""
    return f"{what}{why}. check the name, its permissions and the free space there"


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
        error.filename = OUTPUT
        complain(f"error: {told(error)}")
        return 2
    return code


def drop(stream: Any) -> None:
    """Send what ``stream`` holds nowhere: Python flushes it once more on exit, and would complain."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
