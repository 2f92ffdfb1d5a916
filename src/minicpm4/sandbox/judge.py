"""Whether a stranger's function passes tests: two sandboxes, one with the function, one with the tests.

Tests that run beside what they test believe whatever it does to them: it may end the process with 0, patch
``assert`` or equality, write the verdict itself. So the tests run elsewhere; of the function they see plain
values of exact types that come through a pipe, and the verdict comes through another, which the function's
sandbox does not have.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources

from minicpm4.errors import ConfigError
from minicpm4.sandbox.inside import values
from minicpm4.sandbox.limits import Limits
from minicpm4.sandbox.run import Program, Pump, python_command, source_bytes

__all__ = ["Verdict", "judge_function"]

_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """``why`` it did not pass: the test's exception, "time", "output", or what ended the solution; ``calls``
    of the function that were answered."""

    passed: bool
    why: str
    calls: int
    seconds: float


def judge_function(
    solution: str, tests: str, name: str, *, context: str = "", limits: Limits | None = None
) -> Verdict:
    """Run ``tests`` against the function ``name`` of ``solution``.

    ``tests`` is Python that calls ``name`` and asserts, or defines ``check(candidate)``, as HumanEval's does;
    ``context`` comes before it (a prompt's own helpers, which are trusted as the tests are). Arguments and
    results are plain: numbers, text, bytes, lists, tuples, sets, dictionaries. ``limits`` are each sandbox's.
    Raises UnsupportedError, ConfigError."""
    if not name.isidentifier():
        raise ConfigError(f"{name[:100]!r} as the name of a function", "give an identifier")
    limits = limits or Limits()
    shared = {"values.py": _inside("values")}
    solver = {**shared, "solve.py": _inside("solve"), "solution.py": source_bytes(solution)}
    code = {"context.py": source_bytes(context), "tests.py": source_bytes(tests)}
    checker = {**shared, "check.py": _inside("check"), **code}
    with (
        _talking(solver, "solve.py", name, limits) as left,
        _talking(checker, "check.py", name, limits) as right,
    ):
        return _Talk(left, right).judge()


@dataclass(frozen=True, slots=True)
class _Side:
    """A program, what it is told (a descriptor to write to), what it says (one to read from)."""

    program: Program
    told: int
    says: int


@contextmanager
def _talking(files: dict[str, bytes], main: str, name: str, limits: Limits) -> Iterator[_Side]:
    hears, told = os.pipe()
    says, speaks = os.pipe()
    try:
        try:
            argv = python_command(main, name, str(hears), str(speaks))
            program = Program(argv, limits, files, (hears, speaks))
        finally:
            os.close(hears)
            os.close(speaks)
        with program:
            os.set_blocking(told, False)
            os.set_blocking(says, False)
            yield _Side(program, told, says)
    finally:
        os.close(told)
        os.close(says)


class _Talk:
    """Hands lines from one sandbox to the other and waits for the verdict.

    The function passes by the checker's own message alone: nothing that the solution writes can say so."""

    def __init__(self, solver: _Side, checker: _Side) -> None:
        self._solver, self._checker = solver, checker
        self._pumps = (Pump(solver.program), Pump(checker.program))
        self._held = {solver.says: bytearray(), checker.says: bytearray()}
        self._handed = {solver.told: bytearray(), checker.told: bytearray()}  # what is still to be written
        self._ready = self._asked = False
        self._calls = 0

    def judge(self) -> Verdict:
        """Until the tests say how they ended, or one of the two ends or breaks a bound."""
        with selectors.DefaultSelector() as self._selector:
            for says in self._held:
                self._selector.register(says, selectors.EVENT_READ, self._heard)
            for pump in self._pumps:
                self._selector.register(pump, selectors.EVENT_READ, partial(self._pumped, pump))
            while (left := self._left()) > 0:
                for key, _ in self._selector.select(left):
                    if (found := key.data(key.fd)) is not None:
                        return found
        return self._failed("time")

    def _left(self) -> float:
        return min(self._solver.program.left(), self._checker.program.left())

    def _pumped(self, pump: Pump, _: int) -> Verdict | None:
        if not pump.step(0.001):
            self._selector.unregister(pump)
        return self._failed("output") if pump.broken else None

    def _heard(self, says: int) -> Verdict | None:
        piece, held = os.read(says, _PIECE), self._held[says]
        held += piece
        who = "the solution" if says == self._solver.says else "the tests"
        if not piece:
            return self._failed(f"{who} ended")
        for line in _lines(held):
            found = self._answered(line) if says == self._solver.says else self._called(line)
            if found is not None:
                return found
        return self._failed(f"{who} wrote too long a line") if len(held) > values.MAX_LINE else None

    def _called(self, line: bytes) -> Verdict | None:
        message = values.load(line)
        if "passed" in message:
            return self._verdict(True) if message["passed"] is True else self._failed(message.get("why"))
        self._asked = True
        self._hand(self._solver, line)
        return None

    def _answered(self, line: bytes) -> Verdict | None:
        try:
            message = values.load(line)
        except ValueError:
            message = {}
        if not self._ready:
            self._ready = message.get("ready") is True
            return None if self._ready else self._failed(message.get("broken"))
        if not self._asked or not {"value", "raised", "unfit"} & message.keys():
            return self._failed("the solution wrote what is no answer")
        self._calls, self._asked = self._calls + 1, False
        self._hand(self._checker, line)
        return None

    def _hand(self, side: _Side, line: bytes) -> None:
        if not self._handed[side.told]:
            self._selector.register(side.told, selectors.EVENT_WRITE, self._write)
        self._handed[side.told] += line

    def _write(self, told: int) -> Verdict | None:
        """As much of a line as there is room for: who is to read it may have to be read from first."""
        rest = self._handed[told]
        try:
            del rest[: os.write(told, rest[:_PIECE])]
        except BrokenPipeError:
            return self._failed("the solution ended" if told == self._solver.told else "the tests ended")
        if not rest:
            self._selector.unregister(told)
        return None

    def _failed(self, why: object) -> Verdict:
        """``why`` may be what the solution wrote: text, or nothing that is believed."""
        return self._verdict(False, why if isinstance(why, str) and why else "no answer of the solution")

    def _verdict(self, passed: bool, why: str = "") -> Verdict:
        program = self._solver.program
        seconds = program.limits.seconds - program.left()
        return Verdict(passed=passed, why=why[:300], calls=self._calls, seconds=seconds)


def _lines(held: bytearray) -> Iterator[bytes]:
    """Whole lines, which are taken out of ``held``."""
    while (found := held.find(b"\n")) >= 0:
        line = bytes(held[: found + 1])
        del held[: found + 1]
        yield line


def _inside(name: str) -> bytes:
    return resources.files("minicpm4.sandbox.inside").joinpath(f"{name}.py").read_bytes()
