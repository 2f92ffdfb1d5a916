"""Sequences in scattered pages, and brute-force truths that share no code with the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.pages import page_arrays
from minicpm4.kernels.step import Array, KVLayer, Selection, Step

Ranges = Sequence[tuple[int, int]]

SMALL = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 16,
    "window_size": 32,
    "topk": 3,
    "dense_len": -1,
}
RELEASED = {"block_size": 64, "window_size": 128, "topk": 3, "dense_len": -1}


def config(base: dict[str, Any], **changes: Any) -> SparseConfig:
    return SparseConfig(**{**base, **changes})


class Paged:
    """Sequences of random keys, values and queries; pages full of NaN, ids shuffled among sequences."""

    def __init__(
        self, seed: int, sparse: SparseConfig, lengths: Sequence[int], heads: tuple[int, int], d: int
    ) -> None:
        rng = np.random.default_rng(seed)
        self.sparse, self.lengths, (self.hq, self.hkv), self.d = sparse, lengths, heads, d
        self.q = [rng.standard_normal((n, self.hq, d), np.float32) for n in lengths]
        self.k = [rng.standard_normal((n, self.hkv, d), np.float32) for n in lengths]
        self.v = [rng.standard_normal((n, self.hkv, d), np.float32) for n in lengths]
        needed = [-(-n // sparse.block_size) for n in lengths]
        self.num_pages = sum(needed) + 3
        ids = rng.permutation(self.num_pages).astype(np.int32)
        self.tables = np.full((len(lengths), max(needed)), -1, np.int32)
        for table, count, start in zip(self.tables, needed, np.cumsum([0, *needed]), strict=False):
            table[:count] = ids[start : start + count]
        angles = rng.uniform(0, 6, (max(lengths), d // 2))
        self.cos = (1.25 * np.cos(angles)).astype(np.float32)
        self.sin = (1.25 * np.sin(angles)).astype(np.float32)

    def layer(self, kv: str = "float32", *, sparse: bool = True) -> KVLayer:
        """Fresh pages in which every number, or its scale, is NaN."""
        c = self.sparse
        layout = page_arrays(
            kv, heads=self.hkv, d=self.d, page_size=c.block_size, sparse=c if sparse else None
        )
        nothing: dict[Any, Any] = {np.float32: np.nan, np.uint16: 0x7FC0, np.int16: -32768, np.int8: -128}
        return KVLayer(
            **{
                name: np.full((self.num_pages, *shape), nothing[dtype], dtype)
                for name, (shape, dtype) in layout.items()
            }
        )

    def step(self, ranges: Ranges | None = None, *, sparse: bool = True) -> Step:
        """The rows of tokens [start, stop) of each sequence; all of them without ``ranges``."""
        ranges = ranges or [(0, n) for n in self.lengths]
        positions = np.concatenate([np.arange(a, b) for a, b in ranges]).astype(np.int32)
        return Step(
            ids=np.zeros(len(positions), np.int32),
            positions=positions,
            cu_rows=np.cumsum([0, *[b - a for a, b in ranges]]).astype(np.int32),
            page_table=self.tables,
            cos=self.cos,
            sin=self.sin,
            sparse=self.sparse if sparse else None,
        )

    def rows(self, arrays: Sequence[Array], ranges: Ranges | None = None) -> Array:
        ranges = ranges or [(0, n) for n in self.lengths]
        return np.concatenate([x[a:b] for x, (a, b) in zip(arrays, ranges, strict=True)])

    def append(self, ops: OpTable, layer: KVLayer, ranges: Ranges | None = None) -> None:
        ops.append(self.rows(self.k, ranges), self.rows(self.v, ranges), layer, self.step(ranges))

    def filled(self, ops: OpTable, kv: str = "float32") -> KVLayer:
        layer = self.layer(kv)
        self.append(ops, layer)
        return layer


def rounded(x: Array, kv: str) -> Array:
    """x (..., d) as pages of type ``kv`` hold it, in float64: bf16 to nearest, ties to even; int8 with
    the largest of each d as 127."""
    if kv == "float32":
        return x.astype(np.float64)
    if kv == "int8":
        most = np.abs(x).max(axis=-1, keepdims=True)
        return np.rint(x * (np.float32(127) / most)) * (most / np.float32(127)).astype(np.float64)
    bits = x.view(np.uint32).astype(np.uint64)
    up = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return up.astype(np.uint32).view(np.float32).astype(np.float64)


def attention_truth(q: Array, k: Array, v: Array, position: int, blocks: Array | None, size: int) -> Array:
    """One query (hq, d) over the tokens at or before ``position`` in ``blocks`` (None: all); float64.

    k and v (n, hkv, d); blocks (hkv, number) boolean.
    """
    hq, d = q.shape
    group = hq // k.shape[1]
    out = np.zeros((hq, d))
    for h in range(k.shape[1]):
        tokens = np.arange(position + 1)
        if blocks is not None:
            tokens = tokens[blocks[h, tokens // size]]
        heads = slice(h * group, (h + 1) * group)
        scores = q[heads].astype(np.float64) @ k[tokens, h].T / np.sqrt(d)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[heads] = weights / weights.sum(axis=1, keepdims=True) @ v[tokens, h]
    return out


def beside_truth(
    world: Paged, out: Array, selection: Selection | None, kv: str, every: int, ranges: Ranges | None = None
) -> Iterator[tuple[Array, Array]]:
    """Rows of ``out``, each beside the truth (hq, d): every ``every``-th of a sequence's range (None: of all
    its tokens), and the last."""
    row, size = 0, world.sparse.block_size
    spans = ranges if ranges is not None else [(0, n) for n in world.lengths]
    for q, k, v, (a, b) in zip(world.q, world.k, world.v, spans, strict=True):
        keys, values = rounded(k, kv), rounded(v, kv)
        for p in {*range(a, b, every), b - 1}:
            blocks = None if selection is None else as_mask(selection, row + p - a, p // size + 1)
            truth = attention_truth(q[p], keys, values, p, blocks, size)
            yield out[row + p - a].reshape(truth.shape), truth
        row += b - a


def block_scores_truth(q: Array, k: Array, position: int, c: SparseConfig) -> Array:
    """InfLLM v2 steps 2 and 3, one query (group, d), keys (n, d) of one kv head: (blocks,) float64."""
    scores = _compressed_scores(q, k, position, c.kernel_size, c.kernel_stride)
    coarse = _compressed_scores(q, k, position, 4 * c.kernel_size, 4 * c.kernel_stride)
    base = coarse if c.lse_approx and coarse.shape[1] else scores
    result = np.full(position // c.block_size + 1, -np.inf)
    if scores.shape[1]:
        top = base.max(axis=1, keepdims=True)
        total = (np.exp(scores - top) / np.exp(base - top).sum(axis=1, keepdims=True)).sum(axis=0)
        for j, value in enumerate(total):
            first, last = j * c.kernel_stride, j * c.kernel_stride + c.kernel_size - 1
            for b in range(first // c.block_size, min(last // c.block_size, len(result) - 1) + 1):
                result[b] = max(result[b], value)
    return result


def _compressed_scores(q: Array, k: Array, position: int, size: int, stride: int) -> Array:
    means = [k[s : s + size].mean(axis=0) for s in range(0, position + 2 - size, stride)]
    return np.array([q.astype(np.float64) @ m for m in means]).reshape(-1, len(q)).T / np.sqrt(q.shape[1])


def check_choice(chosen: Array, scores: Array, position: int, c: SparseConfig, tolerance: float) -> None:
    """``chosen`` (ascending block ids) must follow step 4, up to scores ``tolerance`` (relative) apart."""
    own = position // c.block_size
    fixed = [b for b in range(own + 1) if b < c.init_blocks or b > own - c.local_blocks]
    others = [b for b in range(own + 1) if b not in fixed]
    best = sorted(others, key=lambda b: (-scores[b], b))[: c.topk - c.init_blocks]
    assert list(chosen) == sorted(set(chosen.tolist())), "not ascending"
    assert set(fixed) <= set(chosen.tolist()), "a fixed block is missing"
    picked = set(chosen.tolist()) - set(fixed)
    assert len(picked) == len(best) and picked <= set(others)
    for wrong, right in zip(sorted(picked - set(best)), sorted(set(best) - picked), strict=True):
        assert abs(scores[wrong] - scores[right]) <= tolerance * abs(scores[right]), (wrong, right)


def as_mask(selection: Selection, row: int, blocks: int) -> Array:
    """Chosen blocks of one row, (hkv, blocks) boolean."""
    mask = np.zeros((selection.counts.shape[1], blocks), bool)
    for h, count in enumerate(selection.counts[row]):
        mask[h, selection.blocks[row, h, :count] if count >= 0 else slice(None)] = True
    return mask


def chunks(length: int, size: int) -> list[tuple[int, int]]:
    return [(a, min(a + size, length)) for a in range(0, length, size)]


def unrotated(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate x (n, heads, d) back by the angles of its tokens, cos and sin (n, d / 2); float64."""
    half = x.shape[-1] // 2
    turn = cos.astype(np.complex128) + 1j * sin
    z = (x[..., :half] + 1j * x[..., half:].astype(np.float64)) / turn[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)
