"""Trees of drafts, and what every table that reads them must do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Accepted, KVLayer, Tree
from tests.contract.paged import (
    SMALL,
    Paged,
    as_mask,
    attention_truth,
    block_scores_truth,
    check_choice,
    rounded,
    unrotated,
)

CHOICES: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "lse_approx": True, "use_nope": True, "init_blocks": 0},
    {**SMALL, "kernel_size": 40, "topk": 4},
]
"""Settings under which trees are tested."""


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

    def __init__(
        self,
        c: SparseConfig,
        heads: tuple[int, int],
        d: int,
        parents: Sequence[Sequence[int]] = (random_parents(3, 64), [-1], random_parents(4, 23)),
        starts: Sequence[int] | None = None,
    ) -> None:
        self.starts = starts or [7 * c.block_size - 5, 3 * c.block_size + 1, 0]
        self.parents = parents
        lengths = [start + len(own) for start, own in zip(self.starts, self.parents, strict=True)]
        self.world = Paged(31, c, lengths, heads, d)
        self.ranges = list(zip(self.starts, lengths, strict=True))
        self.tree = tree_of(*zip(self.starts, self.parents, strict=True))
        self.step = replace(self.world.step(self.ranges), tree=self.tree)
        self.q = self.world.rows(self.world.q, self.ranges)

    def texts(self) -> Iterator[tuple[int, int, list[int]]]:
        """Of each row its sequence, its node, and of the text that its path makes where each token lies."""
        for s, (start, parents) in enumerate(zip(self.starts, self.parents, strict=True)):
            for node in range(len(parents)):
                yield s, node, [*range(start), *(start + other for other in path(parents, node))]

    def layer(self, ops: OpTable, kv: str) -> Any:
        """Pages with the text as text, and the drafts as a tree."""
        layer, world = self.world.layer(kv), self.world
        world.append(RefOps(), layer, [(0, start) for start in self.starts])
        drafts = (world.rows(arrays, self.ranges) for arrays in (world.k, world.v))
        ops.append(*drafts, layer, self.step)
        return layer


def check_attention(ops: OpTable, forest: Forest, kv: str, *, sparse: bool, tolerance: float) -> None:
    """Of each row over the text that its path makes, float64."""
    world, size = forest.world, forest.world.sparse.block_size
    layer = forest.layer(ops, kv)
    selection = ops.select(forest.q, layer, forest.step) if sparse else None
    out = ops.attend(forest.q, layer, forest.step, selection)
    group = world.hq // world.hkv
    for row, (s, node, text) in enumerate(forest.texts()):
        keys, values = rounded(world.k[s][text], kv), rounded(world.v[s][text], kv)
        query, truth = world.q[s][text[-1]], np.zeros((world.hq, world.d))
        mask = np.ones((world.hkv, len(text)), bool)
        if selection is not None:
            mask = as_mask(selection, row, (len(text) - 1) // size + 1)[:, np.arange(len(text)) // size]
        for h in range(world.hkv):
            heads = slice(h * group, (h + 1) * group)
            k, v = (x[mask[h], h : h + 1] for x in (keys, values))
            truth[heads] = attention_truth(query[heads], k, v, len(k) - 1, None, size)
        error = np.linalg.norm(out[row].reshape(truth.shape) - truth) / np.linalg.norm(truth)
        assert error < tolerance, (s, node, error)


def check_selection(ops: OpTable, forest: Forest, kv: str, tolerance: float) -> None:
    """By the compressed keys of the text that a row's path makes, and its place in that."""
    world, c = forest.world, forest.world.sparse
    selection = ops.select(forest.q, forest.layer(ops, kv), forest.step)
    group = world.hq // world.hkv
    for row, (s, _, text) in enumerate(forest.texts()):
        keys, queries, p = rounded(world.k[s][text], kv), world.q[s][text[-1:]], len(text) - 1
        if c.is_dense_at(p):
            assert (selection.counts[row] == -1).all()
            continue
        if c.use_nope:
            keys = unrotated(keys, world.cos[: p + 1], world.sin[: p + 1])
            queries = unrotated(queries, world.cos[p : p + 1], world.sin[p : p + 1])
        for h in range(world.hkv):
            scores = block_scores_truth(queries[0, h * group : (h + 1) * group], keys[:, h], p, c)
            count = int(selection.counts[row, h])
            check_choice(selection.blocks[row, h, :count], scores, p, c, tolerance)


def check_decoded(ops: OpTable, forest: Forest, kv: str, tolerance: float = 0.0) -> int:
    """Every row chooses the very blocks that its path chooses, decoded one token at a time, and reads the
    same; returns how many rows choose among blocks."""
    world, layer = forest.world, forest.layer(ops, kv)
    chosen = ops.select(forest.q, layer, forest.step)
    out, everything = (ops.attend(forest.q, layer, forest.step, s) for s in (chosen, None))
    before = world.layer(kv)
    world.append(ops, before, [(0, start) for start in forest.starts])
    choosing = 0
    for row, (s, node, text) in enumerate(forest.texts()):
        start = forest.starts[s]
        plain = KVLayer(**{name: array.copy() for name, array in stored(before).items()})
        for at in range(start, len(text)):
            step = world.step([(at, at + (j == s)) for j in range(len(forest.starts))])
            k, v, q = (x[s][text[at] : text[at] + 1] for x in (world.k, world.v, world.q))
            ops.append(k, v, plain, step)
        wanted = ops.select(q, plain, step)
        np.testing.assert_array_equal(chosen.counts[row], wanted.counts[0], str((s, node)))
        np.testing.assert_array_equal(chosen.blocks[row], wanted.blocks[0], str((s, node)))
        for found, selection in ((out, wanted), (everything, None)):
            one = ops.attend(q, plain, step, selection)[0]
            error = np.linalg.norm(found[row] - one) / np.linalg.norm(one)
            assert error <= tolerance, (s, node, error)
        choosing += len(text) > world.sparse.first_choosing
    return choosing


def check_pages(ops: OpTable, forest: Forest, kv: str) -> None:
    """Keys and values are stored as ever; compressed keys stay as they are."""
    before, after = forest.world.layer(kv), forest.layer(ops, kv)
    forest.world.append(RefOps(), before, [(0, start) for start in forest.starts])
    for name in ("compressed", "compressed_scales", "coarse", "coarse_scales"):
        if getattr(before, name) is not None:
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    plain = forest.world.filled(RefOps(), kv)
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(after, name), getattr(plain, name))


def check_settled(ops: OpTable, forest: Forest, kv: str, paths: Sequence[Sequence[int]]) -> None:
    """Pages hold what they would, had the accepted drafts been decoded one at a time, bit for bit; and
    nothing else has changed."""
    world, starts = forest.world, forest.starts
    settled = forest.layer(ops, kv)
    before = {name: array.copy() for name, array in _arrays(settled).items()}
    ops.settle(settled, forest.step, accepted(forest, paths))

    plain = world.layer(kv)
    world.append(RefOps(), plain, [(0, start) for start in starts])
    for s, (start, path) in enumerate(zip(starts, paths, strict=True)):
        for at, node in enumerate(path, start):
            step = world.step([(at, at + (j == s)) for j in range(len(starts))])
            k, v = (x[s][start + node : start + node + 1] for x in (world.k, world.v))
            ops.append(k, v, plain, step)
    for name, array in _arrays(settled).items():
        everything, moved = (_written(forest, name, paths, new) for new in (False, True))
        np.testing.assert_array_equal(array[everything], _arrays(plain)[name][everything], name)
        np.testing.assert_array_equal(array[~moved], before[name][~moved], name)


def accepted(forest: Forest, paths: Sequence[Sequence[int]]) -> Accepted:
    """``paths``, of each sequence some of its drafts."""
    rows = [first + node for first, path in zip(forest.step.cu_rows, paths, strict=False) for node in path]
    cu_rows = np.cumsum([0, *map(len, paths)]).astype(np.int32)
    return Accepted(rows=np.array(rows, np.int32), cu_rows=cu_rows)


def stored(layer: KVLayer) -> dict[str, Any]:
    """The arrays of pages that there are."""
    found = {f.name: getattr(layer, f.name) for f in fields(KVLayer) if f.init}
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def _arrays(layer: Any) -> dict[str, Any]:
    """Arrays of pages as (pages, slots, ...): one token, or one compressed key, a slot."""
    found = stored(layer)
    found["keys"] = found["keys"].swapaxes(2, 3)
    if found["values"].ndim == 5:
        paired = found["values"].swapaxes(3, 4)
        found["values"] = paired.reshape(*paired.shape[:2], -1, paired.shape[4])
    return {name: np.moveaxis(array, 2, 1) for name, array in found.items()}


def _written(forest: Forest, name: str, paths: Sequence[Sequence[int]], new: bool) -> Any:
    """Which places (pages, slots) of an array hold something of text and accepted drafts, or (``new``) of
    these alone."""
    c, world = forest.world.sparse, forest.world
    times = {"compressed": 1, "coarse": 4}.get(name.split("_")[0], 0)
    stride, size = (c.kernel_stride * times, c.kernel_size * times) if times else (1, 1)
    mask = np.zeros((world.num_pages, max(1, c.block_size // stride)), bool)
    for table, start, path in zip(world.tables, forest.starts, paths, strict=True):
        for end in range(start if new else 0, start + len(path)):
            if end + 1 >= size and (end + 1 - size) % stride == 0:
                mask[table[end // c.block_size], end % c.block_size // stride] = True
    return mask
