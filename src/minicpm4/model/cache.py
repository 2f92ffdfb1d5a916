"""The arrays behind the key/value cache: one pool of pages for all layers and sequences.

A page holds ``page_size`` tokens of one sequence: their keys, values, and the compressed keys that
end in it. A compressed key depends on its page and the one before it, never on later tokens; so a
page can be shared between sequences with a common prefix, kept when a sequence is trimmed, and
copied when a fork writes to it. Which page belongs to whom is integers only: engine/pages.py.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.errors import ConfigError
from minicpm4.kernels.contract import Array, KVLayer

KVFormat = Literal["bf16", "float32"]
_DTYPES = {"bf16": np.uint16, "float32": np.float32}


class KVPool:
    """``num_pages`` pages of every layer, zeroed. See KVLayer for the layout of one layer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int = 64,
        kv: KVFormat = "bf16",
        sparse: SparseConfig | None = None,
    ) -> None:
        check_kv(kv)
        assert sparse is None or sparse.block_size == page_size
        layers, heads, d = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        shape = (layers, num_pages, heads)
        self.num_pages, self.page_size = num_pages, page_size
        self._keys = np.zeros((*shape, d, page_size), _DTYPES[kv])
        self._values = np.zeros((*shape, page_size, d), _DTYPES[kv])
        self._kernels = self._coarse = None
        if sparse is not None:
            self._kernels = np.zeros((*shape, sparse.kernels_per_block, d), np.float32)
            if sparse.lse_approx:
                self._coarse = np.zeros((*shape, sparse.coarse_per_block, d), np.float32)

    def layer(self, index: int) -> KVLayer:
        """The pages of one layer: views, not copies."""
        return KVLayer(
            keys=self._keys[index],
            values=self._values[index],
            kernels=None if self._kernels is None else self._kernels[index],
            coarse=None if self._coarse is None else self._coarse[index],
        )

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in every layer, compressed keys included."""
        for array in self._arrays():
            array[:, target] = array[:, source]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays())

    def _arrays(self) -> list[Array]:
        arrays = (self._keys, self._values, self._kernels, self._coarse)
        return [array for array in arrays if array is not None]


def check_kv(kv: str) -> None:
    """Raise ConfigError unless ``kv`` names a format of cached keys and values."""
    if kv not in _DTYPES:
        raise ConfigError(f"kv = {kv!r} is not a cache format", "use " + " or ".join(_DTYPES))


def page_nbytes(config: ModelConfig, *, page_size: int, kv: KVFormat, sparse: SparseConfig | None) -> int:
    """Bytes that one page takes in all layers together, without making it."""
    check_kv(kv)
    per_head = 2 * page_size * config.head_dim * np.dtype(_DTYPES[kv]).itemsize
    if sparse is not None:
        compressed = sparse.kernels_per_block + (sparse.coarse_per_block if sparse.lse_approx else 0)
        per_head += compressed * config.head_dim * 4
    return per_head * config.num_key_value_heads * config.num_hidden_layers
