"""Linear layers in FP8 with block scaling: products in e4m3, gradients of weights in bf16.

As in the MiniCPM4 report (arXiv 2506.07900, section on FP8 training; the scheme is DeepSeek-V3's, arXiv
2412.19437, section 3.3): weights have a scale for each block of 128 x 128, activations and gradients one
for each 128 numbers of a row, found anew each time ("online"):

    scale = max|block| / 448,  code = e4m3(x / scale)
    forward          y  = x W'      x by rows along in,   W by blocks
    input gradient   dx = dy W      dy by rows along out, the same codes of W
    weight gradient  dW = dy' x     of numbers rounded to bf16, summed in float32

On a CPU the products are emulated, and in such a way that one answer is right: what two blocks of 128 codes
give is a sum of at most 44 bits, which float64 holds, whatever the order; it is rounded to float32 once,
times both scales, and added up in float32 from the first block to the last. A GPU of compute capability 9
or more multiplies for real (``torch.nn.functional.scaled_mm``, whose sums inside a block have fewer bits);
any other runs the emulation.

Shapes: n rows, k = in, m = out; blocks at the right and lower edge may be smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BLOCK", "E4M3_MAX", "Scaled", "fp8_linear", "product", "quantise_blocks", "quantise_rows"]

BLOCK = 128
E4M3_MAX = 448.0
_LEAST = 2.0**-100  # of a block's largest magnitude: below, x / scale could overflow


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scaled:
    """A matrix in FP8: ``codes`` (rows, columns) e4m3; ``scales`` float32 (rows or blocks, blocks)."""

    codes: Tensor
    scales: Tensor

    @property
    def by_rows(self) -> bool:
        """Whether each row has scales of its own."""
        return self.scales.shape[0] == self.codes.shape[0]

    def transposed(self) -> Scaled:
        """The transpose of a matrix that is scaled by blocks."""
        return Scaled(codes=self.codes.t(), scales=self.scales.t())

    def values(self) -> Tensor:
        """The numbers that are meant, float32."""
        rows, columns = self.codes.shape
        wide = self.scales.repeat_interleave(BLOCK, dim=1)[:, :columns]
        if not self.by_rows:
            wide = wide.repeat_interleave(BLOCK, dim=0)[:rows]
        return self.codes.float() * wide


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in FP8, differentiable; x (..., in), weight (out, in), bias (out,).

    The result has the type of ``x``, or under ``torch.autocast`` that of autocast.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        y: Tensor = _Fp8Linear.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
        if bias is not None:
            y = y + bias.float()
        return y.to(dtype).reshape(*x.shape[:-1], weight.shape[0])


class _Fp8Linear(torch.autograd.Function):
    """x (n, k), weight (m, k) to y (n, m) float32; keeps x in bf16 and the weight in FP8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        w = quantise_blocks(weight)
        ctx.save_for_backward(x.to(torch.bfloat16), w.codes, w.scales)
        ctx.types = x.dtype, weight.dtype
        return product(quantise_rows(x), w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None]:
        x, codes, scales = ctx.saved_tensors
        dy: Tensor = gradients[0]
        dx = dw = None
        with torch.autocast(dy.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                w = Scaled(codes=codes, scales=scales).transposed()
                dx = product(quantise_rows(dy), w).to(ctx.types[0])
            if ctx.needs_input_grad[1]:
                dw = _bf16_product(dy.to(torch.bfloat16).t(), x).to(ctx.types[1])
        return dx, dw


def _bf16_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of bf16 matrices, summed in float32; only on CUDA is the sum rounded to bf16."""
    return a @ b if a.is_cuda else a.float() @ b.float()


def quantise_rows(x: Tensor) -> Scaled:
    """x (n, k) with a scale for each 128 columns of each row."""
    rows, columns = x.shape
    wide = functional.pad(x.float(), (0, -columns % BLOCK)).reshape(rows, -1, BLOCK)
    codes, scales = _quantise(wide, (2,))
    return Scaled(codes=codes.reshape(rows, -1)[:, :columns], scales=scales[:, :, 0])


def quantise_blocks(w: Tensor) -> Scaled:
    """w (m, k) with a scale for each block of 128 x 128."""
    rows, columns = w.shape
    wide = functional.pad(w.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    split = wide.reshape(wide.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    codes, scales = _quantise(split, (1, 3))
    return Scaled(codes=codes.reshape(wide.shape)[:rows, :columns], scales=scales[:, 0, :, 0])


def _quantise(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    # A tensor, not a number, which CUDA would multiply by its rounded inverse.
    top = x.abs().amax(dim=dims, keepdim=True).clamp(min=_LEAST)
    scales = top / top.new_tensor(E4M3_MAX)
    # e4m3fn has no infinity: beyond 448 lies NaN, and x / scale may end an ulp above.
    codes = (x / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes, scales


def product(a: Scaled, b: Scaled) -> Tensor:
    """``a @ b.T``, float32 (n, m); a (n, k) scaled by rows, b (m, k) by blocks."""
    return _multiplied(a, b) if _has_units(a, b) else _emulated(a, b)


def _emulated(a: Scaled, b: Scaled) -> Tensor:
    n, m, k = a.codes.shape[0], b.codes.shape[0], a.codes.shape[1]
    total = torch.zeros(n, m, device=a.codes.device)
    for block, start in enumerate(range(0, k, BLOCK)):
        part = slice(start, start + BLOCK)
        dots = (a.codes[:, part].double() @ b.codes[:, part].double().t()).float()
        columns = b.scales[:, block].repeat_interleave(BLOCK)[:m]
        total += dots * (a.scales[:, block, None] * columns)
    return total


def _has_units(a: Scaled, b: Scaled) -> bool:
    """Whether this device has FP8 products, and they take these shapes."""
    if a.codes.device.type != "cuda" or not hasattr(functional, "scaled_mm"):
        return False
    whole = a.codes.shape[1] % BLOCK == 0 and b.codes.shape[0] % BLOCK == 0
    return whole and torch.cuda.get_device_capability(a.codes.device) >= (9, 0)


def _multiplied(a: Scaled, b: Scaled) -> Tensor:
    """``product`` by the GPU's own units, which round it to bf16. NOT RUN YET: no GPU has seen it."""
    n = a.codes.shape[0]
    # cuBLAS wants rows in fours, scales of rows along the columns, and the blocks of k of a weight in fours.
    codes = functional.pad(a.codes.view(torch.uint8), (0, 0, 0, -n % 4)).view(torch.float8_e4m3fn)
    rows = functional.pad(a.scales, (0, 0, 0, -n % 4)).t().contiguous().t()
    blocks = functional.pad(b.scales, (0, -b.scales.shape[1] % 4)).contiguous()
    kinds = functional.ScalingType
    found: Tensor = functional.scaled_mm(
        codes.contiguous(),
        b.codes.contiguous().t(),
        rows,
        kinds.BlockWise1x128,
        blocks.t(),
        kinds.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )
    return found[:n].float()
