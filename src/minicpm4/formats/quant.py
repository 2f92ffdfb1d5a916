"""How one weight matrix is stored in memory: the value that every kernel reads.

A linear layer computes ``y = x @ W.T``; W has shape (out, in) and is stored row by row. Along a
row, weights are cut into groups of ``group_size`` that share a scale, and where there is one an
offset:

    kind     codes                        weight
    f32      float32 (out, in)            code
    f16      float16 (out, in)            code
    bf16     uint16  (out, in), raw bits  code
    int8     int8    (out, in)            scale * code + offset            offset 0 if absent
    int4     uint8   (out, in / 2)        scale * code + offset            offset -8 * scale if absent
    ternary  uint8   (out, in / 4)        scale * (code - 1)               code in 0, 1, 2

int4: 32 weights take 16 bytes; byte j holds weight j in its low and weight j + 16 in its high four
bits (so GGUF's Q4_0 and Q4_1 nibbles are copied as they are). ternary: 64 weights take 16 bytes;
byte j holds weights j, j + 16, j + 32, j + 48, lowest bits first. Scales and offsets are float16
or float32 of shape (out, in / group_size): float16 where that is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import ConfigError

Kind = Literal["f32", "f16", "bf16", "int8", "int4", "ternary"]

FLOAT_KINDS = ("f32", "f16", "bf16")
GROUPED_KINDS = ("int8", "int4", "ternary")
CODE_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),
    "ternary": np.dtype(np.uint8),
}
WEIGHTS_PER_CODE = {"f32": 1, "f16": 1, "bf16": 1, "int8": 1, "int4": 2, "ternary": 4}
# A row must be a multiple of this, so that no packed unit straddles two rows.
ROW_MULTIPLE = {"f32": 1, "f16": 1, "bf16": 1, "int8": 16, "int4": 32, "ternary": 64}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantSpec:
    """A weight format. ``group_size`` counts weights and is 0 for float kinds."""

    kind: Kind
    group_size: int = 0

    def __post_init__(self) -> None:
        grouped = self.kind in GROUPED_KINDS
        if self.kind not in CODE_DTYPES:
            raise ConfigError(f"weight format {self.kind!r} is unknown", "use " + ", ".join(CODE_DTYPES))
        if grouped and (self.group_size < 16 or self.group_size % 16):
            raise ConfigError(f"group_size = {self.group_size} is not a positive multiple of 16")
        if self.kind in ("int4", "ternary") and self.group_size % 32:
            raise ConfigError(f"group_size = {self.group_size} is not a multiple of 32 ({self.kind})")
        if not grouped and self.group_size:
            raise ConfigError(f"weight format {self.kind} has no groups, yet group_size = {self.group_size}")

    def __str__(self) -> str:
        return f"{self.kind}-g{self.group_size}" if self.group_size else self.kind


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedTensor:
    """A weight matrix of shape (out, in) in the layout of this module's table.

    Arrays may be read-only views into a mapped file; rows are contiguous.
    """

    spec: QuantSpec
    shape: tuple[int, int]
    codes: NDArray
    scales: NDArray | None = None
    offsets: NDArray | None = None

    def __post_init__(self) -> None:
        rows, cols = self.shape
        kind, group = self.spec.kind, self.spec.group_size
        if cols % ROW_MULTIPLE[kind] or (group and cols % group):
            raise ConfigError(f"{cols} columns do not fit weight format {self.spec}")
        assert self.codes.dtype == CODE_DTYPES[kind], (self.codes.dtype, kind)
        assert self.codes.shape == (rows, cols // WEIGHTS_PER_CODE[kind]), self.codes.shape
        assert self.codes.flags.c_contiguous
        for part in (self.scales, self.offsets):
            if part is not None:
                assert part.shape == (rows, cols // group) and part.flags.c_contiguous
                assert part.dtype in (np.float16, np.float32)
        assert (self.scales is not None) == bool(group)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)


def packed_nbytes(
    shape: tuple[int, int], spec: QuantSpec, *, scale_bytes: int = 2, offsets: bool = False
) -> int:
    """Bytes that a matrix of ``shape`` takes in ``spec``, without making it."""
    count = shape[0] * shape[1]
    codes = count * CODE_DTYPES[spec.kind].itemsize // WEIGHTS_PER_CODE[spec.kind]
    groups = count // spec.group_size if spec.group_size else 0
    return codes + groups * scale_bytes * (2 if offsets else 1)
