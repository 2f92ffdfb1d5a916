"""Between float32 matrices and packed ones: unpack, round to nearest, convert; find matrices of floats that
are on a kind's grid already (ternary ones too), and the format that suits a number of columns.

Everything works in slices of rows of about SLICE weights, so that scratch memory stays at a few MB
whatever the size of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.kinds import KINDS, WeightKind, kind_of, rounded_kinds
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.rounding import F16_MAX, in_half

__all__ = [
    "as_codes",
    "default_spec",
    "detect_rounded",
    "detect_ternary",
    "exact_float",
    "exact_spec",
    "flattened",
    "pack_from_float",
    "pack_rows",
    "pack_ternary_exact",
    "packed_if_exact",
    "repack",
    "rounded_anew",
    "row_slices",
    "smallest_floats",
    "some_rows",
    "unpack",
    "unpack_rows",
    "widened",
    "wider",
]

Read = Callable[[slice], NDArray[np.float32]]

SLICE = 1 << 18  # weights handled at a time: 1 MB of float32, which stays in cache
_SAMPLE_ROWS = 4
_SHOWN_ROWS = 32  # which tell what a matrix is to who does not read all of it


def row_slices(rows: int, columns: int, weights: int = SLICE) -> Iterator[slice]:
    """Cut ``rows`` into slices of at most ``weights`` weights (at least one row)."""
    step = max(1, weights // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def default_spec(kind: str, columns: int) -> QuantSpec | None:
    """The format of ``kind`` for rows of ``columns`` weights; None when none fits.

    Groups are of the size that the kind likes best. Raises ConfigError for an unknown kind.
    """
    row = kind_of(kind)
    if not row.group:
        return QuantSpec(kind=kind)
    specs = (QuantSpec(kind=kind, group_size=group) for group in row.groups)
    return next((spec for spec in specs if spec.fits(columns)), None)


def as_codes(stored: NDArray, spec: QuantSpec) -> NDArray:
    """Float weights as the codes of ``spec``: where they lie, or float64 rounded to float32."""
    with np.errstate(over="ignore"):
        return stored.astype(spec.row.codes, copy=False)


def unpack_rows(tensor: PackedTensor, rows: slice) -> NDArray[np.float32]:
    """Return float32 weights (len(rows), in) of some rows: scale * number + offset, in that order."""
    row, group = tensor.spec.row, tensor.spec.group_size
    values = row.numbers(row.unpack(tensor.codes[rows]), tensor.shifted)
    if tensor.scales is None:
        return values
    values = values.reshape(values.shape[0], -1, group)
    values *= tensor.scale_floats(rows)[:, :, None]
    offsets = tensor.offset_floats(rows)
    if offsets is not None:
        values += offsets[:, :, None]
    return values.reshape(values.shape[0], -1)


def unpack(tensor: PackedTensor) -> NDArray[np.float32]:
    """Return all weights as float32 (out, in)."""
    out = np.empty(tensor.shape, np.float32)
    for rows in row_slices(*tensor.shape):
        out[rows] = unpack_rows(tensor, rows)
    return out


def pack_from_float(weights: NDArray[np.float32], spec: QuantSpec) -> PackedTensor:
    """Round ``weights`` (out, in), float32, to the nearest values of ``spec``.

    int8 is symmetric about its largest magnitude; int4 picks each group's scale from a few by squared
    error; ternary takes the mean magnitude, or the group's one magnitude if it is ternary already.
    Scales are float16 unless one is too large for it. Raises CheckpointError when a weight is not
    finite, or too large for f16; ConfigError when the columns do not fit.
    """
    return pack_rows((weights.shape[0], weights.shape[1]), spec, lambda rows: weights[rows])


def repack(tensor: PackedTensor, spec: QuantSpec) -> PackedTensor:
    """Return ``tensor`` in another format, rounded as ``pack_from_float`` does, row slice by row slice.

    Raises CheckpointError, ConfigError.
    """
    return tensor if tensor.spec == spec else rounded_anew(tensor, spec)


def rounded_anew(tensor: PackedTensor, spec: QuantSpec) -> PackedTensor:
    """``repack``, but of what is in ``spec`` already, too: offsets go, scales are chosen again."""
    return pack_rows(tensor.shape, spec, lambda rows: unpack_rows(tensor, rows))


def flattened(tensor: PackedTensor) -> PackedTensor:
    """``tensor`` with scales of one level, in float32 where they had two."""
    if not tensor.two_level:
        return tensor
    return PackedTensor(
        spec=tensor.spec,
        shape=tensor.shape,
        codes=tensor.codes,
        scales=tensor.scale_floats(),
        offsets=tensor.offset_floats(),
    )


def wider(spec: QuantSpec) -> QuantSpec:
    """``spec`` with the kind that its own names as wider; as it is where it names none."""
    return QuantSpec(kind=spec.row.wider, group_size=spec.group_size) if spec.row.wider else spec


def widened(tensor: PackedTensor) -> PackedTensor:
    """The same weights for who has kernels for common kinds alone: in the wider kind, and with scales of one
    level."""
    tensor, row, spec = flattened(tensor), tensor.spec.row, wider(tensor.spec)
    if not row.wider:
        return tensor
    codes = np.empty((tensor.shape[0], spec.row.width(tensor.shape[1])), spec.row.codes)
    for part in row_slices(*tensor.shape):
        numbers = row.unpack(tensor.codes[part]).view(np.int8)
        codes[part] = spec.row.pack(numbers if tensor.shifted else numbers - np.int8(row.zero))
    return replace(tensor, spec=spec, codes=codes)


def exact_float(weights: NDArray[np.float32]) -> str:
    """The smallest kind of floats that holds all of ``weights`` (rows, columns), float32, as they are."""
    return _exact_kind((weights.shape[0], weights.shape[1]), lambda rows: weights[rows])


def _exact_kind(shape: tuple[int, int], read: Read) -> str:
    for kind in ("bf16", "f16"):
        row = KINDS[kind]
        if all(_held(row, read(rows)) for rows in row_slices(*shape)):
            return kind
    return "f32"


def _held(row: WeightKind, weights: NDArray[np.float32]) -> bool:
    small = row.name != "f16" or not weights.size or float(np.abs(weights).max()) <= F16_MAX
    return small and np.array_equal(row.unpack(row.pack(weights)), weights)


def smallest_floats(shape: tuple[int, int], read: Read) -> PackedTensor:
    """A matrix (out, in) of which ``read`` gives some rows at a time, in the smallest kind of floats that
    holds it."""
    return pack_rows(shape, QuantSpec(kind=_exact_kind(shape, read)), read)


def pack_rows(shape: tuple[int, int], spec: QuantSpec, read: Read) -> PackedTensor:
    """``pack_from_float`` of a matrix (out, in) of which ``read`` gives some rows at a time."""
    row, group = spec.row, spec.group_size
    if not spec.fits(shape[1]):
        raise ConfigError(f"{shape[1]} columns do not fit weight format {spec}")
    codes = np.empty((shape[0], row.width(shape[1])), row.codes)
    scales = np.empty((shape[0], shape[1] // group), np.float16) if group else None
    for rows in row_slices(*shape):
        values = np.ascontiguousarray(read(rows), np.float32)
        _require_finite(values, rows)
        if scales is None:
            codes[rows] = row.pack(values)
            continue
        numbers, found = _round_groups(values.reshape(values.shape[0], -1, group), row)
        if found.dtype == np.float32:
            scales = scales.astype(np.float32, copy=False)  # one group was too large for float16
        codes[rows] = row.pack(row.codes_of(numbers.reshape(values.shape)))
        scales[rows] = found
    return PackedTensor(spec=spec, shape=shape, codes=codes, scales=scales)


def _round_groups(groups: NDArray[np.float32], row: WeightKind) -> tuple[NDArray, NDArray]:
    """Numbers and scales of ``groups`` (rows, groups, group size), finite; scales (rows, groups) in the type
    that holds them all."""
    with np.errstate(over="ignore", invalid="ignore"):
        numbers, scales = row.rounded(np, groups)
        large = np.abs(scales) > F16_MAX
    return numbers, scales if large.any() else scales.astype(np.float16)


def _require_finite(values: NDArray[np.float32], rows: slice) -> None:
    with np.errstate(invalid="ignore"):
        total = values.sum(dtype=np.float64)  # of finite float32 values it cannot overflow
    if not np.isfinite(total):
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0]) + rows.start
        raise CheckpointError(f"row {bad} of a weight matrix holds a value that is not finite")


def packed_if_exact(tensor: PackedTensor) -> PackedTensor:
    """A matrix of floats whose weights some grouped kind holds exactly, in that kind, one of int4 whose
    numbers are ternary in that; any other as it is.

    BitCPM4 checkpoints are ternary matrices written as floats; what this package trains in int4 and int8 is
    rounded in the same way. Ternary matrices in GGUF's Q2_0 have room for a fourth number.
    """
    spec = exact_spec(tensor)
    if spec is None:
        return tensor
    if tensor.spec.row.group:
        return _narrowed(tensor, spec)
    # Scales of ternary weights are kept as they are; those of other kinds are found again by rounding.
    return pack_ternary_exact(tensor, spec) if spec.kind == "ternary" else repack(tensor, spec)


def exact_spec(tensor: PackedTensor) -> QuantSpec | None:
    """The grouped format that ``packed_if_exact`` finds; None: none."""
    return _narrow_spec(tensor) or detect_ternary(tensor) or detect_rounded(tensor)


def _narrow_spec(tensor: PackedTensor) -> QuantSpec | None:
    """The ternary format of a matrix of int4 whose numbers are -1, 0 and 1; None: they are not."""
    row = tensor.spec.row
    if row.name != "int4" or tensor.shifted:
        return None
    spec, low = QuantSpec(kind="ternary", group_size=tensor.spec.group_size), row.zero - 1
    if not spec.fits(tensor.shape[1]):
        return None
    for part in row_slices(*tensor.shape):
        if (row.unpack(tensor.codes[part]) - np.uint8(low) > 2).any():  # those below come round to the top
            return None
    return spec


def _narrowed(tensor: PackedTensor, spec: QuantSpec) -> PackedTensor:
    """``tensor``, for which ``_narrow_spec`` gave ``spec``, in that: its scales stay."""
    row, (rows, columns) = spec.row, tensor.shape
    codes = np.empty((rows, row.width(columns)), row.codes)
    for part in row_slices(rows, columns):
        found = tensor.spec.row.unpack(tensor.codes[part])
        codes[part] = row.pack(found - np.uint8(tensor.spec.row.zero - row.zero))
    return PackedTensor(spec=spec, shape=tensor.shape, codes=codes, scales=tensor.scales)


def detect_ternary(tensor: PackedTensor) -> QuantSpec | None:
    """The largest group size in which a float matrix is exactly scale * {-1, 0, 1}; None if in none.

    A few rows are tried first, so others cost nothing.
    """
    rows, columns = tensor.shape
    if tensor.spec.row.group or not rows:
        return None
    for group in KINDS["ternary"].searched:
        spec = QuantSpec(kind="ternary", group_size=group)
        if not spec.fits(columns):
            continue
        tried = all(_is_ternary(tensor, slice(r, r + 1), group) for r in _sample(rows))
        if tried and all(_is_ternary(tensor, part, group) for part in row_slices(rows, columns)):
            return spec
    return None


def detect_rounded(tensor: PackedTensor) -> QuantSpec | None:
    """The format that holds a float32 matrix exactly, as ``pack_from_float`` would round it; None if none
    does. Kinds of fewer bits are tried first.

    Matrices that were trained rounded are such. A few rows are tried first, so others cost nothing.
    """
    rows, columns = tensor.shape
    if tensor.spec.kind != "f32" or not rows:
        return None  # 16 bits cannot hold code times scale
    # What is ternary in float32 has been found exactly, whatever its scales.
    kinds = [row for row in rounded_kinds().values() if row.reach > 1]
    for row in sorted(kinds, key=lambda one: one.bits):
        for group in row.searched:
            spec = QuantSpec(kind=row.name, group_size=group)
            if not spec.fits(columns):
                continue
            if _is_rounded(tensor.codes[_sample(rows)], spec) and all(
                _is_rounded(tensor.codes[part], spec) for part in row_slices(rows, columns)
            ):
                return spec
    return None


def some_rows(tensor: PackedTensor) -> PackedTensor:
    """A matrix of a few rows of ``tensor``, spread over it; those of zeros, which are on any grid, are left
    out where others are not."""
    found = _taken(tensor, _sample(tensor.shape[0], _SHOWN_ROWS))
    filled = np.flatnonzero(unpack(found).any(axis=1))
    return _taken(found, filled.tolist()) if len(filled) else found


def _taken(tensor: PackedTensor, rows: list[int]) -> PackedTensor:
    parts: dict[str, Any] = {part: array[rows] for part, array in tensor.parts.items()}
    return replace(tensor, shape=(len(rows), tensor.shape[1]), **parts)


def _sample(rows: int, count: int = _SAMPLE_ROWS) -> list[int]:
    """A few rows, spread over the matrix: some of an embedding may be all zero."""
    return sorted({rows * i // count for i in range(count)})


def _is_rounded(values: NDArray[np.float32], spec: QuantSpec) -> bool:
    if not np.isfinite(values).all():
        return False
    return bool((unpack(pack_from_float(values, spec)) == values).all())


def _magnitudes(codes: NDArray, group: int) -> tuple[NDArray, NDArray]:
    """Magnitude bits (rows, groups, group) of float codes, and each group's largest."""
    bits: NDArray = np.ascontiguousarray(codes).view(np.uint32 if codes.dtype.itemsize == 4 else np.uint16)
    # Without the sign, float bits are ordered as the floats are.
    bits = (bits & bits.dtype.type((1 << (8 * codes.dtype.itemsize - 1)) - 1)).reshape(len(codes), -1, group)
    return bits, bits.max(axis=2, keepdims=True)


def _is_ternary(tensor: PackedTensor, rows: slice, group: int) -> bool:
    bits, top = _magnitudes(tensor.codes[rows], group)
    return bool(((bits == 0) | (bits == top)).all() and (top < tensor.spec.row.infinity).all())


def pack_ternary_exact(tensor: PackedTensor, spec: QuantSpec) -> PackedTensor:
    """Pack a matrix for which ``detect_ternary`` gave ``spec``: no value changes.

    Scales are float16 where that is exact for all, else float32. Raises CheckpointError when a group
    holds two magnitudes.
    """
    row, group, (rows, columns) = spec.row, spec.group_size, tensor.shape
    codes = np.empty((rows, row.width(columns)), row.codes)
    scales = np.empty((rows, columns // group), np.float32)
    for part in row_slices(rows, columns):
        if tensor.spec.row.group or not _is_ternary(tensor, part, group):
            raise CheckpointError(
                f"a weight matrix is not ternary in groups of {group}", "convert it with int4"
            )
        values = unpack_rows(tensor, part)
        scales[part] = np.abs(values).reshape(values.shape[0], -1, group).max(axis=2)
        codes[part] = row.pack(row.codes_of(np.sign(values)))
    small, exact = in_half(scales)
    return PackedTensor(
        spec=spec, shape=tensor.shape, codes=codes, scales=small if exact else scales, offsets=None
    )
