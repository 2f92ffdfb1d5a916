"""What the machine can do at best: streaming reads, and products of float32 matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from minicpm4.kernels.contract import OpTable

__all__ = ["Limits", "measure_limits", "read_speed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """``bandwidth`` in bytes per second, ``float32`` in operations (an addition or a product) per second."""

    bandwidth: float
    float32: float


def measure_limits(ops: OpTable, threads: int, *, megabytes: int = 256, size: int = 1024) -> Limits:
    """Measure both with ``threads`` threads: reads of an array of ``megabytes``, products of square
    matrices of ``size`` rows (the better of the op table's and NumPy's own, which uses every core)."""
    return Limits(bandwidth=read_speed(threads, megabytes=megabytes), float32=_matrix_speed(ops, size))


def read_speed(threads: int, *, megabytes: int = 256, seconds: float = 0.4) -> float:
    """Bytes per second of reading an array larger than most caches, each thread its own part."""
    parts = np.array_split(np.ones(megabytes << 17, np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets go of the interpreter's lock, and OR costs next to nothing.
        fastest = _fastest(lambda: list(pool.map(np.bitwise_or.reduce, parts)), seconds)
    return sum(part.nbytes for part in parts) / fastest


def _matrix_speed(ops: OpTable, size: int, seconds: float = 0.3) -> float:
    left, right = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    result = np.empty_like(left)
    ways: list[Callable[[], object]] = [lambda: np.matmul(left, right, out=result)]
    if ops.name == "cpu":
        from minicpm4 import _cpu
        from minicpm4.kernels.cpu import CpuOps

        assert isinstance(ops, CpuOps)
        context = _cpu.Context(ops.threads, ops.isa)
        ways.append(lambda: context.matmul(left, right, result))
    return 2 * size**3 / min(_fastest(way, seconds) for way in ways)


def _fastest(action: Callable[[], object], seconds: float) -> float:
    action()
    best, stop = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < stop:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best
