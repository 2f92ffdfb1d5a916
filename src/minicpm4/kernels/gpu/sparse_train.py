"""Block-sparse attention with gradients on a GPU: as kernels/sparse_grad.py, in three kernels.

Shapes and rules are those of that file. Forward and dQ go by row: the heads of a group (G of them, at least
16 rows for the matrix units) read the blocks of their row's list. dK and dV go by block, over the rows that
chose it: the (row, head, block) pairs are sorted by block, a block's rows are cut into chunks, and what a
chunk finds is added to the block's sums. These additions come in any order, so dK and dV may differ in their
last bits from run to run.

Products are in bf16 where q is, else exactly in float32; sums and softmax in float32. Nothing waits for the
device: of chunks there are at most ``pairs / CHUNK + blocks``, and those that are too many do nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minicpm4.kernels.gpu.products import dot

__all__ = ["gpu_sparse_attention"]

CHUNK = 256  # rows of a block that one program adds up
NEVER = tl.constexpr(float("-inf"))


@triton.jit
def _row_heads(x, row, head, hq, D: tl.constexpr, BD: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr):
    """Numbers (G, BD) of a row's heads, and which of them are real."""
    g, i = tl.arange(0, G), tl.arange(0, BD)
    at = (row.to(tl.int64) * hq + head * GROUP + g) * D
    real = (g < GROUP)[:, None] & (i < D)[None, :]
    return tl.load(x + at[:, None] + i[None, :], mask=real, other=0.0)


@triton.jit
def _block(x, block, head, hkv, B: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """A block's keys or values, (B, BD)."""
    t, i = tl.arange(0, B), tl.arange(0, BD)
    at = ((block * B + t).to(tl.int64) * hkv + head) * D
    return tl.load(x + at[:, None] + i[None, :], mask=(i < D)[None, :], other=0.0)


@triton.jit
def _forward(
    q, keys, values, blocks, last, y, lse, hq, hkv, budget, unit,
    B: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    EXACT: tl.constexpr = q.dtype.element_ty == tl.float32
    x = _row_heads(q, row, head, hq, D, BD, G, GROUP)
    limit = tl.load(last + row)
    chosen = blocks + (row.to(tl.int64) * hkv + head) * budget
    top = tl.full([G], NEVER, tl.float32)
    total = tl.zeros([G], tl.float32)
    acc = tl.zeros([G, BD], tl.float32)
    for e in range(budget):
        b = tl.load(chosen + e)
        k = _block(keys, b, head, hkv, B, D, BD)
        s = dot(x, tl.trans(k), tl.zeros([G, B], tl.float32), EXACT) * unit
        s = tl.where((b * B + tl.arange(0, B) <= limit)[None, :], s, NEVER)
        above = tl.maximum(top, tl.max(s, axis=1))
        p, old = tl.exp(s - above[:, None]), tl.exp(top - above)
        total = total * old + tl.sum(p, axis=1)
        acc = dot(p, _block(values, b, head, hkv, B, D, BD), acc * old[:, None], EXACT)
        top = above
    g, i = tl.arange(0, G), tl.arange(0, BD)
    at = row.to(tl.int64) * hq + head * GROUP + g
    real = g < GROUP
    to = y + at[:, None] * D + i[None, :]
    tl.store(to, (acc / total[:, None]).to(y.dtype.element_ty), mask=real[:, None] & (i < D)[None, :])
    tl.store(lse + at, top + tl.log(total), mask=real)


@triton.jit
def _grad_queries(
    q, keys, values, blocks, last, lse, slope, dy, dq, hq, hkv, budget, unit,
    B: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    EXACT: tl.constexpr = q.dtype.element_ty == tl.float32
    x = _row_heads(q, row, head, hq, D, BD, G, GROUP)
    dx = _row_heads(dy, row, head, hq, D, BD, G, GROUP)
    limit = tl.load(last + row)
    g, i = tl.arange(0, G), tl.arange(0, BD)
    at = row.to(tl.int64) * hq + head * GROUP + g
    real = g < GROUP
    above = tl.load(lse + at, mask=real, other=float("inf"))
    less = tl.load(slope + at, mask=real, other=0.0)
    chosen = blocks + (row.to(tl.int64) * hkv + head) * budget
    acc = tl.zeros([G, BD], tl.float32)
    for e in range(budget):
        b = tl.load(chosen + e)
        k = _block(keys, b, head, hkv, B, D, BD)
        v = _block(values, b, head, hkv, B, D, BD)
        s = dot(x, tl.trans(k), tl.zeros([G, B], tl.float32), EXACT) * unit
        seen = (b * B + tl.arange(0, B) <= limit)[None, :] & real[:, None]
        p = tl.where(seen, tl.exp(s - above[:, None]), 0.0)
        ds = p * (dot(dx, tl.trans(v), tl.zeros([G, B], tl.float32), EXACT) - less[:, None]) * unit
        acc = dot(ds, k, acc, EXACT)
    to = dq + at[:, None] * D + i[None, :]
    tl.store(to, acc.to(dq.dtype.element_ty), mask=real[:, None] & (i < D)[None, :])


@triton.jit
def _grad_blocks(
    q, keys, values, last, lse, slope, dy, order, units, begins, ends, dk, dv, hq, hkv, num_blocks, budget,
    count, unit,
    B: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, G: tl.constexpr, GROUP: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    own = tl.load(units + tl.program_id(0))
    if own < count:
        EXACT: tl.constexpr = q.dtype.element_ty == tl.float32
        head, b = own // num_blocks, own % num_blocks
        k = _block(keys, b, head, hkv, B, D, BD)
        v = _block(values, b, head, hkv, B, D, BD)
        sum_k, sum_v = tl.zeros([B, BD], tl.float32), tl.zeros([B, BD], tl.float32)
        m, t, i = tl.arange(0, R * G), tl.arange(0, B), tl.arange(0, BD)
        begin, end = tl.load(begins + tl.program_id(0)), tl.load(ends + tl.program_id(0))
        for start in range(begin, end, R):
            place = start + m // G
            real = (place < end) & (m % G < GROUP)
            pair = tl.load(order + place, mask=place < end, other=0)
            row = pair // budget // hkv
            at = row * hq + head * GROUP + m % G
            whole = real[:, None] & (i < D)[None, :]
            x = tl.load(q + at[:, None] * D + i[None, :], mask=whole, other=0.0)
            dx = tl.load(dy + at[:, None] * D + i[None, :], mask=whole, other=0.0)
            above = tl.load(lse + at, mask=real, other=float("inf"))
            less = tl.load(slope + at, mask=real, other=0.0)
            limit = tl.load(last + row, mask=place < end, other=0)
            s = dot(x, tl.trans(k), tl.zeros([R * G, B], tl.float32), EXACT) * unit
            seen = ((b * B + t)[None, :] <= limit[:, None]) & real[:, None]
            p = tl.where(seen, tl.exp(s - above[:, None]), 0.0)
            sum_v = dot(tl.trans(p), dx, sum_v, EXACT)
            ds = p * (dot(dx, tl.trans(v), tl.zeros([R * G, B], tl.float32), EXACT) - less[:, None]) * unit
            sum_k = dot(tl.trans(ds), x, sum_k, EXACT)
        to = ((b * B + t).to(tl.int64) * hkv + head) * D
        keep = (i < D)[None, :] & (t >= 0)[:, None]
        tl.atomic_add(dk + to[:, None] + i[None, :], sum_k, mask=keep)
        tl.atomic_add(dv + to[:, None] + i[None, :], sum_v, mask=keep)


def gpu_sparse_attention(q: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, last: Tensor) -> Tensor:
    """``sparse_grad.sparse_attention`` on a GPU: float32 or bf16, not float64."""
    result: Tensor = _SparseAttention.apply(
        q.contiguous(), keys.contiguous(), values.contiguous(), blocks.contiguous(), last.contiguous()
    )
    return result


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, last: Tensor) -> Tensor:
        m, hq, d = q.shape
        y, lse = torch.empty_like(q), torch.empty((m, hq), dtype=torch.float32, device=q.device)
        hkv, budget = blocks.shape[1:]
        _forward[(m, hkv)](
            q, keys, values, blocks, last, y, lse, hq, hkv, budget, d**-0.5, **_shape(q, keys), num_warps=4,
            num_stages=2,
        )  # fmt: skip
        ctx.save_for_backward(q, keys, values, blocks, last, y, lse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        q, keys, values, blocks, last, y, lse = ctx.saved_tensors
        dy = gradients[0].to(q.dtype).contiguous()
        slope = (dy.float() * y.float()).sum(dim=2)
        (m, hq, d), (hkv, budget), count = q.shape, blocks.shape[1:], keys.shape[0]
        shape, unit = _shape(q, keys), d**-0.5
        dq = torch.empty_like(q)
        _grad_queries[(m, hkv)](
            q, keys, values, blocks, last, lse, slope, dy, dq, hq, hkv, budget, unit, **shape, num_warps=4,
            num_stages=2,
        )  # fmt: skip
        dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (keys, values))
        order, units, begins, ends = _chunks(blocks, count)
        rows = max(1, 64 // shape["G"])
        _grad_blocks[(units.numel(),)](
            q, keys, values, last, lse, slope, dy, order, units, begins, ends, dk, dv, hq, hkv, count, budget,
            hkv * count, unit, **shape, R=rows, num_warps=8 if d > 64 else 4, num_stages=1,
        )  # fmt: skip
        return dq, dk.to(keys.dtype), dv.to(values.dtype), None, None


def _shape(q: Tensor, keys: Tensor) -> dict[str, Any]:
    group, d = q.shape[1] // keys.shape[2], q.shape[2]
    return {
        "B": keys.shape[1],
        "D": d,
        "BD": max(16, triton.next_power_of_2(d)),
        "G": max(16, triton.next_power_of_2(group)),
        "GROUP": group,
    }


def _chunks(blocks: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs in the order of their units (unit = head * count + block); of each chunk its unit (the number of
    units: nothing to do), and where its pairs begin and end in that order."""
    hkv, device = blocks.shape[1], blocks.device
    heads = torch.arange(hkv, device=device)[:, None]
    number = (blocks.long() + heads * count).flatten()
    order = torch.sort(number, stable=True).indices
    ends = torch.bincount(number, minlength=hkv * count).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    chunks = (ends - starts + CHUNK - 1) // CHUNK
    after = chunks.cumsum(0)
    index = torch.arange(order.numel() // CHUNK + hkv * count, device=device)
    units = torch.searchsorted(after, index, right=True)
    known = units.clamp(max=hkv * count - 1)
    begins = starts[known] + (index - (after - chunks)[known]) * CHUNK
    return order, units, begins, torch.minimum(begins + CHUNK, ends[known])
