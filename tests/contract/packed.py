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
]


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
    low, high, dtype = {"int8": (-128, 128, np.int8), "int4": (0, 16, np.uint8), "ternary": (0, 3, np.uint8)}[
        kind
    ]
    codes = rng.integers(low, high, (rows, columns), dtype=dtype)
    shape = (rows, columns // group)
    scales = rng.uniform(0.5, 1.5, shape).astype(scale_type)
    offsets = rng.uniform(-4, 4, shape).astype(scale_type) if with_offsets else None
    s = np.repeat(scales.astype(np.float64), group, axis=1)
    values = s * codes
    if offsets is not None:
        values += np.repeat(offsets.astype(np.float64), group, axis=1)
    elif kind != "int8":
        values -= s * (8 if kind == "int4" else 1)
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
    per, bits = (2, 4) if kind == "int4" else (4, 2)
    packed = np.zeros((codes.shape[0], codes.shape[1] // per), np.uint8)
    for column in range(codes.shape[1]):
        unit, place = divmod(column, 16 * per)
        packed[:, unit * 16 + place % 16] |= codes[:, column] << np.uint8(bits * (place // 16))
    return packed
