"""What every checkpoint reader offers, whatever the file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats.quant import PackedTensor, QuantSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One stored tensor: row-major ``shape``, the file's own name for its type, and its size.

    ``spec`` is the format that ``Checkpoint.load`` returns for it, ``loaded_nbytes`` the size of that;
    ``narrows``: its weights may prove to be of a kind of fewer bits; ``wide_nbytes``: the size once widened
    (``packing.widened``), 0: that does nothing.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    spec: QuantSpec
    loaded_nbytes: int
    narrows: bool = False
    wide_nbytes: int = 0


class Checkpoint(Protocol):
    """A memory-mapped model file or folder.

    Tensors go by their Hugging Face names (``model.layers.0.self_attn.q_proj.weight``) in the
    Hugging Face layout (rotary halves split, not interleaved), whatever the file calls them.
    ``files`` are those that say what its weights are: which hold tensors, and of weights that another tool
    quantised config.json; there are none where weights are made, not read.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    def hf_config(self) -> dict[str, Any] | None:
        """config.json with generation_config.json's end tokens merged in; None for GGUF."""
        ...

    def metadata(self) -> Mapping[str, Any]:
        """GGUF key-value metadata; empty for other formats."""
        ...

    def load(self, name: str) -> PackedTensor:
        """Return a matrix in its stored precision, or exactly converted to the nearest format that
        has a kernel (see formats/quant.py). A view into the file where the layouts agree.

        Raises CheckpointError when the tensor is absent or not a matrix.
        """
        ...

    def load_vector(self, name: str) -> NDArray[np.float32]:
        """Return a one-dimensional tensor (norm weight, bias, rope factors) as float32."""
        ...

    def release(self, name: str) -> None:
        """Tell the system that the mapped bytes of ``name`` are not needed for now."""
        ...
