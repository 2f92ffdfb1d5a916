"""What the machine can do at best: streaming reads, and products of float32 matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.machine.bandwidth import fastest, read_speed

__all__ = ["DeviceLimits", "measure_limits"]

SECONDS = 0.3  # of trying each
LEAST = 5e-4  # seconds of a call on a device
MOST_MEGABYTES, MOST_ROWS = 1 << 12, 1 << 13


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLimits:
    """``bandwidth`` in bytes per second, ``float32`` in operations (an addition or a product) per second."""

    bandwidth: float
    float32: float


def measure_limits(ops: OpTable, threads: int, *, megabytes: int = 256, size: int = 1024) -> DeviceLimits:
    """Measure both with ``threads`` threads: reads of an array of ``megabytes``, products of square
    matrices of ``size`` rows (the better of the op table's and NumPy's own, which uses every core). Of a
    table with a device of its own: what that device does, by torch."""
    if not ops.on_host:
        return _device_limits(ops, megabytes, size)
    return DeviceLimits(bandwidth=read_speed(threads, megabytes=megabytes), float32=_matrix_speed(ops, size))


def _matrix_speed(ops: OpTable, size: int) -> float:
    left, right = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    result = np.empty_like(left)
    ways: list[Callable[[], object]] = [lambda: np.matmul(left, right, out=result)]
    weight = PackedTensor(spec=QuantSpec(kind="f32"), shape=(size, size), codes=right)
    product = Linear(weight=ops.prepare(weight))
    ways.append(lambda: ops.linear(left, product, result))
    return 2 * size**3 / min(fastest(way, SECONDS) for way in ways)


def _device_limits(ops: OpTable, megabytes: int, size: int) -> DeviceLimits:
    """As large as it takes for the way to the device and back not to count. A number of each result is
    fetched: that waits until all of it is there."""

    def read(count: int) -> Callable[[], object]:
        array: Any = ops.zeros((count << 18,), np.float32)
        return lambda: float(array.sum())

    def multiply(count: int) -> Callable[[], object]:
        square: Any = ops.zeros((count, count), np.float32)
        return lambda: float((square @ square)[0, 0])

    megabytes, reading = _long_enough(read, megabytes, MOST_MEGABYTES)
    size, multiplying = _long_enough(multiply, size, MOST_ROWS)
    return DeviceLimits(bandwidth=(megabytes << 20) / reading, float32=2 * size**3 / multiplying)


def _long_enough(make: Callable[[int], Callable[[], object]], size: int, most: int) -> tuple[int, float]:
    """The size, doubled until a call takes LEAST seconds, and the seconds of the fastest."""
    while (seconds := fastest(make(size), SECONDS)) < LEAST and 2 * size <= most:
        size *= 2
    return size, seconds
