"""Random packed weights with their values in float64, unpacked by code of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats.quant import PackedTensor, QuantSpec

# (kind, group, columns, offsets): widths with whole and broken vectors, groups that straddle blocks.
FORMATS = [
    ("f32", 0, 576, False),
    ("f32", 0, 33, False),
    ("f16", 0, 96, False),
    ("f16", 0, 7, False),
    ("bf16", 0, 576, False),
    ("bf16", 0, 131, False),
    ("int8", 16, 48, False),
    ("int8", 64, 576, False),
    ("int8", 32, 96, True),
    ("int8", 48, 144, False),
    ("int8", 16, 144, True),
    ("int4", 32, 32, False),
    ("int4", 32, 576, True),
    ("int4", 64, 192, False),
    ("int4", 96, 192, True),
    ("int4", 128, 384, False),
    ("ternary", 32, 64, False),
    ("ternary", 64, 576, False),
    ("ternary", 96, 192, False),
    ("ternary", 256, 512, False),
    ("int6", 16, 192, False),
    ("int6", 96, 192, True),
    ("int5", 32, 96, False),
    ("int5", 96, 288, True),
    ("int3", 16, 576, False),
    ("int3", 48, 192, True),
    ("int2", 16, 192, True),
    ("int2", 64, 64, False),
]
ZERO = {"int8": 0, "int4": 8, "ternary": 1, "int6": 32, "int5": 16, "int3": 4, "int2": 2}
COMMON = [case for case in FORMATS if case[0] not in ("int6", "int5", "int3", "int2")]  # on every device


def format_id(case: tuple[str, int, int, bool]) -> str:
    kind, group, columns, offsets = case
    return f"{kind}-g{group}-k{columns}" + ("-offsets" if offsets else "")


def random_weight(
    rng: np.random.Generator, rows: int, case: tuple[str, int, int, bool], scale_type: type = np.float16
) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Return a weight matrix (rows, columns) and its values."""
    kind, group, columns, with_offsets = case
    spec = QuantSpec(kind=kind, group_size=group)
    if not group:
        return _float_weight(rng, rows, columns, spec)
    if kind == "int8":
        codes: NDArray = rng.integers(-128, 128, (rows, columns), np.int8)
    else:
        codes = rng.integers(0, 3 if kind == "ternary" else 1 << int(kind[3:]), (rows, columns), np.uint8)
    shape = (rows, columns // group)
    scales = rng.uniform(0.5, 1.5, shape).astype(scale_type)
    offsets = rng.uniform(-4, 4, shape).astype(scale_type) if with_offsets else None
    s = np.repeat(scales.astype(np.float64), group, axis=1)
    values = s * codes
    if offsets is not None:
        values += np.repeat(offsets.astype(np.float64), group, axis=1)
    else:
        values -= s * ZERO[kind]
    packed = PackedTensor(
        spec=spec, shape=(rows, columns), codes=_pack(codes, kind), scales=scales, offsets=offsets
    )
    return packed, values


def _float_weight(
    rng: np.random.Generator, rows: int, columns: int, spec: QuantSpec
) -> tuple[PackedTensor, NDArray[np.float64]]:
    values = rng.standard_normal((rows, columns), np.float32)
    if spec.kind == "bf16":
        codes = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (codes.astype(np.uint32) << 16).view(np.float32)
    else:
        codes = values.astype(np.float16 if spec.kind == "f16" else np.float32)
        values = codes
    return PackedTensor(spec=spec, shape=(rows, columns), codes=codes), values.astype(np.float64)


def _pack(codes: NDArray, kind: str) -> NDArray:
    if kind == "int8":
        return codes
    if kind in ("int6", "int5", "int3"):
        return _pack_planes(codes, int(kind[3:]))
    per, bits = (2, 4) if kind == "int4" else (4, 2)
    packed = np.zeros((codes.shape[0], codes.shape[1] // per), np.uint8)
    for column in range(codes.shape[1]):
        unit, place = divmod(column, 16 * per)
        packed[:, unit * 16 + place % 16] |= codes[:, column] << np.uint8(bits * (place // 16))
    return packed


def _pack_planes(codes: NDArray, bits: int) -> NDArray:
    """Column by column: lower bits in fields of 16 bytes, then upper bits, of 64 columns or of 32."""
    columns, low = (32, 4) if bits == 5 else (64, 4 if bits == 6 else 2)
    packed = np.zeros((codes.shape[0], codes.shape[1] * bits // 8), np.uint8)
    for column in range(codes.shape[1]):
        unit, place = divmod(column, columns)
        start, field = unit * columns * bits // 8, place // 16
        lower, upper = codes[:, column] & ((1 << low) - 1), codes[:, column] >> low
        per = 8 // low
        packed[:, start + field // per * 16 + place % 16] |= lower << np.uint8(low * (field % per))
        start += columns * low // 8
        if bits == 6:
            packed[:, start + place % 16] |= upper << np.uint8(2 * field)
        else:
            packed[:, start + place // 8] |= upper << np.uint8(place % 8)
    return packed
