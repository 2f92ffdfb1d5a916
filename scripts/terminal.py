"""A program on a terminal of its own: keys go in, what its screen shows comes out. Needs pyte; no Windows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pyte

PATIENCE = 60.0  # seconds that a text may take to appear, on a machine that does other things too
PASTE = "\x1b[200~{}\x1b[201~"  # how terminals mark what is pasted
CTRL_C, CTRL_D, CTRL_Z, ENTER, UP = "\x03", "\x04", "\x1a", "\r", "\x1b[A"


def _own_terminal() -> None:
    """In the new process: keys such as Ctrl-C reach it. What a shell starts in the background inherits that
    SIGINT is ignored, and would pass it on."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """``command`` at a terminal of ``columns`` by ``rows``."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], *, columns: int = 160, rows: int = 40
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._prompts = 0
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(theirs)

    def send(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def expect(self, text: str, count: int = 1) -> None:
        """Wait until ``text`` stands on the screen, or above it, ``count`` times. Raises AssertionError."""
        self._until(lambda: self.text.count(text) >= count, repr(text))

    def ready(self, prompt: str = ">") -> None:
        """Wait until the last line is ``prompt``, and a new one. Raises AssertionError."""

        def shown() -> list[str]:
            return [line for line in self.text.split("\n") if line == ">" or line.startswith("> ")]

        self._until(lambda: len(shown()) > self._prompts and self.last == prompt, f"new prompt {prompt!r}")
        self._prompts = len(shown())

    @property
    def last(self) -> str:
        """The line at the end."""
        return self.text.rpartition("\n")[2]

    def _until(self, seen: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + PATIENCE
        while not seen():
            if time.monotonic() > limit or not self._take(1.0):
                raise AssertionError(f"no {what} on the terminal:\n{self.text}")

    def settle(self, seconds: float = 0.3) -> None:
        """Take what comes until nothing has for a while, or ten times as long (a bar may move for ever)."""
        limit = time.monotonic() + 10 * seconds
        while time.monotonic() < limit and select.select([self._ours], [], [], seconds)[0] and self._take(0):
            pass

    def wait(self) -> int:
        """The exit code; what is still written is taken. Raises AssertionError where it goes on."""
        limit = time.monotonic() + PATIENCE
        while self._take(1.0):
            if time.monotonic() > limit:
                raise AssertionError(f"it did not end:\n{self.text}")
        return self.process.wait(PATIENCE)

    @property
    def text(self) -> str:
        """All lines that were shown, without trailing spaces."""
        above = [
            "".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top
        ]
        lines = [line.rstrip() for line in [*above, *self._screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return "\n".join(lines)

    @property
    def shows_keys(self) -> bool:
        """Whether what is typed is shown, and read line by line, as a terminal is left to others."""
        both = termios.ECHO | termios.ICANON
        return bool(termios.tcgetattr(self._ours)[3] & both == both)

    def close(self) -> None:
        """End the program if it runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, seconds: float) -> bool:
        """Show what is written within so many seconds; False when the program has gone."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # EIO: nobody is at the other end
            return False
        self._stream.feed(data)
        return bool(data)
