"""Which arrays a page of the cache is made of, for each format of keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.config.choices import KV_FORMATS
from minicpm4.errors import ConfigError

PageArrays = dict[str, tuple[tuple[int, ...], Any]]


def page_arrays(kv: str, *, heads: int, d: int, page_size: int, sparse: SparseConfig | None) -> PageArrays:
    """Return shape and dtype of each array of ``KVLayer``, for one page of one layer.

    ``heads`` key/value heads of size ``d``, ``page_size`` tokens. Raises ConfigError unless ``kv``
    is a format and its pairs of numbers fit.
    """
    if kv not in KV_FORMATS:
        raise ConfigError(f"kv = {kv!r} is not a cache format", "use " + " or ".join(KV_FORMATS))
    layout = _int8(heads, d, page_size) if kv == "int8" else _plain(kv, heads, d, page_size)
    if sparse is None:
        return layout
    slots = {"compressed": sparse.compressed_per_block}
    if sparse.lse_approx:
        slots["coarse"] = sparse.coarse_per_block
    for name, count in slots.items():
        layout[name] = ((heads, count, d), np.float32 if kv == "float32" else np.int16)
        if kv != "float32":
            layout[f"{name}_scales"] = ((heads, count), np.float32)
    return layout


def _plain(kv: str, heads: int, d: int, page_size: int) -> PageArrays:
    dtype = np.float32 if kv == "float32" else np.uint16
    return {"keys": ((heads, d, page_size), dtype), "values": ((heads, page_size, d), dtype)}


def _int8(heads: int, d: int, page_size: int) -> PageArrays:
    if d % 2 or page_size % 2:
        raise ConfigError(
            f"kv = 'int8' keeps pairs of numbers: head size {d} or block_size {page_size} is odd",
            "use kv = 'bf16'",
        )
    return {
        "keys": ((heads, d // 2, page_size, 2), np.int8),
        "values": ((heads, page_size // 2, d, 2), np.int8),
        "key_scales": ((heads, page_size), np.float32),
        "value_scales": ((heads, page_size), np.float32),
    }
