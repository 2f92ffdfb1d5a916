"""Round groups of float32 weights to integer codes and one scale: the arithmetic of round-to-nearest.

Every step is an elementwise float32 operation, a maximum, or ``group_sum``, whose order is fixed. So the same
weights give the same bits on every machine, and ``kernels/straight_through.py`` gives them on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import ConfigError
from minicpm4.formats.quant import QuantSpec

__all__ = ["F16_MAX", "INT4_TRIES", "BlockSpec", "group_sum", "round_group"]

F16_MAX = 65504.0
# Scales tried for int4, as parts of the one that maps the largest magnitude to code -8. Clipping the
# largest weight a little makes all the others finer.
INT4_TRIES = (1.0, 0.92)
_COLUMNS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec(QuantSpec):
    """Ternary weights whose scale is shared by ``rows`` rows times ``group_size`` columns (128 x 128 in
    BitCPM4).

    The last block has the rows that are left. Packed it is ternary in groups of ``group_size``. Raises
    ConfigError for other kinds.
    """

    rows: int = 128

    def __post_init__(self) -> None:
        QuantSpec.__post_init__(self)
        if self.kind != "ternary" or self.rows < 1:
            raise ConfigError(
                f"{self.rows} rows of {self.kind} weights cannot share a scale",
                "blocks are for ternary weights; use groups along a row",
            )

    def __str__(self) -> str:
        return f"{self.kind}-b{self.rows}x{self.group_size}"


def round_group(groups: NDArray[np.float32], kind: str) -> tuple[NDArray, NDArray]:
    """Round ``groups`` (rows, groups, group size), finite, to ``kind``.

    Returns codes (same shape; int8, or uint8 for int4 and ternary) and scales (rows, groups), float16
    unless one is too large. Codes are chosen for the rounded scale, so its rounding costs nothing.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return {"int8": _int8, "int4": _int4, "ternary": _ternary}[kind](groups)


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


def _storable(scales: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray]:
    """Scales as they will be stored, as float32 and in their stored type: float32 if one is too large for
    float16, and then that one as it is."""
    stored = scales.astype(np.float16)
    # Near the smallest float16, rounding down could halve a scale and clip its group: round away.
    low = np.abs(stored.astype(np.float32)) < np.abs(scales) * np.float32(0.999)
    if low.any():
        away = np.nextafter(stored, np.copysign(np.float16(np.inf), scales.astype(np.float16)))
        stored = np.where(low, away, stored)
    large = np.abs(scales) > F16_MAX
    if large.any():
        used = np.where(large, scales, stored.astype(np.float32))
        return used, used
    return stored.astype(np.float32), stored


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    tiny = np.abs(scales) < 1e-30
    return np.where(tiny, np.float32(0), np.float32(1) / np.where(tiny, np.float32(1), scales))


def _int8(groups: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    used, stored = _storable(np.abs(groups).max(axis=2) / np.float32(127))
    codes = np.rint(groups * _inverse(used)[:, :, None])
    return np.clip(codes, -127, 127).astype(np.int8), stored


def _int4(groups: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    # The largest magnitude, with its sign, goes to -8: the side on which the codes reach further.
    high, low = groups.max(axis=2), groups.min(axis=2)
    # Adding zero gives groups of zeros the scale 0, not -0, whichever of both a maximum is.
    base = np.where(high > -low, high, low) / np.float32(-8) + np.float32(0)
    best_codes, best_stored, best_error = None, None, None
    for part in INT4_TRIES:
        used, stored = _storable(base * np.float32(part))
        codes = np.rint(groups * _inverse(used)[:, :, None])
        np.clip(codes, -8, 7, out=codes)
        missed = codes * used[:, :, None] - groups
        missed *= missed
        error = group_sum(missed)
        if best_codes is None or best_stored is None or best_error is None:
            best_codes, best_stored, best_error = codes, stored, error
            continue
        better = error < best_error
        np.copyto(best_codes, codes, where=better[:, :, None])
        best_stored = np.where(better, stored, best_stored)
        best_error = np.minimum(error, best_error)
    assert best_codes is not None and best_stored is not None
    return (best_codes + 8).astype(np.uint8), best_stored


def _ternary(groups: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    size = np.abs(groups)
    top = size.max(axis=2)
    # BitCPM4's quantiser is the mean magnitude; a group that is ternary already keeps its own.
    already = ((size == 0) | (size == top[:, :, None])).all(axis=2)
    count = np.float32(size.shape[2])
    used, stored = _storable(np.where(already, top, group_sum(size) / count))
    codes = np.rint(groups * _inverse(used)[:, :, None])
    return (np.clip(codes, -1, 1) + 1).astype(np.uint8), stored
