"""How work grows with what it is given, told without a limit of seconds: a slow machine is slow for both."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TIMES = 8  # as large
TRIES = 3  # of each, one after the other: what else the machine does comes and goes


def is_linear(make: Callable[[int], T], run: Callable[[T], object], size: int) -> bool:
    """Whether ``run`` takes no more than about TIMES the processor time for what ``make`` gives for TIMES
    ``size``: three times that is allowed, and work in the square of its input would take TIMES that."""
    small, large = make(size), make(size * TIMES)
    pairs = [(_spent(run, small), _spent(run, large)) for _ in range(TRIES)]
    floor = 1e-3  # what is faster than this is so by luck
    return min(much for _, much in pairs) < 3 * TIMES * max(min(little for little, _ in pairs), floor)


def _spent(run: Callable[[T], object], given: T) -> float:
    gc.collect()
    gc.disable()  # what it takes hangs on all that the process holds
    try:
        begun = time.process_time()
        run(given)
        return time.process_time() - begun
    finally:
        gc.enable()
