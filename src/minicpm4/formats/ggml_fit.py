"""Which GGML type a matrix goes into, and the matrix as that type can hold it.

A type holds a matrix as it is where its blocks divide the groups, its numbers reach as far, and its scales
lie where those of the matrix do (``same_in``). What it cannot hold is rounded to nearest, once: scales first
come to lie where the type has them, then every weight gets the nearest number (``rounded_to``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.strict import suggest
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.ggml_types import GGML_TYPES, GgmlType, encoded
from minicpm4.formats.kinds import WeightKind
from minicpm4.formats.names import pattern_of
from minicpm4.formats.packing import exact_float, repack, rounded_anew, row_slices, unpack_rows
from minicpm4.formats.quant import PARTS, PackedTensor, QuantSpec

__all__ = [
    "check_columns",
    "distance",
    "own_type",
    "own_types",
    "rounded_to",
    "same_in",
    "same_values",
    "type_id",
]

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbers:
    """How a type's weights are rounded to: numbers from 0 (with offsets) or ``least`` to ``most``; scales are
    multiples, up to ``steps``, of one float16 for each block, 0: float16 themselves."""

    least: int
    most: int
    steps: int = 0


# Types that the rounding of their format does not fit; others are rounded as ``pack_from_float`` does.
_NUMBERS = {
    "Q4_1": _Numbers(least=0, most=15),
    "Q5_0": _Numbers(least=-16, most=15),
    "Q5_1": _Numbers(least=0, most=31),
    "Q4_K": _Numbers(least=0, most=15, steps=63),
    "Q5_K": _Numbers(least=0, most=31, steps=63),
    "Q6_K": _Numbers(least=-32, most=31, steps=127),
}
# Which types may hold a matrix of each kind as it is, those of fewer bits first; TQ1_0, of fewer bits than
# TQ2_0, must be asked for: who reads it takes five weights out of every byte by multiplications.
_OF_KIND = {
    "f32": ("F32",),
    "f16": ("F16",),
    "bf16": ("BF16",),
    "ternary": ("TQ2_0", "Q2_0", "Q4_0"),
    "int4": ("Q4_0", "Q4_K", "Q4_1"),
    "int8": ("Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0"),
    "int6": ("Q6_K", "Q8_0"),
    "int5": ("Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0"),
    "int3": ("Q6_K", "Q8_0"),
    "int2": ("Q6_K", "Q8_0"),
}


def type_id(name: str) -> int:
    """The number of the type that users call ``name`` ("q4_0"). Raises ConfigError."""
    known = {
        kind.name.lower(): number for number, kind in GGML_TYPES.items() if kind.writable and not kind.stored
    }
    if name.lower() not in known:
        raise ConfigError(f"{name!r} is no GGML type that is written", suggest(name.lower(), list(known)))
    return known[name.lower()]


def check_columns(columns: Mapping[str, int], kind: GgmlType) -> None:
    """Raise ConfigError where rows of matrices, which have so many ``columns``, do not fill blocks of a type.
    It names one, and what makes all of them fit."""
    wrong = {name: width for name, width in columns.items() if width % kind.block}
    if wrong:
        name, width = next(iter(wrong.items()))
        all_of, alone = ("q4_0 and q8_0 take multiples of 32", "q8_0")
        if any(width % 32 for width in wrong.values()):
            all_of, alone = ("bf16 takes any", "bf16")
        raise ConfigError(
            f"{name} has rows of {width} weights, which do not fill blocks of {kind.block} ({kind.name})",
            f"{kind.name} takes multiples of {kind.block}: choose another type for all ({all_of}), or for "
            f"those that it does not fit, --gguf-type '{pattern_of(wrong)}={alone}'",
        )


def own_types(spec: QuantSpec, columns: int, *, offsets: bool = False) -> list[int]:
    """Types that may hold a matrix of ``spec`` as it is: whether one does depends on its numbers and scales,
    too."""
    found = []
    by_name = {kind.name: number for number, kind in GGML_TYPES.items()}
    for name in _OF_KIND[spec.kind]:
        if name in by_name and _fits(GGML_TYPES[by_name[name]], spec, columns, offsets):
            found.append(by_name[name])
    return found


def own_type(tensor: PackedTensor) -> int | None:
    """The type that holds a matrix as it is, of floats the smallest; None where none does."""
    if not tensor.spec.row.group:
        return type_id(exact_float(tensor.codes) if tensor.spec.kind == "f32" else tensor.spec.kind)
    types = own_types(tensor.spec, tensor.shape[1], offsets=tensor.shifted)
    return next((number for number in types if same_in(tensor, GGML_TYPES[number]) is not None), None)


def _fits(kind: GgmlType, spec: QuantSpec, columns: int, offsets: bool) -> bool:
    group = kind.spec.group_size
    divides = columns % kind.block == 0 and spec.group_size % group == 0 if group else True
    return divides and (kind.offsets or not offsets)


def same_in(tensor: PackedTensor, kind: GgmlType) -> PackedTensor | None:
    """``tensor`` in the format of a type, every value as it was; None where the type cannot hold it."""
    grouped = tensor.spec.row.group
    if kind.spec.row.group and not (grouped and _fits(kind, tensor.spec, tensor.shape[1], tensor.shifted)):
        return None
    try:
        found = _regrouped(tensor, kind) if kind.spec.row.group else repack(tensor, kind.spec)
        exact = same_values(_again(found, kind) if kind.spec.row.group else found, tensor)
    except CheckpointError:  # a number or a scale that the type has no room for
        return None
    return found if exact else None


def _regrouped(tensor: PackedTensor, kind: GgmlType) -> PackedTensor:
    """The same matrix in the smaller groups of a type, and as its kind has numbers. Raises
    CheckpointError."""
    own, row = tensor.spec.row, kind.spec.row
    codes = np.empty((tensor.shape[0], row.width(tensor.shape[1])), row.codes)
    for part in row_slices(*tensor.shape):
        found = own.unpack(tensor.codes[part])
        if row is not own:
            found = _codes_in(row, own.numbers(found, tensor.shifted), tensor.shifted)
        codes[part] = row.pack(found)
    times = tensor.spec.group_size // kind.spec.group_size

    parts = {one: getattr(tensor, one) for one in PARTS[1:]}
    if times > 1:
        parts |= {one: np.repeat(parts[one], times, axis=1) for one in PARTS[1:3] if parts[one] is not None}
    return PackedTensor(spec=kind.spec, shape=tensor.shape, codes=codes, **parts)


def _codes_in(row: WeightKind, numbers: Floats, shifted: bool) -> NDArray:
    """Codes of whole ``numbers`` in a kind. Raises CheckpointError where it has none for one."""
    found = numbers if shifted else numbers + np.float32(row.zero)
    low = -128 if row.codes == np.int8 else 0
    if found.size and (found.min() < low or found.max() >= low + (1 << row.bits)):
        raise CheckpointError(f"numbers of {found.min():g} to {found.max():g} are no codes of {row.name}")
    return found.astype(row.codes)


def _again(tensor: PackedTensor, kind: GgmlType) -> PackedTensor:
    """A matrix as it is read from the blocks that it is written in. Raises CheckpointError."""
    assert kind.decode is not None
    raw = encoded(tensor, kind).reshape(tensor.shape[0], -1, kind.nbytes)
    parts: dict[str, Any] = kind.decode(raw)
    return PackedTensor(spec=kind.spec, shape=tensor.shape, **parts)


def same_values(one: PackedTensor, other: PackedTensor) -> bool:
    """Whether two matrices of one shape have the same weights, in whatever formats."""
    return all(
        np.array_equal(unpack_rows(one, part), unpack_rows(other, part)) for part in row_slices(*one.shape)
    )


def rounded_to(tensor: PackedTensor, kind: GgmlType) -> PackedTensor:
    """``tensor`` as a type can hold it, in its format: as it is where that can be, else rounded to nearest;
    where its codes fit, and only scales or offsets are not float16, these alone if that is nearer. Raises
    CheckpointError where weights are too large for the type, or not finite."""
    found = same_in(tensor, kind)
    if found is not None:
        return found
    anew, kept = _anew(tensor, kind), _kept_codes(tensor, kind)
    return anew if kept is None or distance(anew, tensor) < distance(kept, tensor) else kept


def _anew(tensor: PackedTensor, kind: GgmlType) -> PackedTensor:
    if kind.name in _NUMBERS:
        return _to_numbers(tensor, kind, _NUMBERS[kind.name])
    if kind.name == "Q2_0":  # of its four numbers three are written
        ternary = QuantSpec(kind="ternary", group_size=kind.spec.group_size)
        return _regrouped(rounded_anew(tensor, ternary), kind)
    return rounded_anew(tensor, kind.spec)  # of one in it, too: the type may lack its offsets or scales


def _kept_codes(tensor: PackedTensor, kind: GgmlType) -> PackedTensor | None:
    """The same codes, with scales and offsets as float16 has them; None where a type has no room for that."""
    fits = tensor.spec.row.group and _fits(kind, tensor.spec, tensor.shape[1], tensor.shifted)
    if not kind.spec.row.group or kind.scales != "f16" or not fits:
        return None
    try:
        found = _regrouped(tensor, kind)
        scales, offsets = (
            None if one is None else _half(one).astype(np.float16)
            for one in (found.scale_floats(), found.offset_floats())
        )
        found = PackedTensor(
            spec=found.spec, shape=found.shape, codes=found.codes, scales=scales, offsets=offsets
        )
        encoded(found, kind)  # raises where a code is out of range
    except CheckpointError:
        return None
    return found


def distance(found: PackedTensor, wanted: PackedTensor) -> float:
    """How far a matrix is from what it is to be, as a share of that: root of mean squares; 0: equal."""
    missed = size = 0.0
    for part in row_slices(*found.shape):
        values = unpack_rows(wanted, part)
        missed += float(np.square(unpack_rows(found, part) - values, dtype=np.float64).sum())
        size += float(np.square(values, dtype=np.float64).sum())
    return math.sqrt(missed / size) if missed else 0.0


def _to_numbers(tensor: PackedTensor, kind: GgmlType, numbers: _Numbers) -> PackedTensor:
    (rows, columns), row, group = tensor.shape, kind.spec.row, kind.spec.group_size
    codes = np.empty((rows, row.width(columns)), row.codes)
    of_scales = np.float32 if numbers.steps else np.float16
    scales = np.empty((rows, columns // group), of_scales)
    offsets = np.empty_like(scales) if kind.offsets else None
    for part in row_slices(rows, columns):
        values = unpack_rows(tensor, part)
        if not np.isfinite(values).all():
            raise CheckpointError("a weight matrix holds a value that is not finite")
        groups = values.reshape(len(values), -1, group)
        scale, low = _spans(groups, numbers, kind.offsets)
        blocks = kind.block // group
        scales[part] = scale = _held(scale, numbers.steps, blocks)
        if offsets is not None:
            offsets[part] = low = -_held(-low, numbers.steps, blocks)
        found = _nearest(groups, scale, low, numbers).reshape(values.shape)
        codes[part] = row.pack(_codes_in(row, found, kind.offsets))
    return PackedTensor(spec=kind.spec, shape=tensor.shape, codes=codes, scales=scales, offsets=offsets)


def _spans(groups: Floats, numbers: _Numbers, offsets: bool) -> tuple[Floats, Floats]:
    """Scales and offsets (rows, groups) with which numbers span each group."""
    high, low = groups.max(axis=2), groups.min(axis=2)
    if not offsets:  # the largest magnitude goes to the side that reaches further
        return np.where(high > -low, high, low) / np.float32(numbers.least) + np.float32(0), np.zeros_like(
            low
        )
    low = np.minimum(low, 0)
    return (np.maximum(high, 0) - low) / np.float32(numbers.most), low


def _held(values: Floats, steps: int, blocks: int) -> Floats:
    """``values`` (rows, groups) as a type has them: float16, or multiples of one for every ``blocks``
    neighbours. Raises CheckpointError."""
    if not steps:
        return _half(values)
    lead = values.reshape(len(values), -1, blocks)
    unit = _half(np.abs(lead).max(axis=2) / np.float32(steps))[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.where(unit == 0, 0, np.rint(lead / unit))
    return (np.clip(count, -steps, steps).astype(np.float32) * unit).reshape(values.shape)


def _half(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        found = values.astype(np.float16).astype(np.float32)
    if not np.isfinite(found).all():
        raise CheckpointError("a scale is too large for float16", "write this matrix as bf16 or f32")
    return found


def _nearest(groups: Floats, scale: Floats, low: Floats, numbers: _Numbers) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(scale[..., None] == 0, 0, np.rint((groups - low[..., None]) / scale[..., None]))
    return np.clip(found, numbers.least, numbers.most)
