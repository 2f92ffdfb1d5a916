"""Trees of drafts, and what every table that reads them must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable, Tree
from minicpm4.kernels.ref import RefOps
from tests.contract.paged import (
    Paged,
    as_mask,
    attention_truth,
    block_scores_truth,
    check_choice,
    rounded,
    unrotated,
)


def random_parents(seed: int, count: int) -> list[int]:
    """Of each of ``count`` nodes its parent, or -1: it follows the text."""
    rng = np.random.default_rng(seed)
    return [int(rng.integers(max(-1, node - 5), node)) for node in range(count)]


def path(parents: Sequence[int], node: int) -> list[int]:
    """A node's ancestors and itself, from the root."""
    found = []
    while node >= 0:
        found.append(node)
        node = parents[node]
    return found[::-1]


def tree_of(*sequences: tuple[int, Sequence[int]]) -> Tree:
    """Of each sequence the length of its text, and the parents of its drafts."""
    bits = [sum(1 << b for b in path(parents, i)) for _, parents in sequences for i in range(len(parents))]
    places = [start + len(path(parents, i)) - 1 for start, parents in sequences for i in range(len(parents))]
    return Tree(ancestors=np.array(bits, np.uint64), positions=np.array(places, np.int32))


class Forest:
    """Sequences whose last tokens are trees: 64 drafts, one, and 23 that nothing comes before."""

    def __init__(self, c: SparseConfig, heads: tuple[int, int], d: int) -> None:
        self.starts = [7 * c.block_size - 5, 3 * c.block_size + 1, 0]
        self.parents = [random_parents(3, 64), [-1], random_parents(4, 23)]
        lengths = [start + len(own) for start, own in zip(self.starts, self.parents, strict=True)]
        self.world = Paged(31, c, lengths, heads, d)
        self.ranges = list(zip(self.starts, lengths, strict=True))
        self.tree = tree_of(*zip(self.starts, self.parents, strict=True))
        self.step = replace(self.world.step(self.ranges), tree=self.tree)
        self.q = self.world.rows(self.world.q, self.ranges)

    def layer(self, ops: OpTable, kv: str) -> Any:
        """Pages with the text as text, and the drafts as a tree."""
        layer, world = self.world.layer(kv), self.world
        world.append(RefOps(), layer, [(0, start) for start in self.starts])
        drafts = (world.rows(arrays, self.ranges) for arrays in (world.k, world.v))
        ops.append(*drafts, layer, self.step)
        return layer


def check_attention(ops: OpTable, forest: Forest, kv: str, *, sparse: bool, tolerance: float) -> None:
    """Of each row over its own path, float64."""
    world, row, size = forest.world, 0, forest.world.sparse.block_size
    layer = forest.layer(ops, kv)
    selection = ops.select(forest.q, layer, forest.step) if sparse else None
    out = ops.attend(forest.q, layer, forest.step, selection)
    for s, (start, parents) in enumerate(zip(forest.starts, forest.parents, strict=True)):
        keys, values = rounded(world.k[s], kv), rounded(world.v[s], kv)
        for node in range(len(parents)):
            reads = [*range(start), *(start + other for other in path(parents, node))]
            if selection is not None:
                mask = as_mask(selection, row, (start + node) // size + 1)
            truth = np.zeros((world.hq, world.d))
            group = world.hq // world.hkv
            for h in range(world.hkv):
                tokens = [t for t in reads if selection is None or mask[h, t // size]]
                heads = slice(h * group, (h + 1) * group)
                truth[heads] = attention_truth(
                    world.q[s][start + node][heads],
                    keys[tokens][:, h : h + 1],
                    values[tokens][:, h : h + 1],
                    len(tokens) - 1,
                    None,
                    size,
                )
            error = np.linalg.norm(out[row].reshape(truth.shape) - truth) / np.linalg.norm(truth)
            assert error < tolerance, (s, node, error)
            row += 1


def check_selection(ops: OpTable, forest: Forest, kv: str, tolerance: float) -> None:
    """By the compressed keys that end before the tree; fixed blocks are those of a row's place."""
    world, c, row = forest.world, forest.world.sparse, 0
    selection = ops.select(forest.q, forest.layer(ops, kv), forest.step)
    group = world.hq // world.hkv
    for s, (start, parents) in enumerate(zip(forest.starts, forest.parents, strict=True)):
        keys = rounded(world.k[s], kv)
        queries = world.q[s][start:]
        if c.use_nope:
            keys = unrotated(keys, world.cos[: len(keys)], world.sin[: len(keys)])
            at = forest.tree.positions[row : row + len(parents)]
            queries = unrotated(queries, world.cos[at], world.sin[at])
        for node in range(len(parents)):
            p = start + node
            for h in range(world.hkv):
                scores = np.full(p // c.block_size + 1, -np.inf)
                if start:
                    seen = block_scores_truth(
                        queries[node, h * group : (h + 1) * group], keys[:, h], start - 1, c
                    )
                    scores[: len(seen)] = seen
                count = int(selection.counts[row, h])
                check_choice(selection.blocks[row, h, :count], scores, p, c, tolerance)
            row += 1


def check_pages(ops: OpTable, forest: Forest, kv: str) -> None:
    """Keys and values are stored as ever; compressed keys stay as they are."""
    before, after = forest.world.layer(kv), forest.layer(ops, kv)
    forest.world.append(RefOps(), before, [(0, start) for start in forest.starts])
    for name in ("kernels", "kernel_scales", "coarse", "coarse_scales"):
        if getattr(before, name) is not None:
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    plain = forest.world.filled(RefOps(), kv)
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(after, name), getattr(plain, name))
