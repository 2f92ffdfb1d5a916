"""Round groups of float32 weights to numbers and one scale: the arithmetic of round-to-nearest.

Written once over NumPy and torch (``xp`` is either module). Every step is an elementwise float32 operation, a
maximum, or ``group_sum``, whose order is fixed. So the same weights give the same bits on every machine and
device, and training sees the very weights that packing gives (``kernels/straight_through.py``).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "F16_MAX",
    "INT4_TRIES",
    "Rounding",
    "group_sum",
    "in_half",
    "int4",
    "int8",
    "storable",
    "ternary",
    "whole_numbers",
]

F16_MAX = 65504.0
# Scales tried for int4, as parts of the one that maps the largest magnitude to code -8. Clipping the
# largest weight a little makes all the others finer.
INT4_TRIES = (1.0, 0.92)
_COLUMNS = 8


class Rounding(Protocol):
    """``round(xp, groups, least, most)``: groups (rows, groups, group size) float32 to numbers of the same
    shape, float32, from ``least`` to ``most`` (a kind's own: formats/kinds.py), and scales (rows, groups),
    float32, each of which float16 holds unless it is too large for that.

    Numbers are chosen for the rounded scale, so its rounding costs nothing; zero among them may be -0. A
    group that is not finite gets a scale or numbers that are not.
    """

    def __call__(self, xp: Any, groups: Any, least: float, most: float, /) -> tuple[Any, Any]: ...


def group_sum(values: Any) -> Any:
    """Sum over the last axis of a NumPy array or torch tensor, whose values are lost: the upper half is added
    to the lower until one is left."""
    n = values.shape[-1]
    while n > 1:
        half = (n + 1) // 2
        if n > _COLUMNS:
            values[..., : n - half] += values[..., half:n]
        else:
            # The same additions, column by column: NumPy's loops would otherwise be over so few numbers.
            for i in range(n - half):
                values[..., i] += values[..., half + i]
        n = half
    return values[..., 0]


def int8(xp: Any, groups: Any, least: float, most: float) -> tuple[Any, Any]:
    """Symmetric about the largest magnitude."""
    top = xp.amax(xp.abs(groups), axis=2)
    # An array, not a number, which CUDA would multiply by its rounded inverse.
    scales = storable(xp, top / xp.full_like(top, most))
    return whole_numbers(xp, groups, scales, least, most), scales


def int4(xp: Any, groups: Any, least: float, most: float) -> tuple[Any, Any]:
    """Of a few scales the one with the least squared error."""
    # The largest magnitude, with its sign, goes to the least: the side on which the codes reach further.
    high, low = xp.amax(groups, axis=2), xp.amin(groups, axis=2)
    # Adding zero gives groups of zeros the scale 0, not -0, whichever of both a maximum is.
    base = xp.where(high > -low, high, low) / float(least) + 0.0
    best, best_scales, best_error = groups, base, base
    for count, part in enumerate(INT4_TRIES):
        scales = storable(xp, base * part)
        numbers = whole_numbers(xp, groups, scales, least, most)
        missed = numbers * scales[..., None]
        missed -= groups
        missed *= missed
        error = group_sum(missed) + 0.0  # a copy: what it is a view of is let go
        del missed
        if not count:
            best, best_scales, best_error = numbers, scales, error
            continue
        better = error < best_error
        best = xp.where(better[..., None], numbers, best)
        best_scales = xp.where(better, scales, best_scales)
        best_error = xp.minimum(error, best_error)
    return best, best_scales


def ternary(xp: Any, groups: Any, least: float, most: float, count: Any = None) -> tuple[Any, Any]:
    """The mean magnitude, BitCPM4's scale; a group that is ternary already keeps its own. ``count``: weights
    of each group where some are padding, broadcast over (rows, groups)."""
    size = xp.abs(groups)
    top = xp.amax(size, axis=2)
    already = xp.all((size == 0) | (size == top[..., None]), axis=2)
    number = xp.full_like(top, float(groups.shape[2])) if count is None else count
    scales = storable(xp, xp.where(already, top, group_sum(size) / number))
    return whole_numbers(xp, groups, scales, least, most), scales


def storable(xp: Any, scales: Any) -> Any:
    """Scales as they will be stored, in float32: as float16 has them, or as they are where too large."""
    stored = xp.asarray(scales, dtype=xp.float16)
    # Near the smallest float16, rounding down could halve a scale and clip its group: round away. One up in
    # the bits is the next float16 away from zero, for either sign.
    low = xp.abs(xp.asarray(stored, dtype=xp.float32)) < xp.abs(scales) * 0.999
    away = (stored.view(xp.int16) + xp.asarray(low, dtype=xp.int16)).view(xp.float16)
    return xp.where(xp.abs(scales) > F16_MAX, scales, xp.asarray(away, dtype=xp.float32))


def in_half(scales: NDArray[np.float32]) -> tuple[NDArray[np.float16], bool]:
    """NumPy's ``scales`` in float16, and whether that holds them all."""
    with np.errstate(over="ignore"):
        small = scales.astype(np.float16)
    return small, bool((small.astype(np.float32) == scales).all())


def whole_numbers(xp: Any, groups: Any, scales: Any, least: float, most: float) -> Any:
    """The whole numbers nearest to ``groups`` / ``scales``, of those from ``least`` to ``most``."""
    tiny = xp.abs(scales) < 1e-30
    inverse = xp.where(tiny, 0.0, 1.0 / xp.where(tiny, 1.0, scales))
    found = groups * xp.asarray(inverse, dtype=xp.float32)[..., None]
    xp.round(found, out=found)
    xp.clip(found, least, most, out=found)
    return found
