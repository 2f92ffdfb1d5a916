"""Norm, embedding, rotary positions, gate, log-sum-exp and the best few: all but products and attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minicpm4.kernels.gpu.weights import DeviceMatrix

__all__ = ["embed", "log_sum_exp", "rms_norm", "rotary", "silu_mul", "top_k"]

SPAN = 4096  # columns of a row at a time, where a whole row may be long


@triton.jit
def _rms_norm(x, weight, eps, out, width, B: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    square = tl.zeros([B], tl.float32)
    for start in range(0, width, B):
        i = start + tl.arange(0, B)
        value = tl.load(x + row + i, mask=i < width, other=0.0).to(tl.float32)
        square += value * value
    root = 1.0 / tl.sqrt(tl.sum(square, axis=0) / width + eps)
    for start in range(0, width, B):
        i = start + tl.arange(0, B)
        value = tl.load(x + row + i, mask=i < width, other=0.0).to(tl.float32)
        value = value * root * tl.load(weight + i, mask=i < width, other=0.0)
        tl.store(out + row + i, value.to(out.dtype.element_ty), mask=i < width)


@triton.jit
def _embed(
    codes, scales, offsets, ids, out, columns, factor,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, OFFSETS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + n).to(tl.int64)
    i = tl.program_id(1) * B + tl.arange(0, B)
    seen = i < columns
    if BITS:
        PER: tl.constexpr = 8 // BITS
        unit, inner = i // (16 * PER), i % (16 * PER)
        byte = tl.load(codes + row * (columns // PER) + unit * 16 + inner % 16, mask=seen, other=0).to(
            tl.int32
        )
        if BITS == 8:
            byte = (byte & 0xFF) ^ 0x80
        value = ((byte >> (BITS * (inner // 16))) & ((1 << BITS) - 1)).to(tl.float32) - ZERO
        group = row * (columns // GROUP) + i // GROUP
        value *= tl.load(scales + group, mask=seen, other=0.0).to(tl.float32)
        if OFFSETS:
            value += tl.load(offsets + group, mask=seen, other=0.0).to(tl.float32)
    else:
        value = tl.load(codes + row * columns + i, mask=seen, other=0.0).to(tl.float32)
    tl.store(out + n * columns + i, (value * factor).to(out.dtype.element_ty), mask=seen)


@triton.jit
def _rotary(x, positions, cos, sin, heads, HALF: tl.constexpr, B: tl.constexpr):
    n, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, B)
    seen = i < HALF
    angle = tl.load(positions + n).to(tl.int64) * HALF + i
    c, s = tl.load(cos + angle, mask=seen, other=0.0), tl.load(sin + angle, mask=seen, other=0.0)
    at = x + (n * heads + head) * (2 * HALF) + i
    a = tl.load(at, mask=seen, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=seen, other=0.0).to(tl.float32)
    tl.store(at, (a * c - b * s).to(x.dtype.element_ty), mask=seen)
    tl.store(at + HALF, (b * c + a * s).to(x.dtype.element_ty), mask=seen)


@triton.jit
def _silu_mul(gate, up, out, count, stride, width, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    seen = i < count
    at = (i // width) * stride + i % width
    g = tl.load(gate + at, mask=seen, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=seen, other=0.0).to(tl.float32)
    tl.store(out + i, (g / (1.0 + tl.exp(-g)) * u).to(out.dtype.element_ty), mask=seen)


@triton.jit
def _log_sum_exp(x, out, width, B: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    top = tl.full([B], float("-inf"), tl.float32)
    total = tl.zeros([B], tl.float32)
    for start in range(0, width, B):
        i = start + tl.arange(0, B)
        value = tl.load(x + n * width + i, mask=i < width, other=float("-inf"))
        above = tl.maximum(top, value)
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(top - base) + tl.exp(value - base)
        top = above
    most = tl.max(top, axis=0)
    base = tl.where(most == float("-inf"), 0.0, most)
    tl.store(out + n, tl.log(tl.sum(total * tl.exp(top - base), axis=0)) + base)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis."""
    width = x.shape[-1]
    if x.numel():
        block = min(SPAN, triton.next_power_of_2(width))
        _rms_norm[(x.numel() // width,)](x, weight, eps, out, width, B=block, num_warps=4)
    return out


def embed(table: DeviceMatrix, ids: Tensor, factor: float, out: Tensor) -> Tensor:
    """``factor * table[ids]``, (n, columns)."""
    columns = table.shape[1]
    if ids.numel():
        block = min(1024, triton.next_power_of_2(columns))
        codes = table.codes.view(torch.uint8) if table.bits else table.codes
        _embed[(ids.shape[0], triton.cdiv(columns, block))](
            codes, table.scales, table.offsets, ids, out, columns, factor,
            BITS=table.bits, GROUP=table.spec.group_size, ZERO=table.zero,
            OFFSETS=table.offsets is not None, B=block, num_warps=4,
        )  # fmt: skip
    return out


def rotary(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (n, heads, d) in place."""
    n, heads, d = x.shape
    if x.numel():
        _rotary[(n, heads)](
            x, positions, cos, sin, heads, HALF=d // 2, B=triton.next_power_of_2(d // 2), num_warps=1
        )
    return x


def silu_mul(gate: Tensor, up: Tensor, out: Tensor) -> Tensor:
    """``gate * sigmoid(gate) * up``, (n, width); gate and up may be halves of wider rows."""
    if out.numel():
        block = 1024
        _silu_mul[(triton.cdiv(out.numel(), block),)](
            gate, up, out, out.numel(), gate.stride(0), out.shape[1], B=block, num_warps=4
        )
    return out


def log_sum_exp(x: Tensor) -> Tensor:
    """log(sum(exp(row))), (n,) float32."""
    out = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.numel():
        block = min(SPAN, triton.next_power_of_2(x.shape[1]))
        _log_sum_exp[(x.shape[0],)](x, out, x.shape[1], B=block, num_warps=8)
    return out


def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending, and their columns (int32), lower first on a tie.

    torch sorts: this runs once a token on a few rows, and only for log-probabilities and sampling.
    """
    values, columns = torch.sort(x, dim=1, descending=True, stable=True)
    k = min(k, x.shape[1])
    return values[:, :k].contiguous(), columns[:, :k].to(torch.int32)
