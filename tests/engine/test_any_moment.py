"""An exception at every line of the engine in turn: the next request is served, and nobody else pays.

A caller asks for two samples, has a text read, then leaves a stream early; another caller's stream is open
meanwhile. At the k-th line that engine/*.py runs for the first caller an exception is raised, for every k
until none is left, odd ones of one kind, even ones of another where no store of pages is
by (every eleventh or so where time is short).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import minicpm4.engine.engine
from minicpm4 import LLM
from minicpm4.engine.llm import ThreadedLLM
from minicpm4.errors import EngineError, Minicpm4Error
from minicpm4.testing import byte_text
from tests.engine.scripted import greedy, make_engine, plain_greedy
from tests.engine.stock import engine_over, filled_stock

FOLDER = str(Path(minicpm4.engine.engine.__file__).parent)
OTHER, NEXT = [1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 4]
LENGTH = 5


class Raise:
    """Raises at the ``at``-th line that runs in engine/*.py; ``done`` says whether that line was reached."""

    def __init__(self, kind: type[BaseException], at: int) -> None:
        self.kind, self.left, self.done = kind, at, False
        self._last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line" and not self._leaves_with(frame):
            self.left -= 1
            if self.left == 0:
                self.done = True
                raise self.kind("at any moment")
        return self

    def _leaves_with(self, frame: FrameType) -> bool:
        """Whether a ``with`` is about to be left: there a tracer can raise, the interpreter cannot."""
        line = frame.f_lineno
        back = line < self._last.get(frame, 0)
        self._last[frame] = line
        return back and getline(frame.f_code.co_filename, line).lstrip().startswith("with ")

    def during(self, work: Callable[[], None]) -> None:
        """Do ``work``; whatever it raises must be this exception, or name what it did to a request."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except (self.kind, Minicpm4Error):
            if not self.done:
                raise
        finally:
            sys.settrace(before)
            self._last.clear()


def rest(pieces: Iterator[Any]) -> list[int] | None:
    """The tokens that are left of a stream; None if it fails by name."""
    try:
        return [token for piece in pieces for token in piece.token_ids]
    except EngineError:
        return None


def call(llm: LLM) -> None:
    llm.generate([1, 2, 3, 1, 4, 5], greedy(2, n=2))
    llm.nll([1, 2, 3, 1, 4, 5])
    stream = llm.stream([5, 6], greedy(20))
    next(stream)
    stream.close()  # type: ignore[attr-defined]


ROOMY, SCARCE = 40, 7  # pages; with few of them sequences are sent away and come back
KINDS = (KeyboardInterrupt, MemoryError)
END = 1_000_000  # a line behind all
# Between them every line: what is raised there may be an error or end the program.
EVERY = [
    pytest.param(kind, pages, range(first, END, 2), False, marks=pytest.mark.slow)
    for first, kind in enumerate(KINDS, 1)
    for pages in (ROOMY, SCARCE)
]


KEPT = [
    pytest.param(KeyboardInterrupt, ROOMY, range(1, END, 13), True),
    pytest.param(MemoryError, ROOMY, range(1, END), True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("kind", "num_pages", "lines", "kept"),
    [(KeyboardInterrupt, ROOMY, range(1, END, 11), False), *EVERY, *KEPT],
)
def test_the_engine_survives_an_exception_at_any_moment(
    kind: type[BaseException], num_pages: int, lines: range, kept: bool
) -> None:
    spared = 0
    for at in lines:
        if kept:  # pages go to a store, and come from one that another engine has filled
            stock = filled_stock([1, 2, 3, 1, 4, 5])
            engine = engine_over(stock, num_pages=num_pages, context=28)
        else:
            engine, _ = make_engine(num_pages=num_pages, context=28)
        llm = LLM.over(engine, byte_text(), name="scripted")
        other = llm.stream(OTHER, greedy(LENGTH))
        first = [token for _ in range(2) for token in next(other).token_ids]
        injected = Raise(kind, at)
        injected.during(lambda llm=llm: call(llm))  # type: ignore[misc]
        assert llm.generate(NEXT, greedy(2)).token_ids == plain_greedy(NEXT, 2), at
        left = rest(other)
        spared += left is not None
        assert left is None or first + left == plain_greedy(OTHER, LENGTH), at
        pages = engine.scheduler.pages
        assert not engine.has_work and pages.num_available == num_pages, at
        pages.check([])
        if not injected.done:
            break
    assert at > 500, f"of the engine {at} lines were seen: the tracer hardly ever fired"
    assert spared * lines.step > 0.9 * at, f"{spared} of {at}: few moments may cost another caller's request"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (SystemExit, range(1, END, 23)),
        pytest.param(MemoryError, range(1, END, 2), marks=pytest.mark.slow),
        pytest.param(SystemExit, range(2, END, 2), marks=pytest.mark.slow),
    ],
)
def test_nobody_hangs_whatever_befalls_the_drivers_thread(kind: type[BaseException], lines: range) -> None:
    """Each call answers rightly or fails by name; so does the next one, until the LLM is closed."""
    for at in lines:
        engine, _ = make_engine()
        injected = Raise(kind, at)
        threading.settrace(injected)
        try:
            llm = ThreadedLLM.over(engine, byte_text(), name="scripted")
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        for _ in range(3):
            with suppress(EngineError):
                assert llm.generate(NEXT, greedy(2)).token_ids == plain_greedy(NEXT, 2), at
        with suppress(EngineError, kind):  # of work between steps the caller gets what it raises
            llm.nll([1, 2, 3])
        llm.close()
        if not injected.done:
            break
    assert at > 500, f"of the engine {at} lines were seen: the tracer hardly ever fired"
