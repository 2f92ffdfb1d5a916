"""Block-sparse attention (InfLLM v2) with gradients: the choice of blocks, and attention over what was
chosen.

Rules: docs/architecture.md, "Sparse attention"; truth: kernels/ref.py. One document at a time; positions
count from its first row. Shapes: n rows, m of them that choose, hq query and hkv key/value heads, g = hq /
hkv, d head size, B block size, budget blocks a row, N blocks of the document.

**Choice** (``select_blocks``): no gradient, scores of a few rows at a time.

**Attention** (``sparse_attention``): forward and backward by inverted selection. The (row, head, block)
triples, "pairs" of a row's head and a block, are sorted by block; a block's rows are cut into tiles of T,
and a tile is three or five small matrix products with the block's B keys and values. With x a row's queries
(g, d), s = x K' / sqrt(d) (g, B):

    forward     p = exp(s - shift), y += p V, sum += p;  then y / sum, lse = shift + log(sum)
    backward    p = exp(s - lse), ds = p * (dy V' - (dy . y)) / sqrt(d)
                dx += ds K, dK += ds' x, dV += p' dy

``shift`` may be any number near the largest s of a query head. Two scores that are at hand make a good
guess; where a sum shows it too low, the largest is found in a pass of its own, and the sums are made again.

Memory beside inputs and results: the sorted pairs (8 bytes each) until the backward, their blocks, and a few
tiles. Nothing is n x n, and nothing is B times the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.config import SparseConfig
from minicpm4.config.sparse import COARSE

__all__ = ["select_blocks", "sparse_attention"]

SCORES = {"cpu": 1 << 19, "cuda": 1 << 26}  # scores held at once, by device
TILES = (16, 64)  # rows of a tile, least and most
TOO_LARGE = 1e30  # a sum of exp(s - shift) above this says that shift was too low


# The choice of blocks


@torch.no_grad()
def select_blocks(q: Tensor, k: Tensor, config: SparseConfig) -> Tensor:
    """Blocks of the rows of a document from ``config.first_choosing`` on: (m, hkv, budget) int32, ascending.

    q (n, hq, d) and k (n, hkv, d) as they are to be scored: rotated, or with use_nope before rotation.
    Scores are in float32, in float64 where q is.
    """
    n, first = q.shape[0], config.first_choosing
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide) * q.shape[2] ** -0.5, k.to(wide)
    fine = _compressed(k, config, 1)
    coarse = _compressed(k, config, COARSE) if config.lse_approx else None
    rows = max(1, _limit(q) // (q.shape[1] * max(1, fine.shape[1])))
    parts = []
    for start in range(first, n, rows):
        place = torch.arange(start, min(start + rows, n), device=q.device)
        scores = _block_scores(q[start : start + rows], fine, coarse, place, config)
        parts.append(_choose(scores, place, config))
    return torch.cat(parts)


def _limit(x: Tensor) -> int:
    return SCORES["cpu" if x.device.type == "cpu" else "cuda"]


def _compressed(k: Tensor, config: SparseConfig, times: int) -> Tensor:
    """Compressed keys (hkv, count, d): means of keys, coarse ones with ``times`` = COARSE."""
    stride, width = config.kernel_stride * times, config.kernel_size // config.kernel_stride
    pieces = k.shape[0] // stride
    if pieces < width:
        return k.new_zeros(k.shape[1], 0, k.shape[2])
    means = k[: pieces * stride].unflatten(0, (pieces, stride)).mean(dim=1)
    return means.unfold(0, width, 1).mean(dim=-1).transpose(0, 1).contiguous()


def _visible(place: Tensor, config: SparseConfig, times: int = 1) -> Tensor:
    """How many compressed keys a query at ``place`` sees: those with j * stride + size <= place + 1."""
    stride, size = config.kernel_stride * times, config.kernel_size * times
    seen = torch.div(place + 1 - size, stride, rounding_mode="floor") + 1
    return seen.clamp(min=0)


def _scores(q: Tensor, compressed: Tensor, visible: Tensor) -> Tensor:
    """q . key of rows q (r, hq, d) in ascending order: (hkv, r, g, keys), -inf where not visible."""
    count = min(int(visible[-1]), compressed.shape[1])
    grouped = q.unflatten(1, (compressed.shape[0], -1)).transpose(0, 1)
    scores = grouped.flatten(1, 2) @ compressed[:, :count].transpose(1, 2)
    scores = scores.unflatten(1, grouped.shape[1:3])
    _hide(scores.transpose(1, 2), visible)
    return scores


def _hide(scores: Tensor, visible: Tensor) -> None:
    """Set scores (..., r, keys) of compressed keys that a row does not see to -inf."""
    seen_by_all = int(visible[0])
    hidden = torch.arange(seen_by_all, scores.shape[-1], device=scores.device) >= visible[:, None]
    scores[..., seen_by_all:].masked_fill_(hidden, -math.inf)


def _block_scores(
    q: Tensor, fine: Tensor, coarse: Tensor | None, place: Tensor, config: SparseConfig
) -> Tensor:
    """Steps 2 and 3 for rows at ``place``: (r, hkv, blocks), -inf where a block overlaps no visible
    kernel."""
    visible = _visible(place, config)
    scores = _scores(q, fine, visible)
    seen = _visible(place, config, COARSE)
    if coarse is None or not int(seen[-1]):
        total = torch.softmax(scores, dim=-1).sum(dim=2)
    else:
        lse = torch.logsumexp(_scores(q, coarse, seen), dim=-1, keepdim=True)
        if not int(seen[0]):
            fine_lse = torch.logsumexp(scores, dim=-1, keepdim=True)
            lse = torch.where((seen > 0)[:, None, None], lse, fine_lse)
        total = scores.sub_(lse).exp_().sum(dim=2)
    # Of rows that see no compressed key nothing was a number: everything is hidden.
    _hide(total, visible)
    count = total.shape[-1]
    ratio, overlap = config.compressed_per_block, config.kernel_size // config.kernel_stride
    blocks = int(place[-1]) // config.block_size + 1
    width = blocks * ratio + overlap - 1
    padded = functional.pad(total, (overlap - 1, max(0, width - (overlap - 1) - count)), value=-math.inf)
    return padded[..., :width].unfold(-1, ratio + overlap - 1, ratio).amax(dim=-1).transpose(0, 1)


def _choose(scores: Tensor, place: Tensor, config: SparseConfig) -> Tensor:
    """Step 4: the chosen blocks (r, hkv, budget) of rows that see more blocks than their budget."""
    b = torch.arange(scores.shape[-1], device=scores.device)
    own = (place // config.block_size)[:, None, None]
    fixed = ((b < config.init_blocks) | (b > own - config.local_blocks)) & (b <= own)
    # Scores of candidates are 0 or more, or -inf; what is not a number is the trainer's guard to find.
    ranked = scores.nan_to_num(nan=-1.0, neginf=-1.0).masked_fill(fixed | (b > own), -2.0)
    picks = config.topk - config.init_blocks
    chosen = fixed.expand_as(ranked)
    if picks:
        least = ranked.topk(picks, dim=-1).values[..., -1:]
        above, equal = ranked > least, ranked == least
        # Of equal ones the lower, as many as are left.
        left = picks - above.sum(dim=-1, keepdim=True)
        chosen = chosen | above | (equal & (equal.cumsum(dim=-1) <= left))
    found = chosen.nonzero()[:, 2].to(torch.int32)
    return found.reshape(*scores.shape[:2], config.budget)


# Attention over the chosen blocks


def sparse_attention(q: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, last: Tensor) -> Tensor:
    """Softmax attention, scale 1 / sqrt(d), of q (m, hq, d) over the tokens of chosen blocks up to ``last``.

    keys and values (N, B, hkv, d); blocks (m, hkv, budget) different ones in each row, ``last // B`` among
    them and none behind it; last (m,) ascending: the last token that a row reads. Result (m, hq, d), in q's
    type. Products, softmax and sums are in float32 (float64 where q is). Gradients for q, keys and values.
    """
    result: Tensor = _SparseAttention.apply(  # type: ignore[no-untyped-call]
        q, keys, values, blocks, last
    )
    return result


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, last: Tensor) -> Tensor:
        work = _Work.of(q, keys, values, last, _invert(blocks, keys.shape[0]))
        y, lse = _forward(work, blocks[:, :, 0])
        y = y.reshape(q.shape).to(q.dtype)
        ctx.save_for_backward(q, keys, values, last, y, lse, work.pairs.order, work.pairs.ends)
        ctx.budget = blocks.shape[2]
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        q, keys, values, last, y, lse, order, ends = ctx.saved_tensors
        work = _Work.of(q, keys, values, last, _Pairs(order=order, ends=ends, budget=ctx.budget))
        with torch.autocast(q.device.type, enabled=False):
            dq, dk, dv = _backward(work, y, lse, gradients[0])
        shape = (keys.shape[2], keys.shape[0], *keys.shape[1::2])
        dk, dv = (x.reshape(shape).permute(1, 2, 0, 3) for x in (dk, dv))
        return dq.reshape(q.shape).to(q.dtype), dk.to(keys.dtype), dv.to(values.dtype), None, None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pairs:
    """Pairs sorted by unit, unit = head * N + block; pair = (row * hkv + head) * budget + place in the
    row's list.

    ``order`` (pairs,): pair numbers, in a unit ascending; ``ends`` (units,): where each unit's pairs end in
    it.
    """

    order: Tensor
    ends: Tensor
    budget: int


def _invert(blocks: Tensor, count: int) -> _Pairs:
    hkv = blocks.shape[1]
    units = (blocks + torch.arange(hkv, dtype=blocks.dtype, device=blocks.device)[:, None] * count).flatten()
    order = torch.sort(units, stable=True).indices
    ends = torch.bincount(units, minlength=hkv * count).cumsum(0)
    return _Pairs(order=order, ends=ends, budget=blocks.shape[2])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Tiles:
    """A few tiles: ``unit`` (t,); ``head`` (t, T) numbers row * hkv + head, m * hkv where a tile is not
    full; ``pair`` (t, T) likewise with the number of pairs; ``near`` and ``hidden``: tiles of rows' own
    blocks, and what they may not read there."""

    unit: Tensor
    head: Tensor
    pair: Tensor
    near: Tensor
    hidden: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Work:
    """Inputs by head, in the type of products: q / sqrt(d) (m * hkv, g, d); keys and values (hkv * N, B,
    d)."""

    q: Tensor
    keys: Tensor
    values: Tensor
    last: Tensor
    pairs: _Pairs
    num_blocks: int
    scale: float

    @classmethod
    def of(cls, q: Tensor, keys: Tensor, values: Tensor, last: Tensor, pairs: _Pairs) -> _Work:
        hkv, wide = keys.shape[2], torch.promote_types(q.dtype, torch.float32)
        by_head = [x.permute(2, 0, 1, 3).flatten(0, 1).to(wide) for x in (keys, values)]
        return cls(
            q=q.reshape(q.shape[0] * hkv, -1, q.shape[2]).to(wide) * q.shape[2] ** -0.5,
            keys=by_head[0],
            values=by_head[1],
            last=last,
            pairs=pairs,
            num_blocks=keys.shape[0],
            scale=q.shape[2] ** -0.5,
        )

    def tiles(self) -> Iterator[_Tiles]:
        """All tiles, as many at a time as scores may be held."""
        ends, device = self.pairs.ends, self.q.device
        starts = functional.pad(ends, (1, 0))[:-1]
        rows = _tile_rows(self.pairs.order.numel(), ends.numel())
        number = (ends - starts + rows - 1) // rows
        unit = torch.repeat_interleave(torch.arange(ends.numel(), device=device), number)
        within = torch.arange(unit.numel(), device=device) - (number.cumsum(0) - number)[unit]
        begin = starts[unit] + within * rows
        step = max(1, _limit(self.q) // (rows * self.q.shape[1] * self.keys.shape[1]))
        for at in range(0, unit.numel(), step):
            part = slice(at, at + step)
            yield self._tiles(unit[part], begin[part], ends[unit[part]], rows)

    def _tiles(self, unit: Tensor, begin: Tensor, end: Tensor, rows: int) -> _Tiles:
        order, size = self.pairs.order, self.keys.shape[1]
        at = begin[:, None] + torch.arange(rows, device=unit.device)
        full = at < end[:, None]
        pair = order[at.clamp(max=order.numel() - 1)]
        head = torch.where(full, pair // self.pairs.budget, self.q.shape[0])
        # Rows of a unit ascend, so that those in the block itself come first.
        block = unit % self.num_blocks
        heads = self.q.shape[0] // self.last.numel()
        near = (self.last[head[:, 0] // heads] // size == block).nonzero()[:, 0]
        row = (head[near] // heads).clamp(max=self.last.numel() - 1)
        reach = self.last[row] - block[near, None] * size
        hidden = torch.arange(size, device=unit.device) > reach[..., None]
        return _Tiles(
            unit=unit, head=head, pair=torch.where(full, pair, order.numel()), near=near, hidden=hidden
        )

    def gather(self, x: Tensor, tiles: _Tiles) -> Tensor:
        """Rows of x (m * hkv, g, d) for each tile: (t, T * g, d). What a tile lacks is any row."""
        index = tiles.head.clamp(max=x.shape[0] - 1).flatten()
        return x.index_select(0, index).reshape(tiles.head.shape[0], -1, x.shape[2])

    def scores(self, x: Tensor, keys: Tensor, tiles: _Tiles) -> Tensor:
        """x K', (t, T * g, B): -inf where a row may not read."""
        s = torch.bmm(x, keys.transpose(1, 2))
        if tiles.near.numel():
            split = s.unflatten(1, (tiles.head.shape[1], -1))
            split[tiles.near] = split[tiles.near].masked_fill_(tiles.hidden[:, :, None], -math.inf)
        return s

    def weights(self, x: Tensor, keys: Tensor, above: Tensor, tiles: _Tiles) -> Tensor:
        """exp(x K' - above), (t, T * g, B): 0 where a row may not read and where a tile lacks a row."""
        s = self.scores(x, keys, tiles)
        return s.sub_(above[tiles.head].reshape(*s.shape[:2], 1)).exp_()

    def padded(self, x: Tensor, value: float) -> Tensor:
        """x (m * hkv, g) and a row of ``value`` for what tiles lack: exp(s - inf) adds nothing."""
        return functional.pad(x, (0, 0, 0, 1), value=value)

    def guess(self, first: Tensor) -> Tensor:
        """Scores near the largest: the better of a row's own token's and of its first block's first
        token's."""
        size, hkv = self.keys.shape[1], first.shape[1]
        tokens = self.keys.unflatten(0, (hkv, -1)).flatten(1, 2)
        own = tokens[:, self.last].transpose(0, 1)
        sink = tokens[torch.arange(hkv, device=first.device), first.long() * size]
        q = self.q.unflatten(0, (-1, hkv))
        scores = [torch.einsum("mhgd,mhd->mhg", q, x) for x in (own, sink)]
        return torch.maximum(*scores).flatten(0, 1)


def _tile_rows(pairs: int, units: int) -> int:
    """Rows of a tile: a power of two, such that few tiles are far from full."""
    wanted = max(1, pairs // (4 * units))
    return min(max(1 << (wanted.bit_length() - 1), TILES[0]), TILES[1])


def _forward(work: _Work, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (m * hkv, g, d) and lse (m * hkv, g); ``first`` (m, hkv): each row's first block."""
    shift = work.guess(first)
    y, total = _sums(work, shift)
    if not bool((total < TOO_LARGE).all()):
        shift = _largest(work, shift)
        y, total = _sums(work, shift)
    return y / total[..., None], shift + total.log()


def _sums(work: _Work, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of exp(s - shift) V, (m * hkv, g, d), and of exp(s - shift), (m * hkv, g)."""
    heads, g, d = work.q.shape
    y, total = work.q.new_zeros(heads + 1, g * d), work.q.new_zeros(heads + 1, g)
    above = work.padded(shift, math.inf)
    for tiles in work.tiles():
        index = tiles.head.flatten()
        p = work.weights(work.gather(work.q, tiles), work.keys[tiles.unit], above, tiles)
        total.index_add_(0, index, p.sum(dim=2).reshape(-1, g))
        y.index_add_(0, index, torch.bmm(p, work.values[tiles.unit]).reshape(-1, g * d))
    return y[:heads].reshape(heads, g, d), total[:heads]


def _largest(work: _Work, shift: Tensor) -> Tensor:
    """The largest score of each query head, (m * hkv, g)."""
    top = work.padded(shift, 0.0)
    for tiles in work.tiles():
        s = work.scores(work.gather(work.q, tiles), work.keys[tiles.unit], tiles)
        index = tiles.head.flatten()[:, None].expand(-1, top.shape[1])
        top.scatter_reduce_(0, index, s.amax(dim=2).reshape(index.shape), "amax")
    return top[:-1]


def _backward(work: _Work, y: Tensor, lse: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (m * hkv, g * d), keys and values (hkv * N, B * d)."""
    heads, g, d = work.q.shape
    dy = dy.reshape(work.q.shape).to(work.q.dtype)
    slope = work.padded((dy * y.reshape(dy.shape)).sum(dim=2), 0.0)
    above = work.padded(lse, math.inf)
    dq = dy.new_zeros(heads + 1, g * d)
    dk, dv = (torch.zeros_like(x).flatten(1) for x in (work.keys, work.values))
    for tiles in work.tiles():
        keys, values = work.keys[tiles.unit], work.values[tiles.unit]
        x, dx = work.gather(work.q, tiles), work.gather(dy, tiles)
        p = work.weights(x, keys, above, tiles)
        dv.index_add_(0, tiles.unit, torch.bmm(p.transpose(1, 2), dx).flatten(1))
        ds = torch.bmm(dx, values.transpose(1, 2))
        ds = ds.sub_(slope[tiles.head].reshape(*ds.shape[:2], 1)).mul_(p)
        dk.index_add_(0, tiles.unit, torch.bmm(ds.transpose(1, 2), x).flatten(1))
        dq.index_add_(0, tiles.head.flatten(), torch.bmm(ds, keys).reshape(-1, g * d))
    return dq[:heads].mul_(work.scale), dk, dv
