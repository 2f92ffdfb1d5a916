"""Products with weights, read as they are stored.

**One row** (``matvec``): memory alone should limit it, and integer instructions nearly do. A word holds four
bytes of codes; a code at bit p of the low half, put into the mantissa of 2^23, is the float 2^23 + code *
2^p. So a weight costs an AND-OR, a subtraction that takes away 2^23 and the zero point, both exactly, and a
multiplication by x * 2^-p: no shift and no conversion. The norm before a product is folded in: its weights
multiply x, its root divides the sum, and each program sums the squares of the x that it reads anyway.

**More rows** (``matmul``): codes become bf16 times scale in registers, products run in the matrix units with
float32 sums. Weights in float32 stay so, and their products are exact float32 ones.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minicpm4.kernels.gpu.products import dot
from minicpm4.kernels.gpu.weights import DeviceMatrix

__all__ = ["linear"]

MAGIC = tl.constexpr(0x4B000000)  # 2^23, whose last bit is 1
SIGNS = tl.constexpr(-2139062144)  # 0x80808080


@triton.jit
def _grouped_rows(
    x, norm, codes, scales, offsets, row, inside, columns,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, OFFSETS: tl.constexpr,
    NORM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Products of x with ``BN`` rows of grouped codes, and the sum of x * x."""
    PER: tl.constexpr = 8 // BITS
    UNIT: tl.constexpr = 16 * PER
    MASK: tl.constexpr = (1 << BITS) - 1
    WHOLE: tl.constexpr = GROUP % UNIT == 0
    words, groups = columns // (4 * PER), columns // GROUP
    total = tl.zeros([BN, BW], tl.float32)
    square = tl.zeros([BW], tl.float32)
    for start in range(0, words, BW):
        w = start + tl.arange(0, BW)
        seen = w < words
        both = inside[:, None] & seen[None, :]
        code = tl.load(codes + row[:, None] * words + w[None, :], mask=both, other=0)
        if BITS == 8:
            code = code ^ SIGNS
        column = (w // 4) * UNIT + (w % 4) * 4
        part = tl.zeros([BN, BW], tl.float32)
        sums = tl.zeros([BW], tl.float32)
        for f in tl.static_range(PER):
            if not WHOLE:
                field = tl.zeros([BN, BW], tl.float32)
                field_sums = tl.zeros([BW], tl.float32)
            for b in tl.static_range(4):
                place = 8 * (b % 2) + BITS * f
                word = code if b < 2 else code >> 16
                at = column + 16 * f + b
                value = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
                if NORM:
                    square += value * value
                    value *= tl.load(norm + at, mask=seen, other=0.0)
                bits = (word & (MASK << place)) | MAGIC
                number = bits.to(tl.float32, bitcast=True) - (8388608.0 + ZERO * (1 << place))
                if WHOLE:
                    part += number * (value * (1.0 / (1 << place)))[None, :]
                    sums += value
                else:
                    field += number * (value * (1.0 / (1 << place)))[None, :]
                    field_sums += value
            if not WHOLE:
                group = row[:, None] * groups + ((column + 16 * f) // GROUP)[None, :]
                field *= tl.load(scales + group, mask=both, other=0.0).to(tl.float32)
                if OFFSETS:
                    field += (
                        tl.load(offsets + group, mask=both, other=0.0).to(tl.float32) * field_sums[None, :]
                    )
                total += field
        if WHOLE:
            group = row[:, None] * groups + (column // GROUP)[None, :]
            part *= tl.load(scales + group, mask=both, other=0.0).to(tl.float32)
            if OFFSETS:
                part += tl.load(offsets + group, mask=both, other=0.0).to(tl.float32) * sums[None, :]
            total += part
    return tl.sum(total, axis=1), tl.sum(square, axis=0)


@triton.jit
def _float_rows(
    x, norm, codes, row, inside, columns, NORM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr
):  # fmt: skip
    """Products of x with ``BN`` rows of floats, and the sum of x * x."""
    total = tl.zeros([BN, BW], tl.float32)
    square = tl.zeros([BW], tl.float32)
    for start in range(0, columns, BW):
        at = start + tl.arange(0, BW)
        seen = at < columns
        value = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
        if NORM:
            square += value * value
            value *= tl.load(norm + at, mask=seen, other=0.0)
        both = inside[:, None] & seen[None, :]
        w = tl.load(codes + row[:, None] * columns + at[None, :], mask=both, other=0.0)
        total += w.to(tl.float32) * value[None, :]
    return tl.sum(total, axis=1), tl.sum(square, axis=0)


@triton.jit
def _rows(
    x, norm, codes, scales, offsets, row, inside, columns,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, OFFSETS: tl.constexpr,
    NORM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    if BITS:
        y, square = _grouped_rows(
            x, norm, codes, scales, offsets, row, inside, columns, BITS, GROUP, ZERO, OFFSETS, NORM, BN, BW
        )
    else:
        y, square = _float_rows(x, norm, codes, row, inside, columns, NORM, BN, BW)
    return y, square


@triton.jit
def _matvec(
    x, norm, eps, codes, scales, offsets, bias, residual, out, rows, columns, factor,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, OFFSETS: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """out = residual + factor * (matrix @ norm(x) + bias); GATED: silu(first half) * second half."""
    own = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = own < rows
    row = own.to(tl.int64)
    y, square = _rows(
        x, norm, codes, scales, offsets, row, inside, columns, BITS, GROUP, ZERO, OFFSETS, NORM, BN, BW
    )
    if NORM:
        root = 1.0 / tl.sqrt(square / columns + eps)
        y *= root
    if BIAS:
        y += tl.load(bias + own, mask=inside, other=0.0)
    if GATED:
        up, square = _rows(
            x, norm, codes, scales, offsets, row + rows, inside, columns,
            BITS, GROUP, ZERO, OFFSETS, NORM, BN, BW,
        )  # fmt: skip
        if NORM:
            up *= 1.0 / tl.sqrt(square / columns + eps)
        if BIAS:
            up += tl.load(bias + rows + own, mask=inside, other=0.0)
        y = y / (1.0 + tl.exp(-y)) * up
    if RESIDUAL:
        y = tl.load(residual + own, mask=inside, other=0.0).to(tl.float32) + factor * y
    tl.store(out + own, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _matmul(
    x, codes, scales, offsets, bias, residual, out, n, rows, columns, factor,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, OFFSETS: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """out (n, rows) = residual + factor * (x @ matrix.T + bias)."""
    # Programs that share weights run at about the same time, so that these are read from memory once.
    across, down = tl.cdiv(rows, BN), tl.cdiv(n, BM)
    band = tl.program_id(0) // (TOGETHER * across)
    first = band * TOGETHER
    height = min(down - first, TOGETHER)
    inner = tl.program_id(0) % (TOGETHER * across)
    m = (first + inner % height) * BM + tl.arange(0, BM)
    r = (inner // height) * BN + tl.arange(0, BN)
    m_in, r_in = m < n, r < rows
    m64, r64 = m.to(tl.int64), r.to(tl.int64)
    total = tl.zeros([BM, BN], tl.float32)
    if BITS:
        PER: tl.constexpr = 8 // BITS
        BB: tl.constexpr = BK // PER  # bytes of a row at a time
        MASK: tl.constexpr = (1 << BITS) - 1
        width, groups = columns // PER, columns // GROUP
        for start in range(0, width, BB):
            byte = start + tl.arange(0, BB)
            seen = byte < width
            both = seen[:, None] & r_in[None, :]
            code = tl.load(codes + r64[None, :] * width + byte[:, None], mask=both, other=0).to(tl.int32)
            if BITS == 8:
                code = (code & 0xFF) ^ 0x80
            for f in tl.static_range(PER):
                at = (byte // 16) * (16 * PER) + byte % 16 + 16 * f
                group = r64[None, :] * groups + (at // GROUP)[:, None]
                w = ((code >> (BITS * f)) & MASK).to(tl.float32) - ZERO
                w *= tl.load(scales + group, mask=both, other=0.0).to(tl.float32)
                if OFFSETS:
                    w += tl.load(offsets + group, mask=both, other=0.0).to(tl.float32)
                a = tl.load(
                    x + m64[:, None] * columns + at[None, :], mask=m_in[:, None] & seen[None, :], other=0.0
                )
                total = dot(a, w, total, False)
    else:
        for start in range(0, columns, BK):
            at = start + tl.arange(0, BK)
            seen = at < columns
            w = tl.load(
                codes + r64[None, :] * columns + at[:, None], mask=seen[:, None] & r_in[None, :], other=0.0
            )
            a = tl.load(
                x + m64[:, None] * columns + at[None, :], mask=m_in[:, None] & seen[None, :], other=0.0
            )
            total = dot(a, w, total, codes.dtype.element_ty == tl.float32)
    if BIAS:
        total += tl.load(bias + r, mask=r_in, other=0.0)[None, :]
    place = m64[:, None] * rows + r[None, :]
    keep = m_in[:, None] & r_in[None, :]
    if RESIDUAL:
        total = tl.load(residual + place, mask=keep, other=0.0).to(tl.float32) + factor * total
    tl.store(out + place, total.to(out.dtype.element_ty), mask=keep)


def linear(
    x: Tensor,
    matrix: DeviceMatrix,
    out: Tensor,
    *,
    residual: Tensor | None = None,
    factor: float = 1.0,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
) -> Tensor:
    """Write ``x @ matrix.T + bias`` (n, rows) to ``out``, and return it.

    x (n, columns) of any float type, rows one after another. ``residual`` (n, rows), which may be ``out``:
    ``residual + factor * product`` instead. One row only: ``norm``, weights (columns,) and epsilon of an
    RMSNorm of x before; ``gated``: of y's halves silu(first) * second, (1, rows / 2).
    """
    n, (rows, columns) = x.shape[0], matrix.shape
    if not n or not rows:
        return out
    common: dict[str, Any] = {
        "BITS": matrix.bits,
        "GROUP": matrix.spec.group_size,
        "ZERO": matrix.zero,
        "OFFSETS": matrix.offsets is not None,
        "BIAS": matrix.bias is not None,
        "RESIDUAL": residual is not None,
    }
    parts = (matrix.codes, matrix.scales, matrix.offsets)
    if n == 1:
        made = rows // 2 if gated else rows
        bn, bw, warps = _matvec_shape(matrix)
        _matvec[(triton.cdiv(made, bn),)](
            x, norm[0] if norm else None, norm[1] if norm else 0.0, *parts, matrix.bias, residual, out,
            made, columns, factor,
            **common, NORM=norm is not None, GATED=gated, BN=bn, BW=bw, num_warps=warps,
        )  # fmt: skip
        return out
    assert norm is None and not gated, "norm and gate are folded into products of one row only"
    bm, bn, bk, warps, stages = _matmul_shape(n, matrix)
    codes = matrix.codes.view(torch.uint8) if matrix.bits else matrix.codes
    grid = (triton.cdiv(n, bm) * triton.cdiv(rows, bn),)
    _matmul[grid](
        x, codes, matrix.scales, matrix.offsets, matrix.bias, residual, out, n, rows, columns, factor,
        **common, BM=bm, BN=bn, BK=bk, TOGETHER=8, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _matvec_shape(matrix: DeviceMatrix) -> tuple[int, int, int]:
    """Rows, words (floats) of a row at a time, and warps of a program."""
    if not matrix.bits:
        return 4, min(1024, triton.next_power_of_2(matrix.shape[1])), 4
    words = matrix.shape[1] * matrix.bits // 32
    return 4, min(512, triton.next_power_of_2(words)), 4


def _matmul_shape(n: int, matrix: DeviceMatrix) -> tuple[int, int, int, int, int]:
    """Tile of rows of x, rows of the matrix and columns; warps; stages of the pipeline."""
    exact = matrix.codes.dtype == torch.float32
    bm = min(128, max(16, triton.next_power_of_2(n)))
    if exact:
        return min(bm, 64), 64, 32, 4, 2
    bk = 64 * (8 // matrix.bits if matrix.bits else 1)  # 64 codes of each field
    return (bm, 64, bk, 4, 4) if bm <= 32 else (bm, 128, bk, 8, 3)
