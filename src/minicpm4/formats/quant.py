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
or float32 of shape (out, in / group_size): float16 where that is exact. ``formats/kinds.py`` is this
table for programs; what follows here is the same for every kind.

That is the layout "rows", in which files are read. Kernels may like another better, and then
``OpTable.prepare`` writes it once, at load. In "panels" 16 rows stand side by side, the last panel
filled up with zeros: codes (panels, chunks, 64), of which bytes 4 r to 4 r + 3 belong to row r of
the panel; scales and offsets (panels, in / group_size, 16). The four bytes hold

    int8     columns 4 t + b of chunk t: byte b
    int4     columns 8 t + b in low, 8 t + 4 + b in high four bits of byte b
    ternary  columns 16 t + 4 f + b in bits 2 f and 2 f + 1 of byte b
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.kinds import WeightKind, kind_of

__all__ = [
    "PANEL_GROUP",
    "PARTS",
    "BlockSpec",
    "Layout",
    "PackedTensor",
    "QuantSpec",
    "layout_problem",
    "packed_nbytes",
    "packed_shapes",
]

Layout = Literal["rows", "panels"]
PARTS = ("codes", "scales", "offsets")  # arrays of a matrix

PANEL_ROWS = 16
PANEL_CHUNK = 4  # bytes of a row that lie together in a panel
PANEL_GROUP = 32  # group sizes in panels are multiples of this


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantSpec:
    """A weight format: a kind of ``formats/kinds.py``, and a group size, which counts weights and is 0 for
    float kinds. Raises ConfigError."""

    kind: str
    group_size: int = 0

    def __post_init__(self) -> None:
        multiple = self.row.group
        if not multiple and self.group_size:
            raise ConfigError(f"weight format {self.kind} has no groups, yet group_size = {self.group_size}")
        if multiple and (self.group_size < multiple or self.group_size % multiple):
            raise ConfigError(
                f"group_size = {self.group_size} is not a positive multiple of {multiple} ({self.kind})"
            )

    @property
    def row(self) -> WeightKind:
        """The row of the table of kinds."""
        return kind_of(self.kind)

    def fits(self, columns: int) -> bool:
        """Whether rows of ``columns`` weights can be held in it."""
        return columns % self.row.columns == 0 and not (self.group_size and columns % self.group_size)

    def __str__(self) -> str:
        return f"{self.kind}-g{self.group_size}" if self.group_size else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec(QuantSpec):
    """Weights whose scale is shared by ``rows`` rows times ``group_size`` columns (128 x 128 in BitCPM4).

    The last block has the rows that are left. Packed it is the same kind in groups of ``group_size``. Raises
    ConfigError for kinds that have no blocks.
    """

    rows: int = 128

    def __post_init__(self) -> None:
        QuantSpec.__post_init__(self)
        if not self.row.blocks or self.rows < 1:
            raise ConfigError(
                f"{self.rows} rows of {self.kind} weights cannot share a scale",
                "blocks are for ternary weights; use groups along a row",
            )

    def __str__(self) -> str:
        return f"{self.kind}-b{self.rows}x{self.group_size}"


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
        if not self.spec.fits(self.shape[1]):
            raise ConfigError(f"{self.shape[1]} columns do not fit weight format {self.spec}")
        wrong = layout_problem(self.spec, self.shape, self.layout, self.codes, self.scales, self.offsets)
        assert wrong is None, wrong

    def refill(self, new: PackedTensor, own: Callable[[PackedTensor], PackedTensor]) -> None:
        """Take over the weights of ``new``: into the same arrays, or, where these are read-only views, into
        arrays that ``own`` makes of them; what hangs on ``native`` is then of no use any more. Raises
        CheckpointError where formats differ."""
        before, after = (self.spec, self.shape, self.layout), (new.spec, new.shape, new.layout)
        pairs = [(getattr(self, part), getattr(new, part)) for part in PARTS]
        same = all(
            (a is None) == (b is None) and (a is None or np.can_cast(b.dtype, a.dtype)) for a, b in pairs
        )
        if before != after or not same:
            raise CheckpointError(
                f"weights held as {self.spec} {self.shape} cannot become {new.spec} {new.shape}"
                + ("" if before != after else " with scales or offsets of other types"),
                "load the model anew",
            )
        if self.codes.flags.writeable:
            for array, values in pairs:
                if array is not None:
                    array[...] = values
            return
        placed = own(new)
        for part in PARTS:
            object.__setattr__(self, part, getattr(placed, part))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return sum(array.nbytes for part in PARTS if (array := getattr(self, part)) is not None)


def packed_shapes(
    shape: tuple[int, int], spec: QuantSpec, layout: Layout
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the codes, and of scales and offsets, of a matrix of ``shape``."""
    rows, width = shape[0], spec.row.width(shape[1])
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
    row = spec.row
    if layout == "panels" and (not row.panels or spec.group_size % PANEL_GROUP):
        return f"{spec} has no panels"
    shapes = packed_shapes(shape, spec, layout)
    if codes.dtype != row.codes:
        return f"codes are {codes.dtype}, not {row.codes}"
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
    codes = count * spec.row.bits // 8
    groups = count // spec.group_size if spec.group_size else 0
    return codes + groups * scale_bytes * (2 if offsets else 1)
