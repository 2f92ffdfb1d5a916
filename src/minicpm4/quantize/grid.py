"""Scales of groups of weights, and the numbers that they multiply: where rounding knows which columns
matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats import rounding
from minicpm4.formats.kinds import WeightKind
from minicpm4.formats.packing import pack_rows, row_slices, unpack_rows
from minicpm4.formats.quant import PackedTensor, QuantSpec

__all__ = ["can_round", "pack", "rows_to_nearest", "search_scales", "to_nearest", "values_error"]

Floats = NDArray[np.float32]

# Scales tried, as parts of the one that maps the largest magnitude to the lowest code (int4, int5), of that
# which maps it to the highest (int8), or of the mean magnitude (ternary).
_TRIES = {
    "int5": np.linspace(1.12, 0.72, 11, dtype=np.float32).round(2),  # among them 1: what lies on a grid stays
    "int4": np.linspace(1.16, 0.60, 29, dtype=np.float32),
    "int8": np.array([1.0], np.float32),
    "ternary": np.linspace(0.6, 2.0, 29, dtype=np.float32),
}


def search_scales(groups: Floats, importance: Floats | None, kind: WeightKind) -> Floats:
    """Scales (rows, groups) of ``groups`` (rows, groups, size) with the least squared error, columns
    weighted by ``importance`` (groups, size) or by row, None: all alike. float16 holds each unless it is too
    large for that."""
    size = np.abs(groups)
    if kind.least < -kind.most and kind.zero > 1:
        high, low = groups.max(axis=2), groups.min(axis=2)
        base = np.where(high > -low, high, low) / np.float32(kind.least) + np.float32(0)
    elif kind.most > 1:
        base = size.max(axis=2) / np.float32(kind.most)
    else:
        base = size.mean(axis=2, dtype=np.float32)
    weight = None if importance is None else np.asarray(importance, np.float32)
    weighed = "rgs,rgs->rg" if weight is not None and weight.ndim == 3 else "rgs,gs->rg"
    best = _storable(base)
    best_error = np.full(base.shape, np.inf, np.float32)
    for part in _TRIES[kind.name]:
        scales = _storable(base * part)
        missed = rounding.whole_numbers(np, groups, scales, kind.least, kind.most)
        missed *= scales[..., None]
        missed -= groups
        missed *= missed
        error = missed.sum(axis=2) if weight is None else np.einsum(weighed, missed, weight)
        better = error < best_error
        best, best_error = np.where(better, scales, best), np.where(better, error, best_error)
    return best


def can_round(kind: str) -> bool:
    """Whether weights can be rounded to the kind."""
    return kind in _TRIES


def to_nearest(weights: Floats, spec: QuantSpec) -> PackedTensor:
    """``weights`` (out, in) rounded to the nearest values of ``spec``, as ``pack_from_float`` does, and to
    kinds that files have and it does not make: scales are then searched. Raises CheckpointError,
    ConfigError."""
    return rows_to_nearest((weights.shape[0], weights.shape[1]), spec, lambda rows: weights[rows])


def rows_to_nearest(shape: tuple[int, int], spec: QuantSpec, read: Callable[[slice], Floats]) -> PackedTensor:
    """``to_nearest`` of a matrix (out, in) of which ``read`` gives some rows at a time."""
    if spec.row.round is not None or not spec.row.group:
        return pack_rows(shape, spec, read)
    numbers = np.empty(shape, np.int8)
    scales = np.empty((shape[0], shape[1] // spec.group_size), np.float32)
    for part in row_slices(*shape):
        weights = read(part)
        if not np.isfinite(weights).all():
            raise CheckpointError("a weight is not finite")
        groups = weights.reshape(-1, scales.shape[1], spec.group_size)
        scales[part] = search_scales(groups, None, spec.row)
        found = rounding.whole_numbers(np, groups, scales[part], spec.row.least, spec.row.most)
        numbers[part] = found.reshape(-1, shape[1])
    return pack(numbers, scales, spec)


def values_error(packed: PackedTensor, read: Callable[[slice], Floats]) -> float:
    """The squared error of the values of ``packed``, which are rounded from those that ``read`` gives, as a
    share of their squares."""
    missed = total = 0.0
    for rows in row_slices(*packed.shape):
        values = read(rows)
        missed += float(np.square(unpack_rows(packed, rows) - values, dtype=np.float64).sum())
        total += float(np.square(values, dtype=np.float64).sum())
    return missed / total if total else 0.0


def _storable(scales: Floats) -> Floats:
    with np.errstate(over="ignore"):  # too large for float16: they stay as they are
        found: Floats = rounding.storable(np, scales)
    return found


def pack(numbers: NDArray, scales: Floats, spec: QuantSpec) -> PackedTensor:
    """``numbers`` (out, in), whole, of any type, and ``scales`` (out, groups) as a matrix: scale * number,
    exactly."""
    row = spec.row
    small, exact = rounding.in_half(scales)
    codes = np.empty((len(numbers), row.width(numbers.shape[1])), row.codes)
    step = max(1, (1 << 20) // numbers.shape[1])
    for start in range(0, len(numbers), step):
        codes[start : start + step] = row.pack(row.codes_of(numbers[start : start + step].astype(np.float32)))
    return PackedTensor(
        spec=spec,
        shape=(numbers.shape[0], numbers.shape[1]),
        codes=codes,
        scales=np.ascontiguousarray(small if exact else scales),
    )
