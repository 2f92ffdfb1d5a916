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
    int6     uint8   (out, 6 in / 8)      scale * code + offset            offset -32 * scale if absent
    int5     uint8   (out, 5 in / 8)      scale * code + offset            offset -16 * scale if absent
    int3     uint8   (out, 3 in / 8)      scale * code + offset            offset -4 * scale if absent
    int2     uint8   (out, in / 4)        scale * code + offset            offset -2 * scale if absent

int4: 32 weights take 16 bytes; byte j holds weight j in its low and weight j + 16 in its high four
bits (so GGUF's Q4_0 and Q4_1 nibbles are copied as they are). ternary: 64 weights take 16 bytes;
byte j holds weights j, j + 16, j + 32, j + 48, lowest bits first; int2 likewise. int6, int5, int3:
two planes, see ``formats/codes.py``. Scales and offsets are float16 or float32 of shape
(out, in / group_size): float16 where that is exact. ``formats/kinds.py`` is this table for programs; what
follows here is the same for every kind.

Scales of GGUF's K types have two levels: they are whole multiples ("steps") of a float16 that 256
weights share. Then ``scales`` are int8 steps, ``super_scales`` float16 (out, in / 256), and a scale is
their product in float32, which is exact; offsets likewise, by ``super_offsets``. Steps of 4 bits lie
in one uint8 array, those of scales in its low, those of offsets in its high four bits: no ``offsets`` then.

That is the layout "rows", in which files are read. Kernels may like another better, and then
``OpTable.prepare`` writes it once, at load. In "panels" 16 rows stand side by side, the last panel
filled up with zeros: codes (panels, chunks, 64), of which bytes 4 r to 4 r + 3 belong to row r of
the panel; scales and offsets (panels, in / group_size, 16), those that 256 weights share (panels,
in / 256, 16). The four bytes hold

    int8     columns 4 t + b of chunk t: byte b
    int4     columns 8 t + b in low, 8 t + 4 + b in high four bits of byte b
    ternary  columns 16 t + 4 f + b in bits 2 f and 2 f + 1 of byte b; int2 likewise

Two planes lie side by side, in units: int6 16 columns as two chunks like int4's and one like ternary's;
int5 32 columns as four like int4's, and one chunk that has bit 4 of columns 4 f + b in bit f of byte b;
int3 32 columns as two like ternary's and such a one, of bit 2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.kinds import WeightKind, kind_of

__all__ = [
    "PARTS",
    "SUPER",
    "BlockSpec",
    "Layout",
    "PackedTensor",
    "QuantSpec",
    "ScaleForm",
    "group_sizes",
    "layout_problem",
    "packed_nbytes",
    "packed_shapes",
    "scale_types",
]

Layout = Literal["rows", "panels"]
ScaleForm = Literal["f16", "f32", "steps", "half steps"]
PARTS = ("codes", "scales", "offsets", "super_scales", "super_offsets")  # arrays of a matrix
SUPER = 256  # weights that share what steps are multiples of

PANEL_ROWS = 16
PANEL_CHUNK = 4  # bytes of a row that lie together in a panel

_SCALE_BITS: dict[ScaleForm, int] = {"f16": 16, "f32": 32, "steps": 8, "half steps": 4}


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
                f"a group of {self.group_size} is not a positive multiple of {multiple} ({self.kind})"
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


def group_sizes(kind: str, widths: Collection[int]) -> list[int]:
    """Usual sizes of groups in which rows of all ``widths`` can be rounded to ``kind``."""
    usual = [size for size in (32, 64, 128) if size % kind_of(kind).group == 0]
    specs = [QuantSpec(kind=kind, group_size=size) for size in usual]
    return [spec.group_size for spec in specs if all(spec.fits(width) for width in widths)]


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
    super_scales: NDArray | None = None
    super_offsets: NDArray | None = None
    layout: Layout = "rows"
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.spec.fits(self.shape[1]):
            raise ConfigError(f"{self.shape[1]} columns do not fit weight format {self.spec}")
        wrong = layout_problem(self.spec, self.shape, self.layout, self.parts)
        assert wrong is None, wrong

    @property
    def parts(self) -> dict[str, Any]:
        """The arrays that there are, by name."""
        found = {part: getattr(self, part) for part in PARTS}
        return {part: array for part, array in found.items() if array is not None}

    @property
    def shifted(self) -> bool:
        """Whether offsets come after the products of scales and codes."""
        return self.offsets is not None or self.super_offsets is not None

    @property
    def two_level(self) -> bool:
        """Whether scales are steps."""
        return self.super_scales is not None

    def scale_floats(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Scales (rows, groups) of some rows, of a grouped kind in layout "rows"."""
        found = self._floats("scales", rows)
        assert found is not None
        return found

    def offset_floats(self, rows: slice = slice(None)) -> NDArray[np.float32] | None:
        """Offsets likewise; None where there are none."""
        return self._floats("offsets", rows)

    def levels(self, part: str, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Of "scales" or "offsets" of two levels: steps (rows, groups), and what they are multiples of (rows,
        columns / 256); None: one level, or no offsets."""
        supers = getattr(self, f"super_{part}")
        if supers is None:
            return None
        assert self.layout == "rows" and self.scales is not None
        if self.scales.dtype == np.int8:
            steps = getattr(self, part)[rows]
        else:
            steps = self.scales[rows] & 15 if part == "scales" else self.scales[rows] >> 4
        return steps.astype(np.float32), supers[rows].astype(np.float32)

    def _floats(self, part: str, rows: slice) -> NDArray[np.float32] | None:
        found, stored = self.levels(part, rows), getattr(self, part)
        if found is None:
            assert self.layout == "rows"
            return None if stored is None else stored[rows].astype(np.float32)
        steps, supers = found
        # In float32 their product is exact.
        return (steps.reshape(*supers.shape, -1) * supers[..., None]).reshape(steps.shape)

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
        return sum(array.nbytes for array in self.parts.values())


def packed_shapes(shape: tuple[int, int], spec: QuantSpec, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that a matrix of ``shape`` may have, by name."""
    rows, width = shape[0], spec.row.width(shape[1])
    groups = shape[1] // spec.group_size if spec.group_size else 0
    counts = {"scales": groups, "offsets": groups, "super_scales": shape[1] // SUPER}
    counts["super_offsets"] = counts["super_scales"]
    found: dict[str, tuple[int, ...]] = {"codes": (rows, width)}
    if layout == "rows":
        return found | {part: (rows, count) for part, count in counts.items()}
    panels = -(-rows // PANEL_ROWS)
    found["codes"] = (panels, width // PANEL_CHUNK, PANEL_ROWS * PANEL_CHUNK)
    return found | {part: (panels, count, PANEL_ROWS) for part, count in counts.items()}


def layout_problem(
    spec: QuantSpec, shape: tuple[int, int], layout: Layout, parts: Mapping[str, NDArray]
) -> str | None:
    """What is wrong with the arrays of a PackedTensor, by name; None: nothing."""
    row = spec.row
    if layout == "panels" and (not row.panels or spec.group_size % row.panels):
        return f"{spec} has no panels"
    if parts["codes"].dtype != row.codes:
        return f"codes are {parts['codes'].dtype}, not {row.codes}"
    if ("scales" in parts) != bool(spec.group_size):
        return f"{spec} comes {'with' if 'scales' in parts else 'without'} scales"
    shapes = packed_shapes(shape, spec, layout)
    for part, array in parts.items():
        if (part != "codes" and not spec.group_size) or array.shape != shapes[part]:
            return f"{part} of {spec} have shape {array.shape}, the matrix {shape}"
        if not array.flags.c_contiguous:
            return f"{part} are not one after another"
    types = {part: array.dtype for part, array in parts.items() if part != "codes"}
    return _scales_problem(spec, shape, types)


def _scales_problem(
    spec: QuantSpec, shape: tuple[int, int], types: Mapping[str, np.dtype[Any]]
) -> str | None:
    """What is wrong with the types of scales and offsets."""
    if not types.keys() & {"super_scales", "super_offsets"}:
        wrong = [one for one in types.values() if one not in (np.float16, np.float32)]
        return f"scales or offsets are {wrong[0]}" if wrong else None
    if shape[1] % SUPER or SUPER % spec.group_size:
        return f"{spec} in {shape[1]} columns has no scales of two levels"
    forms: tuple[ScaleForm, ...] = ("steps", "half steps")
    if not any(types == scale_types(form, offsets) for form in forms for offsets in (False, True)):
        return "scales of two levels are not int8 or uint8 with float16"
    return None


def scale_types(form: ScaleForm, offsets: bool) -> dict[str, np.dtype[Any]]:
    """The types of scales and offsets in a form, by the names of their arrays."""
    if form in ("f16", "f32"):
        return dict.fromkeys(("scales", "offsets")[: 1 + offsets], np.dtype(form.replace("f", "float")))
    steps = np.dtype(np.int8 if form == "steps" else np.uint8)
    supers = dict.fromkeys(("super_scales", "super_offsets")[: 1 + offsets], np.dtype(np.float16))
    return dict.fromkeys(("scales", "offsets")[: 1 + (offsets and form == "steps")], steps) | supers


def packed_nbytes(
    shape: tuple[int, int], spec: QuantSpec, *, scales: ScaleForm = "f16", offsets: bool = False
) -> int:
    """Bytes that a matrix of ``shape`` takes in ``spec``, without making it."""
    count = shape[0] * shape[1]
    codes = count * spec.row.bits // 8
    if not spec.group_size:
        return codes
    supers = 2 * count // SUPER if "steps" in scales else 0
    each = count // spec.group_size * _SCALE_BITS[scales] // 8 + supers
    return codes + each * (2 if offsets else 1)
