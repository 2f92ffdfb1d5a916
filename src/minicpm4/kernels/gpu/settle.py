"""Keys and values of a tree's accepted drafts to the places that follow the text."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["move"]


@triton.jit
def _move(
    sources, targets, cu_rows, table, max_pages, keys, values, hkv,
    D: tl.constexpr, PAGE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """A head of a sequence, by one warp, row after row: in this order no token is overwritten before it is
    read, and none that is read has been written."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, B)
    seen = i < D
    for row in range(tl.load(cu_rows + sequence), tl.load(cu_rows + sequence + 1)):
        source, target = tl.load(sources + row), tl.load(targets + row)
        old = tl.load(table + sequence * max_pages + source // PAGE).to(tl.int64) * hkv + head
        new = tl.load(table + sequence * max_pages + target // PAGE).to(tl.int64) * hkv + head
        key = tl.load(keys + (old * D + i) * PAGE + source % PAGE, mask=seen)
        value = tl.load(values + (old * PAGE + source % PAGE) * D + i, mask=seen)
        tl.store(keys + (new * D + i) * PAGE + target % PAGE, key, mask=seen)
        tl.store(values + (new * PAGE + target % PAGE) * D + i, value, mask=seen)


def move(kv: Any, rows: Any, sources: Tensor, cu_rows: Tensor) -> None:
    """Move the tokens at ``sources`` (k,) to the positions of ``rows`` (tiles.DeviceRows); of sequence j
    cu_rows[j] to cu_rows[j+1] - 1."""
    sequences = cu_rows.shape[0] - 1
    if sources.shape[0] and sequences:
        _move[(sequences, kv.num_kv_heads)](
            sources, rows.positions, cu_rows, rows.page_table, rows.page_table.shape[1], kv.keys, kv.values,
            kv.num_kv_heads, D=kv.head_dim, PAGE=kv.page_size, B=triton.next_power_of_2(kv.head_dim),
            num_warps=1,
        )  # fmt: skip
