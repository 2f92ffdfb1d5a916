"""The arrays behind the key/value cache: one pool of pages for all layers and sequences.

A page holds ``page_size`` tokens of one sequence: their keys, values, and the compressed keys that
end in it. A compressed key depends on its page and the one before it, never on later tokens; so a
page can be shared between sequences with a common prefix, kept when a sequence is trimmed, and
copied when a fork writes to it. Which page belongs to whom is integers only: engine/pages.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.kernels.pages import PageArrays, page_arrays
from minicpm4.kernels.step import Array, KVLayer

PAGE_SIZE = 64  # tokens, without sparse attention


def page_size_for(sparse: SparseConfig | None) -> int:
    """Tokens of a page: a page is a block of sparse attention, where there is any."""
    return sparse.block_size if sparse is not None else PAGE_SIZE


class KVPool:
    """``num_pages`` pages of every layer, zeroed. See KVLayer for the layout of one layer.

    ``zeros(shape, dtype)`` makes the arrays: an op table's own, for a device. ``spare``: there is one page
    more, of that number, which belongs to no sequence; rows that only fill up a step write there. Raises
    ConfigError unless ``kv`` is a format of cached keys and values.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int = PAGE_SIZE,
        kv: KVFormat = "bf16",
        sparse: SparseConfig | None = None,
        zeros: Callable[[tuple[int, ...], Any], Array] = np.zeros,
        spare: bool = False,
    ) -> None:
        assert sparse is None or sparse.block_size == page_size
        self.num_pages, self.page_size = num_pages, page_size
        self.spare = num_pages if spare else None
        layout = _layout(config, page_size, kv, sparse)
        shape = (config.num_hidden_layers, num_pages + spare)
        self._arrays = {name: zeros((*shape, *page), dtype) for name, (page, dtype) in layout.items()}
        self._layers = [
            KVLayer(
                **{name: array[index] for name, array in self._arrays.items()},
                window=config.windows[index] if config.windows else 0,
            )
            for index in range(config.num_hidden_layers)
        ]

    def layer(self, index: int) -> KVLayer:
        """The pages of one layer: views, not copies."""
        return self._layers[index]

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in every layer, compressed keys included."""
        for array in self._arrays.values():
            array[:, target] = array[:, source]

    def read_page(self, page: int, out: NDArray[np.uint8]) -> None:
        """Copy what a page holds in all layers into ``out``, (page_nbytes,); of a pool on the host."""
        for array, part in self._parts(out):
            part[...] = array[:, page]

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """Put into a page what ``read_page`` has given of one, of a pool of the same layout."""
        for array, part in self._parts(data):
            array[:, page] = part

    def _parts(self, data: NDArray[np.uint8]) -> Iterator[tuple[Array, Array]]:
        """Each array of the pool, and the bytes of its page in ``data`` as numbers (layers, ...)."""
        start = 0
        for array in self._arrays.values():
            page = array[:, 0]
            yield array, data[start : start + page.nbytes].view(array.dtype).reshape(page.shape)
            start += page.nbytes

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self._arrays.values())

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page in all layers."""
        return self.nbytes // (self.num_pages + (self.spare is not None))


def page_nbytes(config: ModelConfig, *, page_size: int, kv: KVFormat, sparse: SparseConfig | None) -> int:
    """Bytes that one page takes in all layers together, without making it."""
    arrays = _layout(config, page_size, kv, sparse).values()
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)
    return config.num_hidden_layers * size


def _layout(config: ModelConfig, page_size: int, kv: KVFormat, sparse: SparseConfig | None) -> PageArrays:
    return page_arrays(
        kv, heads=config.num_key_value_heads, d=config.head_dim, page_size=page_size, sparse=sparse
    )
