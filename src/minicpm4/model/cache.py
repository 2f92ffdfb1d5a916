"""The arrays behind the key/value cache: one pool of pages for all layers and sequences.

A page holds ``page_size`` tokens of one sequence: their keys, values, and the compressed keys that
end in it. A compressed key depends on its page and the one before it, never on later tokens; so a
page can be shared between sequences with a common prefix, kept when a sequence is trimmed, and
copied when a fork writes to it. Which page belongs to whom is integers only: engine/pages.py.
"""

from __future__ import annotations

import math

import numpy as np

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.kernels.contract import KVLayer
from minicpm4.kernels.pages import KVFormat, Layout, page_layout


class KVPool:
    """``num_pages`` pages of every layer, zeroed. See KVLayer for the layout of one layer.

    Raises ConfigError unless ``kv`` is a format of cached keys and values.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int = 64,
        kv: KVFormat = "bf16",
        sparse: SparseConfig | None = None,
    ) -> None:
        assert sparse is None or sparse.block_size == page_size
        self.num_pages, self.page_size = num_pages, page_size
        layout = _layout(config, page_size, kv, sparse)
        shape = (config.num_hidden_layers, num_pages)
        self._arrays = {name: np.zeros((*shape, *page), dtype) for name, (page, dtype) in layout.items()}
        self._layers = [
            KVLayer(**{name: array[index] for name, array in self._arrays.items()})
            for index in range(config.num_hidden_layers)
        ]

    def layer(self, index: int) -> KVLayer:
        """The pages of one layer: views, not copies."""
        return self._layers[index]

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in every layer, compressed keys included."""
        for array in self._arrays.values():
            array[:, target] = array[:, source]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())


def page_nbytes(config: ModelConfig, *, page_size: int, kv: KVFormat, sparse: SparseConfig | None) -> int:
    """Bytes that one page takes in all layers together, without making it."""
    arrays = _layout(config, page_size, kv, sparse).values()
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)
    return config.num_hidden_layers * size


def _layout(config: ModelConfig, page_size: int, kv: KVFormat, sparse: SparseConfig | None) -> Layout:
    return page_layout(
        kv, heads=config.num_key_value_heads, d=config.head_dim, page_size=page_size, sparse=sparse
    )
