"""One layer's weights while they are changed: floats, with what was folded into them, until each is
rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.formats import Checkpoint
from minicpm4.formats.names import EMBED, layer_tensors
from minicpm4.formats.packing import row_slices, unpack, unpack_rows
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.layer_weights import Linear, StoredKV
from minicpm4.kernels.step import Floats
from minicpm4.model.weights import LayerWeights, build_layer
from minicpm4.quantize.walk import as_floats

__all__ = ["Layer", "check_rows_finite", "from_packed", "looked_up", "read_layer", "read_tensor"]


@dataclass(slots=True, eq=False)
class Layer:
    """``floats``: tensors of the layer by their names within it, all but matrices that are rounded;
    ``packed``: these, by theirs without ".weight"; ``stored``: of the stored prefix, where there is one."""

    config: ModelConfig
    floats: dict[str, NDArray[np.float32]]
    packed: dict[str, PackedTensor] = field(default_factory=dict)
    stored: StoredKV | None = None

    def weight(self, name: str) -> NDArray[np.float32]:
        """A matrix (out, in) that is not rounded yet; what is changed in it is changed."""
        return self.floats[f"{name}.weight"]

    def round(self, name: str, packed: PackedTensor) -> None:
        """Put ``packed`` in the place of a matrix, whose floats are let go."""
        self.packed[name] = packed
        del self.floats[f"{name}.weight"]

    def weights(self) -> LayerWeights:
        """The layer as it is now, for a forward pass."""
        return build_layer(self.config, "", self._vector, self._linear, self.stored)

    def _vector(self, name: str) -> Floats:
        return self.floats[name]

    def _linear(self, name: str) -> Linear:
        packed = self.packed.get(name)
        weight = as_floats(self.weight(name)) if packed is None else packed
        return Linear(weight=weight, bias=self.floats.get(f"{name}.bias"))


def read_layer(checkpoint: Checkpoint, config: ModelConfig, index: int) -> Layer:
    """Layer ``index`` in float32, in arrays of its own. Raises CheckpointError."""
    prefix = f"model.layers.{index}."
    return Layer(config, {name: read_tensor(checkpoint, prefix + name) for name in layer_tensors(config)})


def looked_up(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float32], list[list[int]]]:
    """Of the embeddings the rows that ``texts`` look up, and the texts as numbers of these. In floats: what
    rounding the embeddings costs is not the layers' to mend."""
    used = np.unique(np.concatenate([np.asarray(text, np.intp) for text in texts]))
    stored = checkpoint.load(EMBED)
    rows = np.concatenate([unpack_rows(stored, slice(i, i + 1)) for i in used])
    checkpoint.release(EMBED)
    return rows, [np.searchsorted(used, text).tolist() for text in texts]


def read_tensor(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    """A tensor in float32, an array of its own. Raises CheckpointError, also where it is not finite."""
    if len(checkpoint.tensors[name].shape) == 1:
        return np.array(checkpoint.load_vector(name), np.float32)
    stored = checkpoint.load(name)
    check_rows_finite(checkpoint, name, stored)
    found = unpack(stored)
    checkpoint.release(name)
    return found


def check_rows_finite(checkpoint: Checkpoint, name: str, stored: PackedTensor) -> None:
    """Raise CheckpointError where ``stored``, the tensor ``name``, is not finite, whose rows are floats a few
    at a time."""
    for rows in row_slices(*stored.shape):
        if not np.isfinite(unpack_rows(stored, rows)).all():
            raise CheckpointError(f"{checkpoint.path}: tensor {name} holds a value that is not finite")


def from_packed(
    config: ModelConfig, tensors: Mapping[str, PackedTensor], stored: StoredKV | None = None
) -> Layer:
    """A layer of which all matrices are rounded, as it was written: vectors are matrices of a row."""
    floats, packed = {}, {}
    for name, shape in layer_tensors(config).items():
        if len(shape) == 1:
            floats[name] = tensors[name].codes[0]
        else:
            packed[name.removesuffix(".weight")] = tensors[name]
    return Layer(config, floats, packed, stored)
