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

That is the layout "rows", in which files are read. Kernels may like another better, and then
``OpTable.prepare`` writes it once, at load. In "panels" 16 rows stand side by side, the last panel
filled up with zeros: codes (panels, chunks, 64), of which bytes 4 r to 4 r + 3 belong to row r of
the panel; scales and offsets (panels, in / group_size, 16). The four bytes hold

    int8     columns 4 t + b of chunk t: byte b
    int4     columns 8 t + b in low, 8 t + 4 + b in high four bits of byte b
    ternary  columns 16 t + 4 f + b in bits 2 f and 2 f + 1 of byte b
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import ConfigError

Kind = Literal["f32", "f16", "bf16", "int8", "int4", "ternary"]
Layout = Literal["rows", "panels"]

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
PANEL_ROWS = 16
PANEL_CHUNK = 4  # bytes of a row that lie together in a panel
PANEL_GROUP = 32  # group sizes in panels are multiples of this
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
    """A weight matrix of shape (out, in) in one of the layouts above.

    Arrays may be read-only views into a mapped file; they are contiguous. ``native`` is where op
    tables keep what they make of the arrays, by their name.
    """

    spec: QuantSpec
    shape: tuple[int, int]
    codes: NDArray
    scales: NDArray | None = None
    offsets: NDArray | None = None
    layout: Layout = "rows"
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        cols, kind, group = self.shape[1], self.spec.kind, self.spec.group_size
        if cols % ROW_MULTIPLE[kind] or (group and cols % group):
            raise ConfigError(f"{cols} columns do not fit weight format {self.spec}")
        wrong = layout_problem(self.spec, self.shape, self.layout, self.codes, self.scales, self.offsets)
        assert wrong is None, wrong

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)


def packed_shapes(
    shape: tuple[int, int], spec: QuantSpec, layout: Layout
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the codes, and of scales and offsets, of a matrix of ``shape``."""
    rows, width = shape[0], shape[1] // WEIGHTS_PER_CODE[spec.kind]
    groups = shape[1] // spec.group_size if spec.group_size else 0
    if layout == "rows":
        return (rows, width), (rows, groups)
    panels = -(-rows // PANEL_ROWS)
    return (panels, width // PANEL_CHUNK, PANEL_ROWS * PANEL_CHUNK), (panels, groups, PANEL_ROWS)


def layout_problem(
    spec: QuantSpec,
    shape: tuple[int, int],
    layout: Layout,
    codes: NDArray,
    scales: NDArray | None,
    offsets: NDArray | None,
) -> str | None:
    """What is wrong with the arrays of a PackedTensor; None: nothing."""
    if layout == "panels" and (not spec.group_size or spec.group_size % PANEL_GROUP):
        return f"{spec} has no panels"
    shapes = packed_shapes(shape, spec, layout)
    if codes.dtype != CODE_DTYPES[spec.kind]:
        return f"codes are {codes.dtype}, not {CODE_DTYPES[spec.kind]}"
    if codes.shape != shapes[0] or not codes.flags.c_contiguous:
        return f"codes of {spec} have shape {codes.shape}, the matrix {shape}"
    if (scales is not None) != bool(spec.group_size):
        return f"{spec} comes {'with' if scales is not None else 'without'} scales"
    for part in (scales, offsets):
        if part is None:
            continue
        if not spec.group_size or part.shape != shapes[1] or not part.flags.c_contiguous:
            return f"scales or offsets of {spec} have shape {part.shape}, the matrix {shape}"
        if part.dtype not in (np.float16, np.float32):
            return f"scales or offsets are {part.dtype}"
    return None


def packed_nbytes(
    shape: tuple[int, int], spec: QuantSpec, *, scale_bytes: int = 2, offsets: bool = False
) -> int:
    """Bytes that a matrix of ``shape`` takes in ``spec``, without making it."""
    count = shape[0] * shape[1]
    codes = count * CODE_DTYPES[spec.kind].itemsize // WEIGHTS_PER_CODE[spec.kind]
    groups = count // spec.group_size if spec.group_size else 0
    return codes + groups * scale_bytes * (2 if offsets else 1)
