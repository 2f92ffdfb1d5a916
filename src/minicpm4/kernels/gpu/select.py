"""The choice of blocks (InfLLM v2, steps 2 to 4; docs/architecture.md, "Sparse attention").

Three kernels, none of which writes a score of a compressed key to memory:

1. ``_denominator``: log-sum-exp of each query head's scores, over coarse keys (the LSE approximation)
   where a row sees any, over fine ones elsewhere; the keys of a long context are split among programs.
2. ``_block_scores``: weights, summed over the heads of a group; their largest over the compressed keys that
   overlap a block. Of blocks there are ``block_size / kernel_stride`` times fewer than of compressed keys:
   (n, hkv, blocks) float32 for the rows of one step.
3. ``_choose``: the best of a row by a search for the score of the last that fits, bit by bit; nothing is
   sorted.

A tile is R neighbouring rows of a sequence times the G heads of a group (G a power of two): R * G >= 16 rows
for the matrix units.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minicpm4.config import SparseConfig
from minicpm4.config.sparse import COARSE
from minicpm4.kernels.gpu.append import MOST, compress_paths
from minicpm4.kernels.gpu.tiles import splits_for, tile_rows

__all__ = ["select"]

TILE = 64  # compressed keys, and blocks, of a tile
NEVER = tl.constexpr(float("-inf"))


@triton.jit
def _visible(position, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """How many compressed keys a query at ``position`` sees."""
    return tl.where(position + 1 >= SIZE, (position + 1 - SIZE) // STRIDE + 1, 0)


@triton.jit
def _queries(
    q, first, count, head, hq, D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, G: tl.constexpr,
    GROUP: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Queries (R * G, BD) of a tile, and what their scores are to be multiplied by, (R * G,)."""
    m = tl.arange(0, R * G)
    i = tl.arange(0, BD)
    real = (m // G < count) & (m % G < GROUP)
    at = ((first + m // G).to(tl.int64) * hq + head * GROUP + m % G) * D
    x = tl.load(q + at[:, None] + i[None, :], mask=real[:, None] & (i < D)[None, :], other=0.0).to(tl.float32)
    scale = tl.zeros([R * G], tl.float32) + 1.0 / tl.sqrt(D * 1.0)
    if CODES:  # half precision has a small range: every query is scaled to a largest number of 1
        most = tl.max(tl.abs(x), axis=1)
        most = tl.where(most > 0, most, 1.0)
        x = (x / most[:, None]).to(tl.float16)
        scale *= most
    return x, scale, real


@triton.jit
def _scores(
    x, unit, store, scales, own, own_scales, nodes, edge, table, j, seen, head, hkv,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr, PAGE: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Scores (rows, keys) of the compressed keys j; ``seen``: which of these to read. Those of one row of a
    tree that end at ``edge`` or after it are its path's (``nodes``), in ``own``."""
    end = j * STRIDE + SIZE - 1
    i = tl.arange(0, BD)
    paged = seen
    if nodes is not None:
        paged = seen & (end < edge)
        ours = seen & (end >= edge)
    page = tl.load(table + end // PAGE, mask=paged, other=0).to(tl.int64)
    place = (page * hkv + head) * SLOTS + (end % PAGE) // STRIDE
    k = tl.load(store + place[None, :] * D + i[:, None], mask=paged[None, :] & (i < D)[:, None], other=0)
    if nodes is not None:
        node = tl.load(nodes + end - edge, mask=ours, other=0).to(tl.int64) * hkv + head
        k += tl.load(own + node[None, :] * D + i[:, None], mask=ours[None, :] & (i < D)[:, None], other=0)
    if CODES:
        scale = tl.load(scales + place, mask=paged, other=0.0)
        if nodes is not None:
            scale += tl.load(own_scales + node, mask=ours, other=0.0)
        s = tl.dot(x, k.to(tl.float16)) * unit[:, None] * scale[None, :]
    else:
        s = tl.dot(x, k.to(tl.float32), input_precision="ieee") * unit[:, None]
    return s


@triton.jit
def _running(
    top, total, x, unit, store, scales, own, own_scales, nodes, edge, table, limit, low, high, head, hkv,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr, PAGE: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, CODES: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Largest score and sum of exponentials over keys low to high - 1, below each row's ``limit``."""
    for start in range(low, high, BK):
        j = start + tl.arange(0, BK)
        s = _scores(
            x, unit, store, scales, own, own_scales, nodes, edge, table, j, j < high, head, hkv,
            SIZE, STRIDE, SLOTS, PAGE, D, BD, CODES,
        )  # fmt: skip
        s = tl.where(j[None, :] < limit[:, None], s, NEVER)
        above = tl.maximum(top, tl.max(s, axis=1))
        base = tl.where(above == NEVER, 0.0, above)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[:, None]), axis=1)
        top = above
    return top, total


@triton.jit
def _denominator(
    q, fine, fine_scales, coarse, coarse_scales, own_fine, own_fine_scales, own_coarse, own_coarse_scales,
    tiles, positions, bases, nodes, sequences, table, tops, totals,
    n, hq, hkv, max_pages,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr, COARSE_SLOTS: tl.constexpr,
    TIMES: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr,
    G: tl.constexpr, GROUP: tl.constexpr, CODES: tl.constexpr, APPROX: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    head, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    first, count = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if count > 0:
        x, unit, real = _queries(q, first, count, head, hq, D, BD, R, G, GROUP, CODES)
        own = table + tl.load(sequences + first).to(tl.int64) * max_pages
        start = tl.load(positions + first)
        position = start + tl.arange(0, R * G) // G
        last = start + count - 1
        path, edge = nodes, bases
        if nodes is not None:
            path, edge = nodes + first * MOST, tl.load(bases + first)
        top = tl.full([R * G], NEVER, tl.float32)
        total = tl.zeros([R * G], tl.float32)
        limit = _visible(position, SIZE, STRIDE)
        most = _visible(last, SIZE, STRIDE)
        if APPROX:
            seen = _visible(position, SIZE * TIMES, STRIDE * TIMES)
            limit = tl.where(seen > 0, 0, limit)
            most = tl.where(_visible(start, SIZE * TIMES, STRIDE * TIMES) > 0, 0, most)
            all_coarse = _visible(last, SIZE * TIMES, STRIDE * TIMES)
            part = tl.cdiv(tl.cdiv(all_coarse, splits), BK) * BK
            top, total = _running(
                top, total, x, unit, coarse, coarse_scales, own_coarse, own_coarse_scales, path, edge, own,
                seen, split * part, min(all_coarse, (split + 1) * part), head, hkv,
                SIZE * TIMES, STRIDE * TIMES, COARSE_SLOTS, PAGE, D, BD, CODES, BK,
            )  # fmt: skip
        part = tl.cdiv(tl.cdiv(most, splits), BK) * BK
        top, total = _running(
            top, total, x, unit, fine, fine_scales, own_fine, own_fine_scales, path, edge, own, limit,
            split * part, min(most, (split + 1) * part), head, hkv,
            SIZE, STRIDE, SLOTS, PAGE, D, BD, CODES, BK,
        )  # fmt: skip
        m = tl.arange(0, R * G)
        to = split * n * hq + (first + m // G) * hq + head * GROUP + m % G
        tl.store(tops + to, top, mask=real)
        tl.store(totals + to, total, mask=real)


@triton.jit
def _block_scores(
    q, fine, fine_scales, own_fine, own_fine_scales, tiles, positions, bases, nodes, sequences, table,
    tops, totals, out,
    n, hq, hkv, max_pages, splits, out_blocks,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr, PAGE: tl.constexpr, RATIO: tl.constexpr,
    OVERLAP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, G: tl.constexpr,
    GROUP: tl.constexpr, CODES: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    first, count = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    start = tl.load(positions + first, mask=count > 0, other=0)
    last = start + count - 1
    low = tl.program_id(2) * NB
    if (count > 0) & (low <= last // PAGE):
        x, unit, real = _queries(q, first, count, head, hq, D, BD, R, G, GROUP, CODES)
        own = table + tl.load(sequences + first).to(tl.int64) * max_pages
        m = tl.arange(0, R * G)
        at = (first + m // G) * hq + head * GROUP + m % G
        top = tl.full([R * G], NEVER, tl.float32)
        for split in range(splits):
            top = tl.maximum(top, tl.load(tops + split * n * hq + at, mask=real, other=NEVER))
        base = tl.where(top == NEVER, 0.0, top)
        total = tl.zeros([R * G], tl.float32)
        for split in range(splits):
            from_ = split * n * hq + at
            part = tl.load(totals + from_, mask=real, other=0.0)
            total += part * tl.exp(tl.load(tops + from_, mask=real, other=NEVER) - base)
        inverse = tl.where(real & (total > 0), 1.0 / tl.where(total > 0, total, 1.0), 0.0)
        row = tl.arange(0, R)
        limit = _visible(start + row, SIZE, STRIDE)
        most = _visible(last, SIZE, STRIDE)
        path, edge = nodes, bases
        if nodes is not None:
            path, edge = nodes + first * MOST, tl.load(bases + first)
        b = low + tl.arange(0, NB)
        best = tl.full([R, NB], -1.0, tl.float32)
        for t in range(RATIO + OVERLAP - 1):
            j = b * RATIO + t - (OVERLAP - 1)
            s = _scores(
                x, unit, fine, fine_scales, own_fine, own_fine_scales, path, edge, own, j,
                (j >= 0) & (j < most), head, hkv,
                SIZE, STRIDE, SLOTS, PAGE, D, BD, CODES,
            )  # fmt: skip
            # What a row does not see is hidden below; far above the sum it must not become infinite here.
            weight = tl.exp(tl.minimum(s - base[:, None], 80.0)) * inverse[:, None]
            weight = tl.sum(tl.reshape(weight, [R, G, NB]), axis=1)
            seen = (j >= 0)[None, :] & (j[None, :] < limit[:, None])
            best = tl.where(seen, tl.maximum(best, weight), best)
        to = ((first + row)[:, None].to(tl.int64) * hkv + head) * out_blocks + b[None, :]
        tl.store(out + to, best, mask=(row < count)[:, None] & (b < out_blocks)[None, :])


@triton.jit
def _choose(
    scores, positions, blocks, counts, hkv, width, dense_len,
    PAGE: tl.constexpr, INIT: tl.constexpr, LOCAL: tl.constexpr, TOP: tl.constexpr, BUDGET: tl.constexpr,
    LIST: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    n, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + n)
    own = position // PAGE
    to = (n * hkv + head) * BUDGET
    place = tl.arange(0, LIST)
    if position + 1 < dense_len:
        tl.store(blocks + to + place, tl.full([LIST], -1, tl.int32), mask=place < BUDGET)
        tl.store(counts + n * hkv + head, -1)
    else:
        b = tl.arange(0, B)
        fixed = ((b < INIT) | (b > own - LOCAL)) & (b <= own)
        open_ = (b <= own) & (fixed == 0)
        score = tl.load(scores + (n * hkv + head) * width + b, mask=open_ & (b < width), other=-1.0)
        # Floats of 0 and more are in the order of their bits. Blocks without a score come last.
        key = tl.where(score >= 0, score.to(tl.int32, bitcast=True) + 1, 0)
        key = tl.where(open_, key, -1)
        least = 0
        for step in range(31):
            higher = least | (1 << (30 - step))
            enough = tl.sum((key >= higher).to(tl.int32), axis=0) >= TOP
            least = tl.where(enough, higher, least)
        above = key > least
        left = TOP - tl.sum(above.to(tl.int32), axis=0)
        equal = (key == least).to(tl.int32)
        chosen = fixed | above | ((equal > 0) & (tl.cumsum(equal, axis=0) <= left))
        taken = chosen.to(tl.int32)
        count = tl.sum(taken, axis=0)
        tl.store(blocks + to + tl.cumsum(taken, axis=0) - 1, b, mask=chosen)
        tl.store(blocks + to + place, tl.full([LIST], -1, tl.int32), mask=(place >= count) & (place < BUDGET))
        tl.store(counts + n * hkv + head, count)


def select(
    q: Tensor,
    kv: Any,
    rows: Any,
    cos: Tensor,
    sin: Tensor,
    config: SparseConfig,
    blocks: Tensor,
    counts: Tensor,
) -> None:
    """Write the blocks (n, hkv, budget) that q (n, hq, d) chooses, and how many (n, hkv).

    With ``use_nope`` q must have been rotated back. ``rows``: see tiles.DeviceRows.
    """
    n, hq, d = q.shape
    if not n:
        return
    hkv, page, device = kv.num_kv_heads, kv.page_size, q.device
    group = hq // hkv
    heads = triton.next_power_of_2(group)
    tile = tile_rows(heads, rows.longest, wide=64)
    if rows.nodes is not None:  # each row of a tree has compressed keys of its own
        tile, heads = 1, max(16, heads)
    tiles = rows.tiles(tile)
    count = tiles.shape[0]
    width = rows.max_blocks
    splits = splits_for(count * hkv, width * config.compressed_per_block // (4 * TILE), device)
    tops, totals = (torch.empty((splits, n, hq), dtype=torch.float32, device=device) for _ in range(2))
    scores = torch.empty((n, hkv, width), dtype=torch.float32, device=device)
    approx = config.lse_approx and kv.coarse is not None
    shape: dict[str, Any] = {
        "SIZE": config.kernel_size, "STRIDE": config.kernel_stride, "SLOTS": kv.compressed.shape[2],
        "PAGE": page, "D": d, "BD": max(16, triton.next_power_of_2(d)), "R": tile, "G": heads,
        "GROUP": group, "CODES": kv.compressed_scales is not None,
    }  # fmt: skip
    fine: tuple[Tensor | None, Tensor | None] = (None, None)
    coarse = fine
    if rows.nodes is not None:
        fine = compress_paths(kv, rows, cos, sin, config, coarse=False)
        coarse = compress_paths(kv, rows, cos, sin, config, coarse=True) if approx else coarse
    place = (tiles, rows.angles, rows.bases, rows.nodes, rows.sequences, rows.page_table)
    max_pages = rows.page_table.shape[1]
    _denominator[(count, hkv, splits)](
        q, kv.compressed, kv.compressed_scales, kv.coarse, kv.coarse_scales, *fine, *coarse, *place, tops,
        totals, n, hq, hkv, max_pages, **shape, COARSE_SLOTS=kv.coarse.shape[2] if approx else 1,
        TIMES=COARSE, APPROX=approx, BK=TILE, num_warps=4, num_stages=3,
    )  # fmt: skip
    _block_scores[(count, hkv, triton.cdiv(width, TILE))](
        q, kv.compressed, kv.compressed_scales, *fine, *place, tops, totals, scores, n, hq, hkv, max_pages,
        splits, width,
        **shape, RATIO=config.compressed_per_block, OVERLAP=config.kernel_size // config.kernel_stride,
        NB=TILE, num_warps=4, num_stages=3,
    )  # fmt: skip
    _choose[(n, hkv)](
        scores, rows.angles, blocks, counts, hkv, width, config.dense_below,
        PAGE=page, INIT=config.init_blocks, LOCAL=config.local_blocks, TOP=config.topk - config.init_blocks,
        BUDGET=config.budget, LIST=triton.next_power_of_2(config.budget), B=triton.next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
