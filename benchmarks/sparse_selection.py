"""Do bounds by the smallest and largest key of a page (Quest, arXiv 2406.10774) choose better blocks than
mean keys?

At equal cost, by recall: the share of dense attention's mass in the chosen blocks, at queries of running text
and of a passage that stands a second time. A page of P tokens costs two vectors, a mean key one; so mean keys
of stride P / 2 are compared with pages of P. "best" chooses by that mass itself: what no way of choosing
whole blocks for a group of heads can exceed much. In NumPy, on keys of one dense reading.

    .venv/bin/python benchmarks/sparse_selection.py qwen2.5-coder-0.5b-instruct --length 8000 --json FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from commits import heading
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.engine.load import inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.evals.sparse import Reader, lay_out
from minicpm4.evals.sparse.reading import probes
from minicpm4.evals.sparse.recall import Recall, Watched, block_mass, far_blocks
from minicpm4.files import write_json
from minicpm4.kernels.ref import gather
from minicpm4.kernels.step import Array, Ints, KVLayer, Step

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
BUDGETS = ((8, 512), (16, 512), (32, 1024))  # topk, window
BLOCK = 64


def mean_scores(q: Doubles, keys: Doubles, positions: Ints, stride: int) -> Doubles:
    """Block scores (n, hkv, blocks) by mean keys of 2 * stride tokens, as in docs/architecture.md."""
    t = keys.shape[1]
    sums = np.concatenate([np.zeros((len(keys), 1, keys.shape[2])), np.cumsum(keys, axis=1)], axis=1)
    starts = np.arange(0, t - 2 * stride + 1, stride)
    means = (sums[:, starts + 2 * stride] - sums[:, starts]) / (2 * stride)
    scores = np.einsum("nhgd,hjd->nhgj", q, means) / np.sqrt(q.shape[-1])
    seen = starts + 2 * stride <= positions[:, None] + 1
    shared = _softmax(np.where(seen[:, None, None], scores, -np.inf)).sum(axis=2)
    blocks = -(-t // BLOCK)
    found = np.full((*shared.shape[:2], blocks), -np.inf)
    for j, start in enumerate(starts):  # a mean counts for every block that it overlaps
        for b in {start // BLOCK, (start + 2 * stride - 1) // BLOCK}:
            found[..., b] = np.maximum(found[..., b], shared[..., j])
    return found


def bound_scores(q: Doubles, keys: Doubles, positions: Ints, page: int) -> Doubles:
    """The same by bounds: of each dimension the larger of q times the smallest and q times the largest key of
    a whole page; softmax, sum over the group and maximum over a block as above."""
    pages = keys.shape[1] // page
    parts = keys[:, : pages * page].reshape(len(keys), pages, page, -1)
    low, high = parts.min(axis=2), parts.max(axis=2)
    up, down = np.maximum(q, 0), np.minimum(q, 0)
    scores = np.einsum("nhgd,hjd->nhgj", up, high) + np.einsum("nhgd,hjd->nhgj", down, low)
    seen = (np.arange(pages) + 1) * page <= positions[:, None] + 1
    shared = _softmax(np.where(seen[:, None, None], scores / np.sqrt(q.shape[-1]), -np.inf)).sum(axis=2)
    blocks = -(-keys.shape[1] // BLOCK)
    padded = np.full((*shared.shape[:2], blocks * (BLOCK // page)), -np.inf)
    padded[..., :pages] = shared
    return padded.reshape(*shared.shape[:2], blocks, -1).max(axis=-1)


def choose(scores: Doubles, positions: Ints, config: SparseConfig) -> Bools:
    """Blocks (n, hkv, blocks): those that are always read, and the best of the others."""
    b, own = np.arange(scores.shape[-1]), positions[:, None] // BLOCK
    far = far_blocks(positions, len(b), config)
    rank = np.argsort(np.where(far[:, None], -scores, np.inf), axis=-1, kind="stable")
    picked = np.zeros(scores.shape, bool)
    np.put_along_axis(picked, rank[..., : config.topk - config.init_blocks], True, axis=-1)
    return (picked & far[:, None]) | ((b <= own) & ~far)[:, None]


def _softmax(scores: Doubles) -> Doubles:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


class Compared(Watched):
    """Recalls by way of choosing and budget."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: dict[str, Recall] = {}

    def _look(self, layer: int, q: Array, kv: KVLayer, step: Step, rows: slice) -> None:
        positions = step.positions[rows]
        keys, _ = gather(kv, step.page_table[0], int(positions[-1]) + 1)
        mass = block_mass(q[rows], keys, positions, BLOCK)
        grouped = q[rows].astype(np.float64).reshape(len(positions), len(keys), -1, keys.shape[-1])
        ways = {"best": mass.reshape(len(positions), len(keys), -1, mass.shape[-1]).sum(axis=2)}
        for page in (64, 32, 16):
            ways[f"mean keys, stride {page // 2}"] = mean_scores(grouped, keys, positions, page // 2)
            ways[f"bounds, pages of {page}"] = bound_scores(grouped, keys, positions, page)
        for topk, window in BUDGETS:
            config = SparseConfig(topk=topk, window_size=window, dense_len=-1)
            far = far_blocks(positions, mass.shape[-1], config)
            for name, scores in ways.items():
                key = f"topk {topk}, window {window}: {name}"
                recall = self.found.setdefault(key, Recall(self._layers, mass.shape[1]))
                recall.add(layer, mass, choose(scores, positions, config), far)


def compare(model: str, length: int, text: str) -> Mapping[str, Any]:
    """Shares by name."""
    found = inspect(model, EngineOptions(context=length, max_batch=1))
    tokenizer = found.text.tokenizer
    ids = tokenizer.encode(text[: 16 * length], add_special_tokens=False, parse_special=False)
    layout = lay_out(tokenizer.with_prefix([]), ids, length)
    config = found.config
    sizes = config.num_hidden_layers, config.num_attention_heads
    watched = Compared(found.ops, *sizes, {}, probes(layout))
    Reader(found).losses(layout, None, watched=watched)
    shares = {name: one.as_dict() for name, one in watched.found.items()}
    return {name: {key: one[key] for key in ("mean", "far", "far_mass")} for name, one in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--length", type=int, default=8000)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from minicpm4.cli.options import texts_or_manual

    shares = compare(args.model, args.length, texts_or_manual([args.text] if args.text else []))
    for name, one in shares.items():
        print(f"{name}: {one['mean']:.1%} of all, {one['far']:.1%} of {one['far_mass']:.1%} far")
    if args.json:
        found = {**heading(), "model": args.model, "length": args.length, "recall": shares}
        write_json(args.json, found)


if __name__ == "__main__":
    main()
