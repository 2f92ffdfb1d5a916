"""The table of weight kinds: all that is known of one, but for the kernels that multiply by it.

Packing, rounding, readers, the loader, training and the random models read their rows; none has a list of
its own. A new kind is a row here, what it needs of ``formats/codes.py`` (how codes lie in bytes) and
``formats/rounding.py`` (which codes a group of weights gets), and its kernels in each table of ops: the NumPy
truth needs none, since it multiplies by unpacked weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.strict import suggest
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats import rounding
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.codes import (
    as_int8,
    pack_fives,
    pack_nibbles,
    pack_pairs,
    pack_sixes,
    pack_threes,
    same,
    unpack_fives,
    unpack_nibbles,
    unpack_pairs,
    unpack_sixes,
    unpack_threes,
)

__all__ = [
    "KINDS",
    "WeightKind",
    "float_kinds",
    "grouped_kinds",
    "kind_of",
    "rounded_kinds",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightKind:
    """One kind. A float kind has no groups: its codes are the weights.

    ``bits``: of a code; ``codes``: the type in which they lie in a row, of which a row holds ``width``
    elements; ``columns``: rows are multiples of so many weights, so that no packed unit straddles two.
    ``unpack`` gives one code a weight (rows, columns), of float kinds the weights as float32; ``pack`` is its
    inverse.

    ``group``: group sizes are multiples of this. A weight is scale * number, with offsets scale * number +
    offset. The number is that of ``levels`` at its code; where there are none it is the code, without offsets
    the code less ``zero``. ``least`` and ``most`` are the numbers that rounding gives; files may hold one
    less. ``round``: see formats/rounding.py.

    ``groups``: sizes to choose from where none is asked for. ``searched``: sizes in which a matrix of floats
    may prove to be of this kind, tried in this order, kinds of fewer bits first. ``blocks``: whether rows of
    groups may share a scale. ``panels``: group sizes in that layout (formats/quant.py) are multiples of this,
    0: there is none. ``wider``: the kind that holds the same numbers for who has no kernels for these.

    Of float kinds, ``dtype``: what NumPy, torch and config.json call the type; ``file``: what safetensors and
    GGUF call it; ``infinity``: its bits there.
    """

    name: str
    bits: int
    codes: np.dtype[Any]
    pack: Callable[[NDArray], NDArray]
    unpack: Callable[[NDArray], NDArray]
    columns: int = 1
    group: int = 0
    zero: int = 0
    levels: tuple[float, ...] = ()
    least: float = 0.0
    most: float = 0.0
    round: rounding.Rounding | None = None
    groups: tuple[int, ...] = ()
    searched: tuple[int, ...] = ()
    blocks: bool = False
    panels: int = 0
    wider: str = ""
    dtype: str = ""
    file: str = ""
    infinity: int = 0

    @property
    def count(self) -> int:
        """How many numbers rounding gives."""
        return len(self.levels) or int(self.most - self.least) + 1

    @property
    def reach(self) -> float:
        """The largest magnitude of them."""
        return max(-self.least, self.most)

    def rounded(self, xp: Any, groups: Any) -> tuple[Any, Any]:
        """Numbers and scales of ``groups``: see ``rounding.Rounding``."""
        assert self.round is not None, f"{self.name} weights cannot be rounded to"
        return self.round(xp, groups, self.least, self.most)

    def width(self, columns: int) -> int:
        """Elements of ``codes`` that a row of ``columns`` weights takes."""
        return columns * self.bits // (8 * self.codes.itemsize)

    def numbers(self, found: NDArray, shifted: bool) -> NDArray[np.float32]:
        """Numbers (float32, an array of its own or that of ``found``) that scales multiply, of what
        ``unpack`` gave; ``shifted``: offsets come after."""
        if self.levels:
            return np.take(np.array(self.levels, np.float32), found)
        values = found.astype(np.float32, copy=False)
        if self.zero and not shifted:
            values -= self.zero
        return values

    def codes_of(self, numbers: NDArray) -> NDArray:
        """Codes of float32 ``numbers``, such as ``round`` gives: ``pack`` takes them."""
        if self.levels:
            return np.searchsorted(np.array(self.levels, np.float32), numbers).astype(np.uint8)
        return (numbers + self.zero).astype(np.uint8) if self.zero else numbers.astype(self.codes)


def _f16(weights: NDArray) -> NDArray:
    """Raises CheckpointError where one is too large."""
    if weights.size and (most := float(np.abs(weights).max())) > rounding.F16_MAX:
        raise CheckpointError(f"a weight of magnitude {most:g} is too large for f16", "use bf16 or f32")
    return weights.astype(np.float16)


def _floats(found: NDArray) -> NDArray:
    return found.astype(np.float32)


_ROWS = (
    WeightKind(
        name="f32",
        bits=32,
        codes=np.dtype(np.float32),
        pack=_floats,
        unpack=_floats,
        dtype="float32",
        file="F32",
        infinity=0x7F800000,
    ),
    WeightKind(
        name="f16",
        bits=16,
        codes=np.dtype(np.float16),
        pack=_f16,
        unpack=_floats,
        dtype="float16",
        file="F16",
        infinity=0x7C00,
    ),
    WeightKind(
        name="bf16",
        bits=16,
        codes=np.dtype(np.uint16),
        pack=f32_to_bf16,
        unpack=bf16_to_f32,
        dtype="bfloat16",
        file="BF16",
        infinity=0x7F80,
    ),
    WeightKind(
        name="int8",
        bits=8,
        codes=np.dtype(np.int8),
        pack=as_int8,
        unpack=same,
        columns=16,
        group=16,
        least=-127,
        most=127,
        round=rounding.int8,
        groups=(64, 32),
        searched=(256, 192, 128, 96, 64, 32),
        panels=16,
    ),
    WeightKind(
        name="int4",
        bits=4,
        codes=np.dtype(np.uint8),
        pack=pack_nibbles,
        unpack=unpack_nibbles,
        columns=32,
        group=32,
        zero=8,
        least=-8,
        most=7,
        round=rounding.int4,
        groups=(64, 32),
        searched=(256, 192, 128, 96, 64, 32),
        panels=16,
    ),
    # Of GGUF's types: files are read into these, nothing is rounded to them.
    WeightKind(
        name="int6",
        bits=6,
        codes=np.dtype(np.uint8),
        pack=pack_sixes,
        unpack=unpack_sixes,
        columns=64,
        group=16,
        zero=32,
        least=-32,
        most=31,
        panels=16,
        wider="int8",
    ),
    WeightKind(
        name="int5",
        bits=5,
        codes=np.dtype(np.uint8),
        pack=pack_fives,
        unpack=unpack_fives,
        columns=32,
        group=32,
        zero=16,
        least=-16,
        most=15,
        panels=16,
        wider="int8",
    ),
    WeightKind(
        name="int3",
        bits=3,
        codes=np.dtype(np.uint8),
        pack=pack_threes,
        unpack=unpack_threes,
        columns=64,
        group=16,
        zero=4,
        least=-4,
        most=3,
        panels=16,
        wider="int8",
    ),
    WeightKind(
        name="int2",
        bits=2,
        codes=np.dtype(np.uint8),
        pack=pack_pairs,
        unpack=unpack_pairs,
        columns=64,
        group=16,
        zero=2,
        least=-2,
        most=1,
        panels=16,
        wider="int8",
    ),
    WeightKind(
        name="ternary",
        bits=2,
        codes=np.dtype(np.uint8),
        pack=pack_pairs,
        unpack=unpack_pairs,
        columns=64,
        group=32,
        zero=1,
        least=-1,
        most=1,
        round=rounding.ternary,
        groups=(64, 32),
        searched=(256, 128, 64, 32),
        blocks=True,
        panels=16,
    ),
)

KINDS: dict[str, WeightKind] = {row.name: row for row in _ROWS}


def kind_of(name: str) -> WeightKind:
    """The row of ``name``. Raises ConfigError."""
    if name not in KINDS:
        raise ConfigError(f"weight format {name!r} is unknown", suggest(str(name), list(KINDS)))
    return KINDS[name]


def float_kinds() -> dict[str, WeightKind]:
    """Kinds whose codes are the weights."""
    return {name: row for name, row in KINDS.items() if not row.group}


def grouped_kinds() -> dict[str, WeightKind]:
    """Kinds whose weights share scales in groups."""
    return {name: row for name, row in KINDS.items() if row.group}


def rounded_kinds() -> dict[str, WeightKind]:
    """Grouped kinds that weights can be rounded to; the others are only read."""
    return {name: row for name, row in grouped_kinds().items() if row.round is not None}
