"""Run the forward pass on one sequence without the engine: pages in a scrambled order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Accepted, Step, Tree
from minicpm4.model.cache import KVPool
from minicpm4.model.forward import forward, logits, settle
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weights import ModelWeights


class Driver:
    """One op table, one model, one pool; ``feed`` appends tokens and returns their logits."""

    def __init__(
        self,
        ops: OpTable,
        weights: ModelWeights,
        *,
        context: int,
        sparse: SparseConfig | None = None,
        kv: str = "float32",
        seed: int = 0,
    ) -> None:
        page_size = sparse.block_size if sparse else 64
        pages = -(-context // page_size)
        self.ops, self.weights, self.sparse = ops, weights, sparse
        given = {"num_pages": pages + 3, "page_size": page_size, "kv": kv, "sparse": sparse}
        self.pool = KVPool(weights.config, **given, zeros=ops.zeros)
        self.rotary = RotaryTable(weights.config, context)
        order = np.random.default_rng(seed).permutation(pages + 3)
        self.table = order[:pages].astype(np.int32)
        self.length = 0

    def step(self, ids: Sequence[int], tree: Tree | None = None) -> Step:
        """The step that appends ``ids``, as a ``tree`` if there is one."""
        start, self.length = self.length, self.length + len(ids)
        cos, sin = self.rotary.tables(self.length)
        return Step(
            ids=np.asarray(ids, np.int32),
            positions=np.arange(start, self.length, dtype=np.int32),
            cu_rows=np.array([0, len(ids)], np.int32),
            page_table=self.table[None],
            cos=cos,
            sin=sin,
            sparse=self.sparse,
            tree=tree,
        )

    def feed(self, ids: Sequence[int], tree: Tree | None = None) -> np.ndarray:
        """Append ``ids``, as a ``tree`` if there is one; return logits (n, vocab)."""
        self.last = self.step(ids, tree)
        hidden = forward(self.ops, self.weights, self.last, self.pool)
        return logits(self.ops, self.weights, hidden)

    def settle(self, rows: Sequence[int]) -> None:
        """Keep these rows of the tree that was fed last, and no others."""
        cu_rows = np.array([0, len(rows)], np.int32)
        accepted = Accepted(rows=np.asarray(rows, np.int32), cu_rows=cu_rows)
        settle(self.ops, self.weights, self.last, accepted, self.pool)
        self.length += len(rows) - self.last.num_rows

    def feed_chunks(self, ids: Sequence[int], sizes: Iterable[int]) -> np.ndarray:
        """Append ``ids`` in pieces of the given sizes, the last size repeated."""
        parts, start, sizes = [], 0, list(sizes)
        while start < len(ids):
            size = sizes[min(len(parts), len(sizes) - 1)]
            parts.append(self.feed(ids[start : start + size]))
            start += size
        return np.concatenate(parts)
