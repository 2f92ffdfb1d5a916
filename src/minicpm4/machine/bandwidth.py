"""How fast memory is read and copied, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["copy_speed", "fastest", "read_speed"]


def read_speed(threads: int, *, megabytes: int = 256, seconds: float = 0.4) -> float:
    """Bytes per second of reading an array larger than most caches, each thread its own part."""
    parts = np.array_split(np.ones(megabytes << 17, np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets go of the interpreter's lock, and OR costs next to nothing.
        best = fastest(lambda: list(pool.map(np.bitwise_or.reduce, parts)), seconds)
    return sum(part.nbytes for part in parts) / best


def copy_speed(threads: int, *, megabytes: int = 64, seconds: float = 0.15) -> float:
    """Bytes per second, read and written, of copying an array larger than most caches, each thread its own
    part."""
    source = np.ones(megabytes << 17, np.uint64)
    sources, targets = (np.array_split(array, threads) for array in (source, np.empty_like(source)))
    with ThreadPoolExecutor(threads) as pool:
        best = fastest(lambda: list(pool.map(np.copyto, targets, sources)), seconds)
    return 2 * source.nbytes / best


def fastest(action: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call of ``action``, of as many as fit into ``seconds`` after a first."""
    action()
    best, stop = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < stop:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best
