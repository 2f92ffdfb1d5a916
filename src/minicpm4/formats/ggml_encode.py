"""From our packed layout to the blocks of GGML's types: the inverse of each decoder of ``ggml_types.py``.

An encoder takes codes as ``WeightKind.unpack`` gives them, one a weight (rows, columns), and scales and
offsets; it returns raw blocks, uint8 (rows, blocks, bytes per block). What a block
can represent is kept to the bit. Where scales of a super-block do not lie on its grid, they move to the
nearest that do, and codes follow them. Codes that a type has no room for are refused with CheckpointError.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats.quant import PackedTensor

__all__ = [
    "Scales", "q2_0", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0", "scales_of", "tq1_0",
    "tq2_0",
]  # fmt: skip

Array = NDArray[np.float32]
Raw = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales or offsets ``values`` (rows, groups); of two levels they are ``steps`` (rows, groups) times
    ``supers`` (rows, columns / 256)."""

    values: Array
    steps: Array | None = None
    supers: Array | None = None

    def __neg__(self) -> Scales:
        return Scales(-self.values, self.steps, None if self.supers is None else -self.supers)


def scales_of(tensor: PackedTensor, rows: slice) -> tuple[Scales, Scales | None]:
    """Scales and offsets of some rows of a matrix."""
    scales, offsets = tensor.scale_floats(rows), tensor.offset_floats(rows)
    moved = None if offsets is None else Scales(offsets, *(tensor.levels("offsets", rows) or ()))
    return Scales(scales, *(tensor.levels("scales", rows) or ())), moved


def q2_0(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    # Of its four numbers only the three that ternary weights have: other readers know no more.
    found = (_blocks(codes, 64, 7, 9) - 7).reshape(*scales.values.shape, 16, 4)
    return _join(_half(scales.values), (found << np.arange(0, 8, 2)).sum(axis=-1).astype(np.uint8))


def q4_0(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    return _join(_half(scales.values), _to_nibbles(_blocks(codes, 32, 0, 15)))


def q4_1(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    return _join(_half(scales.values), _half(_given(offsets).values), _to_nibbles(_blocks(codes, 32, 0, 15)))


def q5_0(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    found = _blocks(codes, 32, 0, 31)
    return _join(_half(scales.values), _fifth_bits(found), _to_nibbles(found & 15))


def q5_1(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    found = _blocks(codes, 32, 0, 31)
    return _join(
        _half(scales.values), _half(_given(offsets).values), _fifth_bits(found), _to_nibbles(found & 15)
    )


def q8_0(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    return _join(_half(scales.values), _blocks(codes, 32, -128, 127).astype(np.int8).view(np.uint8))


def q4_k(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    found, head = _k_blocks(codes, scales, _given(offsets), 15)
    return _join(*head, _k_nibbles(found))


def q5_k(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    found, head = _k_blocks(codes, scales, _given(offsets), 31)
    high = (found >> 4).reshape(*found.shape[:2], 8, 32)
    bits = (high << np.arange(8).reshape(8, 1)).sum(axis=2)
    return _join(*head, bits.astype(np.uint8), _k_nibbles(found & 15))


def q6_k(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    wanted = _blocks(scales.values, 16)
    d, steps, exact = _grid_of(scales, 16, -128, 127)
    numbers = _blocks(codes, 256, 0, 63) - 32
    if not exact.all():
        groups = numbers.reshape(*wanted.shape, 16)
        moved = _nearest(groups * wanted[..., None], (steps * d[..., None])[..., None], -32, 31)
        numbers = np.where(exact[..., None], numbers, moved.reshape(numbers.shape))
    found = numbers.astype(np.int16) + 32
    lead = found.shape[:2]
    low = _to_nibbles((found & 15).reshape(*lead, 2, 128)).reshape(*lead, 128)
    top = (found >> 4).reshape(*lead, 2, 4, 32) << (2 * np.arange(4).reshape(4, 1))
    high = top.sum(axis=3).astype(np.uint8).reshape(*lead, 64)
    return _join(low, high, steps.astype(np.int8).view(np.uint8), _half(d[..., None]))


def tq1_0(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    found, parts = _blocks(codes, 256, 0, 2), []
    for start, stop, digits in ((0, 160, 5), (160, 240, 5), (240, 256, 4)):
        numbers = found[..., start:stop].reshape(*found.shape[:2], digits, -1)
        total = (numbers * (3 ** (4 - np.arange(digits))).reshape(digits, 1)).sum(axis=2)
        parts.append(((total * 256 + 242) // 243).astype(np.uint8))
    return _join(*parts, _half(scales.values))


def tq2_0(codes: NDArray, scales: Scales, offsets: Scales | None) -> Raw:
    _no(offsets)
    found = _blocks(codes, 256, 0, 2).reshape(codes.shape[0], -1, 2, 4, 32)
    packed = (found << (2 * np.arange(4).reshape(4, 1))).sum(axis=3).astype(np.uint8)
    return _join(packed.reshape(*packed.shape[:2], 64), _half(scales.values))


def _no(offsets: Scales | None) -> None:
    if offsets is not None:
        raise CheckpointError("this GGML type has no place for offsets", "choose one that has")


def _given(offsets: Scales | None) -> Scales:
    if offsets is None:
        raise CheckpointError("this GGML type needs offsets", "give them, such as -8 times int4's scales")
    return offsets


def _blocks(values: NDArray, size: int, low: int | None = None, high: int | None = None) -> NDArray:
    """(rows, blocks, size); codes as int32, refused beyond ``low`` and ``high``."""
    if low is None or high is None:
        return values.reshape(values.shape[0], -1, size)
    if values.size and (values.min() < low or values.max() > high):
        raise CheckpointError(
            f"codes of {values.min()} to {values.max()} do not fit a GGML type of {low} to {high}",
            "round the weights to that range first",
        )
    return values.reshape(values.shape[0], -1, size).astype(np.int32)


def _join(*parts: NDArray) -> Raw:
    """Parts of each block (rows, blocks, bytes), one after another."""
    return np.concatenate([part.astype(np.uint8, copy=False) for part in parts], axis=-1)


def _half(values: Array) -> Raw:
    """Numbers (rows, blocks), or (rows, blocks, 1), as float16's bytes. Raises CheckpointError."""
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.array_equal(half.astype(np.float32), values):
        raise CheckpointError("a scale is not one that float16 holds", "round scales to float16 first")
    return np.ascontiguousarray(half).view(np.uint8).reshape(*values.shape[:2], 2)


def _to_nibbles(codes: NDArray) -> Raw:
    """The first half of the last axis into low, the second into high nibbles."""
    half = codes.shape[-1] // 2
    return (codes[..., :half] | codes[..., half:] << 4).astype(np.uint8)


def _fifth_bits(codes: NDArray) -> Raw:
    return np.packbits((codes >> 4).astype(np.uint8), axis=-1, bitorder="little")


def _k_nibbles(codes: NDArray) -> Raw:
    lead = codes.shape[:2]
    return _to_nibbles(codes.reshape(*lead, 4, 64)).reshape(*lead, 128)


def _k_blocks(codes: NDArray, scales: Scales, offsets: Scales, top: int) -> tuple[NDArray, tuple[Raw, ...]]:
    """Codes (rows, blocks, 256), and the fields before them, of Q4_K and Q5_K."""
    numbers = _blocks(codes, 256, 0, top)
    wanted, minima = _blocks(scales.values, 8), -_blocks(offsets.values, 8)
    groups = numbers.reshape(*wanted.shape, 32)
    weights = groups * wanted[..., None] - minima[..., None]
    d, steps, exact = _grid_of(scales, 8, 0, 63)
    d_min, min_steps, also = _grid_of(-offsets, 8, 0, 63)
    inexact = ~(exact & also)
    if inexact.any():
        # A group of negative scale counts the other way round: such super-blocks have positive ones.
        flipped = np.where(wanted < 0, minima - top * wanted, minima)
        near, near_min = _grid(np.abs(wanted), 0, 63), _grid(np.maximum(flipped, 0), 0, 63)
        d, d_min = np.where(inexact, near[0], d), np.where(inexact, near_min[0], d_min)
        steps = np.where(inexact[..., None], near[1], steps)
        min_steps = np.where(inexact[..., None], near_min[1], min_steps)
        used, offset = steps * d[..., None], min_steps * d_min[..., None]
        moved = _nearest(weights + offset[..., None], used[..., None], 0, top)
        groups = np.where(inexact[..., None, None], moved, groups)
    return groups.reshape(numbers.shape), (
        _half(d[..., None]),
        _half(d_min[..., None]),
        _pack_k(steps, min_steps),
    )


def _pack_k(steps: NDArray, minima: NDArray) -> Raw:
    """Eight and eight six-bit numbers in twelve bytes; see ``ggml_types._k_scales``."""
    s, m = steps.astype(np.int32), minima.astype(np.int32)
    low, high = slice(0, 4), slice(4, 8)
    return _join(
        s[..., low] | (s[..., high] >> 4) << 6,
        m[..., low] | (m[..., high] >> 4) << 6,
        (s[..., high] & 15) | (m[..., high] & 15) << 4,
    )


def _grid_of(scales: Scales, size: int, low: int, high: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """``_grid`` of ``size`` groups at a time: as it was stored, where that fits."""
    if scales.steps is not None and scales.supers is not None:
        steps = _blocks(scales.steps, size)
        if not steps.size or (steps.min() >= low and steps.max() <= high):
            return scales.supers, steps, np.ones(scales.supers.shape, bool)
    return _grid(_blocks(scales.values, size), low, high)


def _grid(values: Array, low: int, high: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Whole multiples, ``low`` to ``high``, of one float16 number for the last axis: that number (...), the
    multiples, and whether they are exactly ``values``; where no number gives that, a near one."""
    place = np.abs(values).argmax(axis=-1)[..., None]
    top = np.take_along_axis(values, place, axis=-1)[..., 0]
    shape, found = top.shape, np.zeros(top.shape, bool)
    unit, steps = np.zeros(shape, np.float32), np.zeros(values.shape, np.float32)
    for count in [*range(high, 0, -1), *range(low, 0), 0]:
        left = ~found
        if not left.any():
            break
        tried, multiples = _multiples(values[left], top[left], count, low, high)
        good = (multiples * tried[:, None] == values[left]).all(axis=-1)
        # The first try, the finest unit, stays where none is exact.
        kept = good | (count == high)
        at = np.nonzero(left)
        chosen = tuple(axis[kept] for axis in at)
        unit[chosen], steps[chosen] = tried[kept], multiples[kept]
        found[tuple(axis[good] for axis in at)] = True
    return unit, steps, found


def _multiples(values: Array, top: Array, count: int, low: int, high: int) -> tuple[Array, Array]:
    """The unit of which ``top`` is ``count`` times, as float16, and the nearest multiples of it."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        unit = (top / np.float32(count or np.inf)).astype(np.float16).astype(np.float32)
        unit = np.where(np.isfinite(unit), unit, 0).astype(np.float32)
        steps = np.where(unit[:, None] == 0, 0, np.rint(values / unit[:, None]))
    return unit, np.clip(steps, low, high).astype(np.float32)


def _nearest(weights: Array, scales: Array, low: int, high: int) -> NDArray[np.int32]:
    """The code of each weight, whatever it was before."""
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scales == 0, 0, np.rint(weights / scales))
    return np.clip(codes, low, high).astype(np.int32)
