"""Softmax attention over pages of keys and values.

Two kernels, both reading a page (P tokens) at a time with running largest scores and sums:

- ``_attend_tiles``: tiles of R neighbouring rows x G heads read every page up to their own (dense);
- ``_attend_lists``: a row's G heads read the pages of its own list (InfLLM v2: each query chooses for itself,
  heads of a group alike); a count of -1 stands for every page up to the row's own.

Where there are few rows, the pages of a tile are split among programs, and ``_combine`` adds up what they
found.
Pages of bf16 are multiplied in the matrix units with queries and weights in bf16 and float32 sums, pages of
float32 exactly. A token behind a row never reaches it, not even as 0 * NaN.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minicpm4.kernels.gpu.products import dot
from minicpm4.kernels.gpu.tiles import splits_for, tile_rows
from minicpm4.kernels.step import Selection

__all__ = ["attend"]

NEVER = tl.constexpr(float("-inf"))
PIECE = 2  # pages that are worth a program of their own


@triton.jit
def _add_page(
    total, top, acc, x, keys, values, page, head, hkv, unit, token, limit, bits, base, drafts,
    NEAR: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Running sum, largest score and output after one page. Rows read tokens up to ``limit``, of a tree from
    ``base`` on those of their ``bits`` (None: all); NEAR: not all of them read the whole page. ``drafts``
    (None: all): which of the page's tokens are in blocks that were chosen."""
    i, t = tl.arange(0, BD), tl.arange(0, PAGE)
    at = (page.to(tl.int64) * hkv + head) * (D * PAGE)
    # Slots behind every row may never have been written.
    last = tl.max(limit, axis=0)
    written = (token + t) <= last
    k = tl.load(
        keys + at + i[:, None] * PAGE + t[None, :], mask=(i < D)[:, None] & written[None, :], other=0.0
    )
    v = tl.load(
        values + at + t[:, None] * D + i[None, :], mask=(i < D)[None, :] & written[:, None], other=0.0
    )
    EXACT: tl.constexpr = keys.dtype.element_ty == tl.float32
    s = dot(x, k, tl.zeros([x.shape[0], PAGE], tl.float32), EXACT) * unit
    if NEAR:
        seen = (token + t)[None, :] <= limit[:, None]
        if bits is not None:
            own = tl.minimum(tl.maximum(token + t - base, 0), 63).to(tl.int64)
            follows = ((bits[:, None] >> own[None, :]) & 1) != 0
            seen = seen & (follows | (token + t < base)[None, :])
        if drafts is not None:
            seen = seen & drafts[None, :]
        s = tl.where(seen, s, NEVER)
        # 0 * NaN is NaN: what is not finite is left out, and given to the rows that read it.
        wild = tl.max(tl.where(tl.abs(v.to(tl.float32)) < float("inf"), 0.0, 1.0), axis=1)
        v = tl.where(wild[:, None] > 0, 0.0, v.to(tl.float32)).to(v.dtype)
        spoilt = tl.max(tl.where(seen, wild[None, :], 0.0), axis=1) > 0
        acc = tl.where(spoilt[:, None], float("nan"), acc)
    above = tl.maximum(top, tl.max(s, axis=1))
    least = tl.where(above == NEVER, 0.0, above)
    p = tl.exp(s - least[:, None])
    old = tl.exp(top - least)
    total = total * old + tl.sum(p, axis=1)
    acc = dot(p, v, acc * old[:, None], EXACT)
    return total, above, acc


@triton.jit
def _write(
    out, sums, tops, total, top, acc, at, real, size, D: tl.constexpr, BD: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """The result of rows, ``at`` their places; SPLIT: what this part found of it."""
    i = tl.arange(0, BD)
    keep = real[:, None] & (i < D)[None, :]
    if SPLIT:
        at += tl.program_id(2).to(tl.int64) * size
        tl.store(out + at[:, None] * D + i[None, :], acc, mask=keep)
        tl.store(sums + at, total, mask=real)
        tl.store(tops + at, top, mask=real)
    else:
        y = acc / total[:, None]
        tl.store(out + at[:, None] * D + i[None, :], y.to(out.dtype.element_ty), mask=keep)


@triton.jit
def _attend_tiles(
    q, keys, values, tiles, positions, ancestors, bases, sequences, table, out, sums, tops,
    n, hq, hkv, max_pages, unit,
    PAGE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, G: tl.constexpr,
    GROUP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    # The last tiles of a chunk read most: they begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    first, count = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    if count > 0:
        m, i = tl.arange(0, R * G), tl.arange(0, BD)
        real = (m // G < count) & (m % G < GROUP)
        at = (first + m // G).to(tl.int64) * hq + head * GROUP + m % G
        x = tl.load(q + at[:, None] * D + i[None, :], mask=real[:, None] & (i < D)[None, :], other=0.0)
        x = x.to(keys.dtype.element_ty)
        own = table + tl.load(sequences + first).to(tl.int64) * max_pages
        start = tl.load(positions + first)
        limit = start + tl.minimum(m // G, count - 1)
        total = tl.zeros([R * G], tl.float32)
        top = tl.full([R * G], NEVER, tl.float32)
        acc = tl.zeros([R * G, BD], tl.float32)
        pages = (start + count - 1) // PAGE + 1
        part = tl.cdiv(pages, splits)
        low, high = split * part, min((split + 1) * part, pages)
        bits, base = ancestors, bases
        everyone = start + 1  # tokens that every row reads
        if ancestors is not None:
            bits, base = tl.load(ancestors + first + tl.minimum(m // G, count - 1)), tl.load(bases + first)
            everyone = base
        whole = min(high, everyone // PAGE)
        for b in range(low, whole):
            page = tl.load(own + b)
            total, top, acc = _add_page(
                total, top, acc, x, keys, values, page, head, hkv, unit, b * PAGE, limit,
                bits, base, None, False, PAGE, D, BD,
            )  # fmt: skip
        for b in range(max(low, whole), high):
            page = tl.load(own + b)
            total, top, acc = _add_page(
                total, top, acc, x, keys, values, page, head, hkv, unit, b * PAGE, limit,
                bits, base, None, True, PAGE, D, BD,
            )  # fmt: skip
        _write(out, sums, tops, total, top, acc, at, real, n * hq, D, BD, SPLIT)


@triton.jit
def _behind(chosen, listed, tail, LIST: tl.constexpr):
    """Of a list of blocks (``listed`` below 0: all are) those from ``tail`` on, a bit for each, and how many
    come before them."""
    entry = tl.arange(0, LIST)
    ids = tl.load(chosen + entry, mask=entry < listed, other=0)
    late = (entry < listed) & (ids >= tail)
    bit = tl.full([LIST], 1, tl.int64) << tl.where(late, ids - tail, 0).to(tl.int64)
    found = tl.sum(tl.where(late, bit, 0), axis=0)
    found = tl.where(listed < 0, tl.full([], -1, tl.int64), found)
    return found, tl.where(listed < 0, tail, listed - tl.sum(late.to(tl.int32), axis=0))


@triton.jit
def _attend_lists(
    q, keys, values, blocks, counts, positions, places, ancestors, bases, sequences, table, out, sums, tops,
    n, hq, hkv, max_pages, budget, unit,
    PAGE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr,
    SPLIT: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    split, splits = tl.program_id(2), tl.num_programs(2)
    g, i = tl.arange(0, G), tl.arange(0, BD)
    real = g < GROUP
    at = row.to(tl.int64) * hq + head * GROUP + g
    x = tl.load(q + at[:, None] * D + i[None, :], mask=real[:, None] & (i < D)[None, :], other=0.0)
    x = x.to(keys.dtype.element_ty)
    position = tl.load(positions + row)
    own = table + tl.load(sequences + row).to(tl.int64) * max_pages
    listed = tl.load(counts + row * hkv + head)
    chosen = blocks + (row.to(tl.int64) * hkv + head) * budget
    count = tl.where(listed < 0, position // PAGE + 1, listed)
    limit = position + tl.zeros([G], tl.int32)
    total = tl.zeros([G], tl.float32)
    top = tl.full([G], NEVER, tl.float32)
    acc = tl.zeros([G, BD], tl.float32)
    bits, base = ancestors, bases
    # Of a list all but the last are read to the end; the last is the row's own page.
    whole = count - 1
    if ancestors is not None:
        # Of a tree those are read so that end before it. Then come the pages in which its rows lie: of these,
        # text of the page that it begins in, and drafts, each in the block of its place in the text.
        bits, base = tl.load(ancestors + row) + tl.zeros([G], tl.int64), tl.load(bases + row)
        tail = base // PAGE
        open_, whole = _behind(chosen, listed, tail, LIST)
        count = whole + position // PAGE - tail + 1
    part = tl.cdiv(count, splits)
    low, high = split * part, min((split + 1) * part, count)
    for e in range(low, min(high, whole)):
        b = tl.load(chosen + e, mask=listed >= 0, other=0)
        b = tl.where(listed < 0, e, b)
        page = tl.load(own + b)
        total, top, acc = _add_page(
            total, top, acc, x, keys, values, page, head, hkv, unit, b * PAGE, limit,
            bits, base, None, False, PAGE, D, BD,
        )  # fmt: skip
    if ancestors is not None:
        for e in range(max(low, whole), high):
            b = tail + e - whole
            page = tl.load(own + b)
            token = b * PAGE + tl.arange(0, PAGE)
            draft = (token >= base) & (token <= position)
            place = tl.load(places + row - position + token, mask=draft, other=0)
            block = tl.where(draft, place, tail * PAGE) // PAGE - tail
            total, top, acc = _add_page(
                total, top, acc, x, keys, values, page, head, hkv, unit, b * PAGE, limit,
                bits, base, ((open_ >> block.to(tl.int64)) & 1) != 0, True, PAGE, D, BD,
            )  # fmt: skip
    elif (high == count) & (low < high):
        b = position // PAGE
        page = tl.load(own + b)
        total, top, acc = _add_page(
            total, top, acc, x, keys, values, page, head, hkv, unit, b * PAGE, limit,
            bits, base, None, True, PAGE, D, BD,
        )  # fmt: skip
    _write(out, sums, tops, total, top, acc, at, real, n * hq, D, BD, SPLIT)


@triton.jit
def _combine(acc, sums, tops, out, size, splits, D: tl.constexpr, BD: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BD)
    most = -float("inf")
    for split in range(splits):
        most = tl.maximum(most, tl.load(tops + split * size + at))
    total = 0.0
    y = tl.zeros([BD], tl.float32)
    for split in range(splits):
        place = split * size + at
        weight = tl.exp(tl.load(tops + place) - most)
        total += weight * tl.load(sums + place)
        y += weight * tl.load(acc + place * D + i, mask=i < D, other=0.0)
    tl.store(out + at * D + i, (y / total).to(out.dtype.element_ty), mask=i < D)


def attend(q: Tensor, kv: Any, rows: Any, selection: Selection | None, out: Tensor) -> Tensor:
    """Write attention of q (n, hq, d) to ``out`` (n, hq * d): over all tokens up to a row's own
    (``selection`` None), or those of its blocks. ``rows``: see tiles.DeviceRows."""
    n, hq, d = q.shape
    if not n:
        return out
    hkv = kv.num_kv_heads
    heads = triton.next_power_of_2(hq // hkv)
    tile = tile_rows(heads, rows.longest)
    tiles = rows.tiles(tile)
    longest = rows.max_blocks
    if selection is None:
        programs = tiles.shape[0]
    else:
        blocks: Any = selection.blocks
        programs, heads = n, max(16, heads)
        longest = longest if rows.dense else min(longest, blocks.shape[2])
    splits = splits_for(programs * hkv, longest // PIECE, q.device)
    parts: tuple[Tensor | None, ...] = out, None, None
    if splits > 1:
        size = (splits, n, hq)
        parts = tuple(
            torch.empty(shape, dtype=torch.float32, device=q.device) for shape in ((*size, d), size, size)
        )
    shape: dict[str, Any] = {
        "PAGE": kv.page_size, "D": d, "BD": max(16, triton.next_power_of_2(d)), "G": heads,
        "GROUP": hq // hkv, "SPLIT": splits > 1,
    }  # fmt: skip
    max_pages, unit = rows.page_table.shape[1], d**-0.5
    if selection is None:
        _attend_tiles[(programs, hkv, splits)](
            q, kv.keys, kv.values, tiles, rows.positions, rows.ancestors, rows.bases, rows.sequences,
            rows.page_table, *parts, n, hq, hkv, max_pages, unit, **shape, R=tile,
            num_warps=8 if tile * heads >= 128 else 4, num_stages=2,
        )  # fmt: skip
    else:
        _attend_lists[(programs, hkv, splits)](
            q, kv.keys, kv.values, blocks, selection.counts, rows.positions, rows.angles, rows.ancestors,
            rows.bases, rows.sequences, rows.page_table, *parts, n, hq, hkv, max_pages, blocks.shape[2], unit,
            **shape, LIST=triton.next_power_of_2(blocks.shape[2]), num_warps=4, num_stages=3,
        )  # fmt: skip
    if splits > 1:
        _combine[(n * hq,)](
            *parts, out, n * hq, splits, D=d, BD=triton.next_power_of_2(d), num_warps=1 if d <= 64 else 2
        )
    return out
