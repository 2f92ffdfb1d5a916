"""Quantised matrices as other tools read them: the inverse of ``formats/quantised_methods.py``, value for
value. What config.json says of them: ``formats/quantised_config.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats.marlin import MARLIN_ROWS, pack_tiles, scales_of_threads
from minicpm4.formats.packing import row_slices
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.quantised_methods import FUSED
from minicpm4.formats.rounding import F16_MAX
from minicpm4.formats.safetensors_header import ARRAY_TYPES
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.formats.words import awq_words, pack_words

__all__ = ["QUANTISED", "OutMatrix", "quantised_sources"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutMatrix:
    """A matrix (out, in) without offsets; ``half``: its scales are float16; ``load`` gives it, and may be
    asked more than once."""

    name: str
    shape: tuple[int, int]
    spec: QuantSpec
    half: bool
    load: Callable[[], PackedTensor]

    @property
    def bits(self) -> int:
        return self.spec.row.bits

    @property
    def groups(self) -> int:
        return self.shape[1] // self.spec.group_size

    @property
    def middle(self) -> int:
        """The code of 0 in files."""
        return 1 if self.spec.kind == "ternary" else 1 << (self.bits - 1)

    def codes(self) -> NDArray[np.uint8]:
        """(out, in), none below 0."""
        tensor = self.load()
        assert tensor.offsets is None
        row, found = tensor.spec.row, np.empty(self.shape, np.uint8)
        for part in row_slices(*self.shape):
            values = row.unpack(tensor.codes[part])
            found[part] = values if row.zero else values.astype(np.int16) + self.middle
        return found

    def scales(self) -> NDArray:
        """(out, groups)."""
        scales = self.load().scales
        assert scales is not None
        return scales


Sources = dict[str, TensorSource]


def quantised_sources(layout: str, matrices: Sequence[OutMatrix]) -> Sources:
    """The tensors that hold the matrices of a layer in ``layout``. Raises CheckpointError where scales do not
    fit it."""
    return _WRITERS[layout](matrices)


def _compressed(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        stem, (rows, columns) = _stem(one), one.shape
        words = -(-columns * one.bits // 32)
        found[f"{stem}weight_packed"] = _source((rows, words), "I32", _packed(one))
        found[f"{stem}weight_scale"] = _source((rows, one.groups), _floats(one), one.scales)
        found[f"{stem}weight_shape"] = _source((2,), "I64", _shape(one))
    return found


def _gptq(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        stem, (rows, columns) = _stem(one), one.shape
        each = 32 // one.bits
        found[f"{stem}qweight"] = _source((-(-columns // each), rows), "I32", _transposed(_packed(one)))
        # Less 1, as its first version has them.
        found[f"{stem}qzeros"] = _source((one.groups, -(-rows // each)), "I32", _zeros(one, one.middle - 1))
        found[f"{stem}scales"] = _source((one.groups, rows), _floats(one), _transposed(one.scales))
        found[f"{stem}g_idx"] = _source((columns,), "I32", _group_of_columns(one))
    return found


def _awq(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        _require_half(one, "awq")
        stem, (rows, columns) = _stem(one), one.shape
        zeros = _zeros(one, one.middle)  # all alike: their order does not matter
        found[f"{stem}qweight"] = _source((columns, rows // 8), "I32", _awq_packed(one))
        found[f"{stem}qzeros"] = _source((one.groups, rows // 8), "I32", zeros)
        found[f"{stem}scales"] = _source((one.groups, rows), "F16", _transposed(one.scales))
    return found


def _mlx(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        stem, (rows, columns) = _stem(one), one.shape
        # Small enough that float16 holds what is added to codes, too.
        found[f"{stem}weight"] = _source((rows, columns * one.bits // 32), "U32", _unsigned(_packed(one)))
        top = float(np.abs(one.scales()).max(initial=0)) * one.middle
        kind = "F16" if one.half and top < F16_MAX else "F32"
        found[f"{stem}scales"] = _source((rows, one.groups), kind, _scaled(one, kind, 1))
        found[f"{stem}biases"] = _source((rows, one.groups), kind, _scaled(one, kind, -one.middle))
    return found


def _marlin(matrices: Sequence[OutMatrix]) -> Sources:
    own = {one.name: one for one in matrices}
    inside = {part: fused for fused, parts in FUSED.items() for part in parts}
    found: Sources = {}
    for one in matrices:
        _require_half(one, "marlin")
        stem, last = one.name.removesuffix(".weight").rpartition(".")[::2]
        fused = inside.get(last, last)
        if f"{stem}.{fused}.qweight" in found:
            continue
        parts = [own[f"{stem}.{part}.weight"] for part in FUSED.get(fused, (last,))]
        rows, columns = sum(part.shape[0] for part in parts), one.shape[1]
        found[f"{stem}.{fused}.qweight"] = _source((columns // MARLIN_ROWS, 2 * rows), "I32", _tiles(parts))
        found[f"{stem}.{fused}.scales"] = _source((one.groups, rows), "F16", _thread_scales(parts))
    return found


_WRITERS: dict[str, Callable[[Sequence[OutMatrix]], Sources]] = {
    "compressed-tensors": _compressed,
    "gptq": _gptq,
    "awq": _awq,
    "marlin": _marlin,
    "mlx": _mlx,
}
QUANTISED = tuple(_WRITERS)
"""Layouts that can be written."""

Make = Callable[[], NDArray]


def _stem(one: OutMatrix) -> str:
    return one.name.removesuffix("weight")


def _source(shape: tuple[int, ...], dtype: str, make: Make) -> TensorSource:
    return TensorSource(shape=shape, dtype=dtype, make=make)


def _floats(one: OutMatrix) -> str:
    return "F16" if one.half else "F32"


def _require_half(one: OutMatrix, layout: str) -> None:
    if not one.half:
        raise CheckpointError(
            f"{one.name} has a scale that float16 does not hold, as {layout} has them",
            "write it as compressed-tensors",
        )


def _packed(one: OutMatrix) -> Make:
    return lambda: pack_words(one.codes(), one.bits)


def _transposed(make: Make) -> Make:
    return lambda: np.ascontiguousarray(make().T)


def _unsigned(make: Make) -> Make:
    return lambda: make().view(np.uint32)


def _shape(one: OutMatrix) -> Make:
    return lambda: np.array(one.shape, np.int64)


def _zeros(one: OutMatrix, zero: int) -> Make:
    return lambda: pack_words(np.full((one.groups, one.shape[0]), zero, np.uint8), one.bits)


def _group_of_columns(one: OutMatrix) -> Make:
    return lambda: np.arange(one.shape[1], dtype=np.int32) // np.int32(one.spec.group_size)


def _awq_packed(one: OutMatrix) -> Make:
    return lambda: awq_words(np.ascontiguousarray(one.codes().T))


def _scaled(one: OutMatrix, kind: str, times: int) -> Make:
    dtype = ARRAY_TYPES[kind]
    return lambda: (one.scales().astype(np.float32) * np.float32(times)).astype(dtype)


def _tiles(parts: Sequence[OutMatrix]) -> Make:
    return lambda: pack_tiles(np.concatenate([part.codes() for part in parts]))


def _thread_scales(parts: Sequence[OutMatrix]) -> Make:
    return lambda: scales_of_threads(
        np.ascontiguousarray(np.concatenate([part.scales() for part in parts]).T)
    )
