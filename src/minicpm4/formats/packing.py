"""Between float32 matrices and packed ones: unpack, round to nearest, convert, detect ternary.

Everything works in slices of rows of about SLICE weights, so that scratch memory stays at a few MB
whatever the size of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.strict import suggest
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.quant import (
    CODE_DTYPES,
    FLOAT_KINDS,
    ROW_MULTIPLE,
    WEIGHTS_PER_CODE,
    PackedTensor,
    QuantSpec,
)
from minicpm4.formats.rounding import round_group

__all__ = [
    "default_spec",
    "detect_rounded",
    "detect_ternary",
    "pack_codes",
    "pack_from_float",
    "pack_ternary_exact",
    "repack",
    "row_slices",
    "unpack",
    "unpack_codes",
    "unpack_rows",
]

SLICE = 1 << 18  # weights handled at a time: 1 MB of float32, which stays in cache
_TERNARY_GROUPS = (256, 128, 64, 32)
_ROUNDED = tuple((kind, group) for kind in ("int4", "int8") for group in (256, 192, 128, 96, 64, 32))
_SAMPLE_ROWS = 4


def row_slices(rows: int, columns: int, weights: int = SLICE) -> Iterator[slice]:
    """Cut ``rows`` into slices of at most ``weights`` weights (at least one row)."""
    step = max(1, weights // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def default_spec(kind: str, columns: int, group_size: int | None = None) -> QuantSpec | None:
    """The format of ``kind`` for rows of ``columns`` weights; None when none fits.

    Groups hold ``group_size`` weights if given, else 64, else 32. Raises ConfigError for an unknown kind.
    """
    if kind in FLOAT_KINDS:
        return QuantSpec(kind=kind)  # type: ignore[arg-type]
    if kind not in CODE_DTYPES:
        raise ConfigError(f"weight format {kind!r} is unknown", suggest(kind, list(CODE_DTYPES)))
    for group in (group_size,) if group_size else (64, 32):
        if columns % group == 0 and columns % ROW_MULTIPLE[kind] == 0:
            return QuantSpec(kind=kind, group_size=group)  # type: ignore[arg-type]
    return None


def unpack_codes(codes: NDArray, kind: str) -> NDArray:
    """Return one code a weight: uint8 (rows, columns) for int4 and ternary, else ``codes`` itself."""
    per = WEIGHTS_PER_CODE[kind]
    if per == 1:
        return codes
    bits = 8 // per
    units = codes.reshape(codes.shape[0], -1, 1, 16)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, per, 1)
    return ((units >> shifts) & np.uint8((1 << bits) - 1)).reshape(codes.shape[0], -1)


def pack_codes(codes: NDArray, kind: str) -> NDArray:
    """Inverse of ``unpack_codes``: one code a weight (rows, columns) to the packed layout."""
    per = WEIGHTS_PER_CODE[kind]
    if per == 1:
        return codes.astype(CODE_DTYPES[kind], copy=False)
    bits = 8 // per
    units = codes.astype(np.uint8, copy=False).reshape(codes.shape[0], -1, per, 16)
    packed = units[:, :, 0].copy()
    for part in range(1, per):
        packed |= units[:, :, part] << np.uint8(bits * part)
    return packed.reshape(codes.shape[0], -1)


def unpack_rows(tensor: PackedTensor, rows: slice) -> NDArray[np.float32]:
    """Return float32 weights (len(rows), in) of some rows: scale * code + offset, in that order."""
    kind, group = tensor.spec.kind, tensor.spec.group_size
    codes = tensor.codes[rows]
    if kind == "bf16":
        return bf16_to_f32(codes)
    values = unpack_codes(codes, kind).astype(np.float32)
    if tensor.scales is None:
        return values
    values = values.reshape(values.shape[0], -1, group)
    if kind == "ternary" or (kind == "int4" and tensor.offsets is None):
        values -= 1 if kind == "ternary" else 8
    values *= tensor.scales[rows].astype(np.float32)[:, :, None]
    if tensor.offsets is not None:
        values += tensor.offsets[rows].astype(np.float32)[:, :, None]
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
    return _pack_stream((weights.shape[0], weights.shape[1]), spec, lambda rows: weights[rows])


def repack(tensor: PackedTensor, spec: QuantSpec) -> PackedTensor:
    """Return ``tensor`` in another format, rounded as ``pack_from_float`` does, row slice by row slice.

    Raises CheckpointError, ConfigError.
    """
    if tensor.spec == spec:
        return tensor
    return _pack_stream(tensor.shape, spec, lambda rows: unpack_rows(tensor, rows))


def _pack_stream(
    shape: tuple[int, int], spec: QuantSpec, read: Callable[[slice], NDArray[np.float32]]
) -> PackedTensor:
    group = spec.group_size
    if group and (shape[1] % group or shape[1] % ROW_MULTIPLE[spec.kind]):
        raise ConfigError(f"{shape[1]} columns do not fit weight format {spec}")
    codes = np.empty((shape[0], shape[1] // WEIGHTS_PER_CODE[spec.kind]), CODE_DTYPES[spec.kind])
    scales = np.empty((shape[0], shape[1] // group), np.float16) if group else None
    for rows in row_slices(*shape):
        values = np.ascontiguousarray(read(rows), np.float32)
        _require_finite(values, rows)
        if scales is None:
            codes[rows] = _to_float_kind(values, spec.kind)
            continue
        found, part = round_group(values.reshape(values.shape[0], -1, group), spec.kind)
        if part.dtype == np.float32:
            scales = scales.astype(np.float32, copy=False)  # one group was too large for float16
        codes[rows] = pack_codes(found.reshape(values.shape), spec.kind)
        scales[rows] = part
    return PackedTensor(spec=spec, shape=shape, codes=codes, scales=scales)


def _require_finite(values: NDArray[np.float32], rows: slice) -> None:
    with np.errstate(invalid="ignore"):
        total = values.sum(dtype=np.float64)  # of finite float32 values it cannot overflow
    if not np.isfinite(total):
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0]) + rows.start
        raise CheckpointError(f"row {bad} of a weight matrix holds a value that is not finite")


def _to_float_kind(values: NDArray[np.float32], kind: str) -> NDArray:
    if kind == "bf16":
        return f32_to_bf16(values)
    if kind == "f16" and values.size and float(np.abs(values).max()) > 65504:
        raise CheckpointError(
            f"a weight of magnitude {float(np.abs(values).max()):g} is too large for f16", "use bf16 or f32"
        )
    return values.astype(CODE_DTYPES[kind], copy=False)


def detect_ternary(tensor: PackedTensor) -> QuantSpec | None:
    """The largest group size in which a float matrix is exactly scale * {-1, 0, 1}; None if in none.

    BitCPM4 checkpoints are such matrices. A few rows are tried first, so others cost nothing.
    """
    rows, columns = tensor.shape
    if tensor.spec.kind not in FLOAT_KINDS or columns % ROW_MULTIPLE["ternary"] or not rows:
        return None
    # Spread over the matrix: some rows of an embedding may be all zero.
    sample = sorted({rows * i // _SAMPLE_ROWS for i in range(_SAMPLE_ROWS)})
    for group in _TERNARY_GROUPS:
        if columns % group:
            continue
        tried = all(_is_ternary(tensor.codes[r : r + 1], group) for r in sample)
        if tried and all(_is_ternary(tensor.codes[s], group) for s in row_slices(rows, columns)):
            return QuantSpec(kind="ternary", group_size=group)
    return None


def detect_rounded(tensor: PackedTensor) -> QuantSpec | None:
    """The int4 or int8 format that holds a float32 matrix exactly, as ``pack_from_float`` would round it;
    None if none does.

    Matrices that were trained rounded are such. A few rows are tried first, so others cost nothing.
    """
    rows, columns = tensor.shape
    if tensor.spec.kind != "f32" or not rows:
        return None  # 16 bits cannot hold code times scale
    sample = sorted({rows * i // _SAMPLE_ROWS for i in range(_SAMPLE_ROWS)})
    for kind, group in _ROUNDED:
        if columns % group or columns % ROW_MULTIPLE[kind]:
            continue
        spec = QuantSpec(kind=kind, group_size=group)  # type: ignore[arg-type]
        if _is_rounded(tensor.codes[sample], spec) and all(
            _is_rounded(tensor.codes[part], spec) for part in row_slices(rows, columns)
        ):
            return spec
    return None


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


def _is_ternary(codes: NDArray, group: int) -> bool:
    bits, top = _magnitudes(codes, group)
    infinity = {"uint16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}[codes.dtype.name]
    return bool(((bits == 0) | (bits == top)).all() and (top < infinity).all())


def pack_ternary_exact(tensor: PackedTensor, spec: QuantSpec) -> PackedTensor:
    """Pack a matrix for which ``detect_ternary`` gave ``spec``: no value changes.

    Scales are float16 where that is exact for all, else float32. Raises CheckpointError when a group
    holds two magnitudes.
    """
    group, (rows, columns) = spec.group_size, tensor.shape
    codes = np.empty((rows, columns // 4), np.uint8)
    scales = np.empty((rows, columns // group), np.float32)
    for part in row_slices(rows, columns):
        if tensor.spec.kind not in FLOAT_KINDS or not _is_ternary(tensor.codes[part], group):
            raise CheckpointError(
                f"a weight matrix is not ternary in groups of {group}", "convert it with int4"
            )
        values = unpack_rows(tensor, part)
        scales[part] = np.abs(values).reshape(values.shape[0], -1, group).max(axis=2)
        codes[part] = pack_codes((np.sign(values) + 1).astype(np.uint8), "ternary")
    with np.errstate(over="ignore"):
        small = scales.astype(np.float16)
    exact = bool((small.astype(np.float32) == scales).all())
    return PackedTensor(
        spec=spec, shape=tensor.shape, codes=codes, scales=small if exact else scales, offsets=None
    )
