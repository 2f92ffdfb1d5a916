"""Tensors to be written, each made when its turn comes: a model is written with a tensor of it in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats.checkpoint import Checkpoint
from minicpm4.formats.kinds import WeightKind
from minicpm4.formats.packing import unpack
from minicpm4.formats.safetensors_header import ARRAY_TYPES

__all__ = ["TensorSource", "array_source", "as_kind", "checkpoint_source"]


_SLICE = 1 << 18  # numbers converted at a time


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorSource:
    """A tensor of ``shape``; ``dtype`` is safetensors' name of its type. ``make`` gives its values, an array
    of ``ARRAY_TYPES[dtype]`` (bfloat16 as uint16), and may be asked for them more than once."""

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], NDArray]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ARRAY_TYPES[self.dtype].itemsize

    def read(self) -> NDArray:
        """The values, contiguous. Raises CheckpointError where they are not what was said."""
        found = np.ascontiguousarray(self.make()).reshape(self.shape)
        if found.dtype != ARRAY_TYPES[self.dtype]:
            raise CheckpointError(f"a tensor said to be {self.dtype} is made of {found.dtype}")
        return found


def array_source(array: NDArray[np.float32]) -> TensorSource:
    """Float32 values that are in memory."""
    return TensorSource(shape=array.shape, dtype="F32", make=lambda: array)


def checkpoint_source(checkpoint: Checkpoint, name: str) -> TensorSource:
    """A tensor of a checkpoint, unpacked: float32."""

    def values() -> NDArray[np.float32]:
        vector = len(checkpoint.tensors[name].shape) == 1
        return checkpoint.load_vector(name) if vector else unpack(checkpoint.load(name))

    return TensorSource(shape=checkpoint.tensors[name].shape, dtype="F32", make=values)


def as_kind(source: TensorSource, kind: WeightKind) -> TensorSource:
    """``source``, float32, in a float kind."""

    def packed() -> NDArray:
        values = source.read().reshape(-1)
        out = np.empty(values.shape, kind.codes)
        for start in range(0, values.size, _SLICE):
            part = slice(start, start + _SLICE)
            out[part] = kind.pack(values[part])
        return out.reshape(source.shape)

    return TensorSource(shape=source.shape, dtype=kind.file, make=packed)
