"""Quantised matrices as other tools read them: the inverse of ``formats/quantised_methods.py``, value for
value. What config.json says of them: ``formats/quantised_config.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats.marlin import MARLIN_ROWS, pack_tiles, scales_of_threads
from minicpm4.formats.packing import row_slices
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.quantised_methods import FUSED
from minicpm4.formats.rounding import in_half
from minicpm4.formats.safetensors_header import ARRAY_TYPES
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.formats.words import awq_words, moved_words, pack_words, unpack_words

__all__ = ["QUANTISED", "OutMatrix", "quantised_sources", "second_gptq"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutMatrix:
    """A matrix (out, in); ``half``: its scales are float16; ``shifted``: it has offsets; ``load`` gives it,
    and may be asked more than once."""

    name: str
    shape: tuple[int, int]
    spec: QuantSpec
    half: bool
    shifted: bool
    load: Callable[[], PackedTensor]

    @classmethod
    def of(cls, name: str, tensor: PackedTensor, load: Callable[[], PackedTensor]) -> OutMatrix:
        """The matrix that ``load`` gives, ``tensor``, which is not kept."""
        half = tensor.scales is not None and tensor.scales.dtype == np.float16
        shifted = tensor.offsets is not None
        return cls(name=name, shape=tensor.shape, spec=tensor.spec, half=half, shifted=shifted, load=load)

    @property
    def bits(self) -> int:
        return self.spec.row.bits

    @property
    def groups(self) -> int:
        return self.shape[1] // self.spec.group_size

    @property
    def middle(self) -> int:
        """The code of 0 in files, where there are no offsets."""
        return 1 if self.spec.kind == "ternary" else 1 << (self.bits - 1)

    @property
    def raised(self) -> int:
        """What codes in files are more than those in memory."""
        return 0 if self.spec.row.zero else self.middle

    def codes(self) -> NDArray[np.uint8]:
        """(out, in), none below 0."""
        tensor = self.load()
        row, found = tensor.spec.row, np.empty(self.shape, np.uint8)
        for part in row_slices(*self.shape):
            found[part] = row.unpack(tensor.codes[part]).astype(np.int16) + self.raised
        return found

    def scales(self) -> NDArray:
        """(out, groups)."""
        scales = self.load().scales
        assert scales is not None
        return scales

    def zeros(self) -> NDArray[np.uint8]:
        """Codes that stand for 0 (out, groups). Raises CheckpointError where offsets are not such."""
        tensor, scales = self.load(), self.scales().astype(np.float32)
        if tensor.offsets is None:
            return np.full(scales.shape, self.middle, np.uint8)
        offsets = tensor.offsets.astype(np.float32)
        nothing = scales == 0
        found = np.rint(-offsets / np.where(nothing, np.float32(1), scales)) + self.raised
        found = np.where(nothing, self.middle, found)
        exact = ((self.raised - found).astype(np.float32) * scales == offsets).all()
        if not (exact and (found >= 0).all() and (found < 1 << self.bits).all()):
            raise CheckpointError(
                f"{self.name} has offsets that are no zero points of {self.bits} bits",
                "write it as mlx, gguf or hf, or round it anew (--weights)",
            )
        return found.astype(np.uint8)

    def biases(self) -> NDArray[np.float32]:
        """What is added to scale * code of a file (out, groups). Raises CheckpointError where that is none of
        float32."""
        offsets, scales = self.load().offsets, self.scales().astype(np.float32)
        if offsets is None:
            return np.float32(-self.middle) * scales
        found: NDArray[np.float32] = offsets.astype(np.float32) - np.float32(self.raised) * scales
        if not (found + np.float32(self.raised) * scales == offsets).all():
            raise CheckpointError(
                f"{self.name} has offsets that mlx cannot hold as they are", "write it as gguf or hf"
            )
        return found


Sources = dict[str, TensorSource]


def quantised_sources(layout: str, matrices: Sequence[OutMatrix]) -> Sources:
    """The tensors that hold the matrices of a layer in ``layout``. Raises CheckpointError where scales do not
    fit it."""
    return _WRITERS[layout](matrices)


def second_gptq(sources: Mapping[str, TensorSource], bits: int) -> Sources | None:
    """``sources`` of "gptq" in its second version, where the first is not read alike: of a zero point of 0
    some readers take the borrow from the next one for what it is, others do not. None: there is no such."""

    def moved(source: TensorSource) -> TensorSource:
        return replace(source, make=lambda: moved_words(source.make(), bits, 1))

    zeros = {name: moved(source) for name, source in sources.items() if name.endswith(".qzeros")}
    if all(
        unpack_words(source.read(), bits)[:, : _rows(sources, name)].all() for name, source in zeros.items()
    ):
        return None
    return {**sources, **zeros}


def _rows(sources: Mapping[str, TensorSource], zeros: str) -> int:
    """Of a matrix with zero points of this name; the last word of these may not be full."""
    return sources[zeros.removesuffix("qzeros") + "scales"].shape[1]


def _compressed(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        stem, (rows, columns) = _stem(one), one.shape
        words = -(-columns * one.bits // 32)
        found[f"{stem}weight_packed"] = _source((rows, words), "I32", _packed(one))
        found[f"{stem}weight_scale"] = _source((rows, one.groups), _floats(one), one.scales)
        found[f"{stem}weight_shape"] = _source((2,), "I64", _shape(one))
        if one.shifted:
            one.zeros()  # raises before anything is written
            zeros = _source((-(-rows * one.bits // 32), one.groups), "I32", _zeros_by_rows(one))
            found[f"{stem}weight_zero_point"] = zeros
    return found


def _gptq(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        stem, (rows, columns) = _stem(one), one.shape
        each = 32 // one.bits
        found[f"{stem}qweight"] = _source((-(-columns // each), rows), "I32", _transposed(_packed(one)))
        one.zeros()  # raises before anything is written
        found[f"{stem}qzeros"] = _source((one.groups, -(-rows // each)), "I32", _zeros_less_one(one))
        found[f"{stem}scales"] = _source((one.groups, rows), _floats(one), _transposed(one.scales))
        found[f"{stem}g_idx"] = _source((columns,), "I32", _group_of_columns(one))
    return found


def _awq(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        _require_half(one, "awq")
        stem, (rows, columns) = _stem(one), one.shape
        one.zeros()  # raises before anything is written
        found[f"{stem}qweight"] = _source((columns, rows // 8), "I32", _awq_packed(one))
        found[f"{stem}qzeros"] = _source((one.groups, rows // 8), "I32", _awq_zeros(one))
        found[f"{stem}scales"] = _source((one.groups, rows), "F16", _transposed(one.scales))
    return found


def _mlx(matrices: Sequence[OutMatrix]) -> Sources:
    found = {}
    for one in matrices:
        stem, (rows, columns) = _stem(one), one.shape
        kind = "F16" if one.half and in_half(one.biases())[1] else "F32"
        found[f"{stem}weight"] = _source((rows, columns * one.bits // 32), "U32", _unsigned(_packed(one)))
        found[f"{stem}scales"] = _source((rows, one.groups), kind, _typed(one.scales, kind))
        found[f"{stem}biases"] = _source((rows, one.groups), kind, _typed(one.biases, kind))
    return found


def _marlin(matrices: Sequence[OutMatrix]) -> Sources:
    own = {one.name: one for one in matrices}
    inside = {part: fused for fused, parts in FUSED.items() for part in parts}
    found: Sources = {}
    for one in matrices:
        _require_half(one, "marlin")
        if one.shifted:
            raise CheckpointError(
                f"{one.name} has zero points, which marlin has not", "use awq, or round it anew (--weights)"
            )
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


def _zeros_less_one(one: OutMatrix) -> Make:
    """As its first version has them."""
    return lambda: moved_words(pack_words(one.zeros().T, one.bits), one.bits, -1)


def _zeros_by_rows(one: OutMatrix) -> Make:
    return _transposed(lambda: pack_words(one.zeros().T, one.bits))


def _awq_zeros(one: OutMatrix) -> Make:
    return lambda: awq_words(np.ascontiguousarray(one.zeros().T))


def _group_of_columns(one: OutMatrix) -> Make:
    return lambda: np.arange(one.shape[1], dtype=np.int32) // np.int32(one.spec.group_size)


def _awq_packed(one: OutMatrix) -> Make:
    return lambda: awq_words(np.ascontiguousarray(one.codes().T))


def _typed(make: Make, kind: str) -> Make:
    return lambda: make().astype(ARRAY_TYPES[kind])


def _tiles(parts: Sequence[OutMatrix]) -> Make:
    return lambda: pack_tiles(np.concatenate([part.codes() for part in parts]))


def _thread_scales(parts: Sequence[OutMatrix]) -> Make:
    return lambda: scales_of_threads(
        np.ascontiguousarray(np.concatenate([part.scales() for part in parts]).T)
    )
