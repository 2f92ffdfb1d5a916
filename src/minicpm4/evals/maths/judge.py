"""Whether two answers are the same mathematics: math-verify, in a process that can be ended."""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from minicpm4.errors import EngineError, UnsupportedError
from minicpm4.files import json_text

__all__ = ["Judge", "Verdict"]

SECONDS = 30.0  # of one verdict, after which the process is ended
START = 120.0  # of a process until it is ready
MEMORY = 4 << 30  # bytes that it may take
MAX_CHARS = 100_000  # of an answer's end that are read


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """``read``: what was taken for the answer; ``known``: whether the right one could be read."""

    right: bool
    read: str
    why: str
    known: bool = True


class Judge:
    """Compares answers, one at a time. Raises UnsupportedError where math-verify is not installed."""

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            remedy = "in the checkout: pip install -e '.[math]', or: pip install 'math-verify>=0.9,<0.10'"
            raise UnsupportedError("answers are judged by math-verify, which is not installed", remedy)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def judge(self, right: str, said: str) -> Verdict:
        """Whether what was ``said`` last is ``right``. What the judge cannot read in time is wrong."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        found = self._asked({"right": right, "said": said[-MAX_CHARS:]})
        if found is None:
            self.close()
            return Verdict(right=False, read="", why="the judge could not read it in time")
        why = "" if found["right"] else found.get("why") or ("wrong" if found["read"] else "no answer found")
        return Verdict(right=found["right"], read=found["read"], why=why, known=found["known"])

    def close(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def _start(self) -> None:
        self.close()
        program = [sys.executable, "-c", _PROGRAM, str(MEMORY), __package__ + ".judging"]
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if self._line(START) is None:
            self.close()
            raise EngineError("the judge did not start", "see whether `python -c 'import math_verify'` works")

    def _asked(self, question: dict[str, str]) -> dict[str, Any] | None:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json_text(question).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            return None
        line = self._line(SECONDS)
        try:
            return None if line is None else dict(json.loads(line))
        except (ValueError, TypeError):  # what a library of its printed between
            return None

    def _line(self, seconds: float) -> bytes | None:
        """The next line, None where the process is too slow or has ended."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return (self._process.stdout.readline() or None) if ready else None


_PROGRAM = """
import runpy, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
except (ImportError, ValueError, OSError):
    pass
runpy.run_module(sys.argv[2], run_name="__main__")
"""
