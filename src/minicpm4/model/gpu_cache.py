"""The pool of key/value pages in a GPU's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.errors import UnsupportedError
from minicpm4.kernels.contract import KVLayer
from minicpm4.kernels.pages import page_layout

__all__ = ["GpuPool"]

_TYPES: dict[Any, torch.dtype] = {
    np.float32: torch.float32,
    np.uint16: torch.bfloat16,
    np.int16: torch.int16,
}


class GpuPool:
    """As KVPool, in tensors, with one page more: ``spare``, which belongs to no sequence. Rows that only fill
    up a captured step write there."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        *,
        num_pages: int,
        page_size: int,
        kv: str,
        sparse: SparseConfig | None,
    ) -> None:
        if kv == "int8":
            raise UnsupportedError("the GPU has no kernels for pages of int8", "use kv='bf16'")
        self.num_pages, self.page_size, self.spare = num_pages, page_size, num_pages
        layout = page_layout(
            kv, heads=config.num_key_value_heads, d=config.head_dim, page_size=page_size, sparse=sparse
        )
        shape = (config.num_hidden_layers, num_pages + 1)
        self._tensors = {
            name: torch.zeros((*shape, *page), dtype=_TYPES[dtype], device=device)
            for name, (page, dtype) in layout.items()
        }
        layers: Any = [
            {name: tensor[index] for name, tensor in self._tensors.items()}
            for index in range(config.num_hidden_layers)
        ]
        self._layers = [KVLayer(**tensors) for tensors in layers]

    def layer(self, index: int) -> KVLayer:
        """The pages of one layer: views, not copies."""
        return self._layers[index]

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in every layer, compressed keys included."""
        for tensor in self._tensors.values():
            tensor[:, target] = tensor[:, source]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())
