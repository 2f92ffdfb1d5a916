"""Starting a program in the sandbox, reading what it writes within bounds, ending it."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, cast

from minicpm4.errors import ConfigError
from minicpm4.sandbox import filter as calls
from minicpm4.sandbox.limits import Limits
from minicpm4.sandbox.place import FOLDER, PYTHON, command, require_sandbox

__all__ = ["Outcome", "Program", "python_command", "run_python"]

_PIECE = 1 << 16
MAX_FILES = 16 << 20  # bytes of all files that a program is given


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a program ended. ``ended``: "exited" (then ``status`` is its own), "time", "output" or "signal"
    (then ``status`` is the signal's number; SIGKILL comes from the kernel's bounds, too); ``stdout``,
    ``stderr``: what it had written, within the bound."""

    ended: str
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        """It exited by itself, with 0. Says nothing of whether it did what it was to do: it may call
        ``os._exit(0)`` whenever it likes. Judge what it wrote, from outside (``judge_function``)."""
        return self.ended == "exited" and self.status == 0


def run_python(
    code: str, *, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None
) -> Outcome:
    """Run ``code`` with ``files`` (contents by plain name) in its folder. Python's own library alone.

    Raises UnsupportedError where there is no sandbox, ConfigError for wrong names or too much code."""
    limits = limits or Limits()
    content = {"main.py": source_bytes(code), **(files or {})}
    with Program(python_command("main.py"), limits, content) as program:
        return program.finish(stdin)


def python_command(name: str, *arguments: str) -> list[str]:
    """Of a file in the sandbox's folder."""
    return [PYTHON, "-I", "-S", "-B", "-X", "utf8", f"{FOLDER}/{name}", *arguments]


def source_bytes(code: str) -> bytes:
    """``code`` as bytes. Raises ConfigError where it is no text."""
    try:
        return code.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"code that is no text: {error}", "give Unicode without surrogates") from None


class Program:
    """A started program; leaving the block ends it, whatever it does. ``channels``: descriptors that it
    inherits."""

    def __init__(
        self, argv: Sequence[str], limits: Limits, files: Mapping[str, bytes], channels: Sequence[int] = ()
    ) -> None:
        require_sandbox()
        _check(files)
        self.limits = limits
        self.began = time.monotonic()
        with ExitStack() as stack:
            given = {name: stack.enter_context(_holding(data)).fileno() for name, data in files.items()}
            filtered = stack.enter_context(_holding(calls.program())).fileno()
            self.process = subprocess.Popen(
                command(argv, limits, given, filtered),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(*given.values(), filtered, *channels),
                env={},  # bubblewrap's own can be read in /proc/1/environ, and holds our secrets
            )

    def finish(self, stdin: bytes = b"") -> Outcome:
        """Write ``stdin``, read until it ends or breaks a bound."""
        pump = Pump(self, stdin)
        while pump.step(self.left()):
            pass
        return self.outcome(pump)

    def outcome(self, pump: Pump) -> Outcome:
        """What is to be said of it now; it is ended if it still runs."""
        ended = pump.broken or ("" if self._ends() else "time")
        self.kill()
        status = self.process.returncode
        if not ended and (status < 0 or 128 < status <= 128 + signal.NSIG):
            ended, status = "signal", -status if status < 0 else status - 128
        return Outcome(
            ended=ended or "exited",
            status=status,
            stdout=bytes(pump.taken["stdout"]),
            stderr=bytes(pump.taken["stderr"]),
            seconds=time.monotonic() - self.began,
        )

    def _ends(self) -> bool:
        """Wait for it, which may have closed its streams long before, as long as its time lasts."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, self.left()))
        return self.process.poll() is not None

    def left(self) -> float:
        """Seconds until its time is over."""
        return self.began + self.limits.seconds - time.monotonic()

    def kill(self) -> None:
        """End it: its first process goes, and with it, since they share a namespace, all others."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class Pump:
    """Moves bytes between a program's standard streams and memory, never more than its bound."""

    def __init__(self, program: Program, stdin: bytes = b"") -> None:
        self._program = program
        self._room = program.limits.output
        self._stdin = memoryview(stdin)
        self.taken = {"stdout": bytearray(), "stderr": bytearray()}
        self.broken = ""
        self.selector = selectors.DefaultSelector()
        process = program.process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for stream in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)
        self.selector.register(process.stdout, selectors.EVENT_READ, "stdout")
        self.selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        if stdin:
            self.selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
        else:
            process.stdin.close()

    def fileno(self) -> int:
        """Readable where something can be moved, so that a selector may wait for it beside others."""
        return self.selector.fileno()

    def step(self, left: float) -> bool:
        """Wait at most ``left`` seconds for something to move; whether there may be more."""
        if left <= 0 or self.broken or not self.selector.get_map():
            return False
        # A daemon may hold the streams open after the program has ended, and dies with its namespace.
        for key, _ in self.selector.select(min(left, 0.2)):
            self._move(cast(IO[bytes], key.fileobj), key.data)
        return True

    def _move(self, stream: IO[bytes], name: str) -> None:
        if name == "stdin":
            with suppress(BlockingIOError):
                try:
                    self._stdin = self._stdin[os.write(stream.fileno(), self._stdin[:_PIECE]) :]
                except BrokenPipeError:
                    self._stdin = self._stdin[:0]
            if not self._stdin:
                self.selector.unregister(stream)
                stream.close()
            return
        piece = os.read(stream.fileno(), _PIECE)
        if not piece:
            self.selector.unregister(stream)
        self.taken[name] += piece[: self._room]
        if len(piece) > self._room:
            self.broken = "output"
        self._room = max(0, self._room - len(piece))


def _check(files: Mapping[str, bytes]) -> None:
    for name in files:
        if not name or len(name) > 100 or name.startswith(".") or not set(name) <= _NAME:
            raise ConfigError(
                f"{name[:100]!r} as a file in the sandbox", "give a plain name, such as data.json"
            )
    size = sum(map(len, files.values()))
    if size > MAX_FILES:
        raise ConfigError(f"files of {size:,} bytes for the sandbox", f"at most {MAX_FILES:,} fit")


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _holding(data: bytes) -> IO[bytes]:
    """An open file without a name, at whose start ``data`` is to be read."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - its user closes it
    file.write(data)
    file.seek(0)
    return file
