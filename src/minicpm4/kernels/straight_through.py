"""Rounding with a straight-through gradient, for training with weights as they will be packed.

The forward sees the rounded weight, the backward passes its gradient to the weight itself, as if rounding
were not there (BitNet, arXiv 2310.11453, section 2; BitCPM4: MiniCPM4 report, arXiv 2506.07900). Values are
EXACTLY those of ``formats/packing.pack_from_float``, float16 scales included: the arithmetic is that of
``formats/rounding.py``, which NumPy and torch, CPU and GPU, compute alike bit for bit.
So the packed export of a model has the very weights that it was trained with. Only scales over blocks of
rows (``BlockSpec``) have no counterpart there; their values are packed without loss, too, since each row of
a block is a group of its own.

Weights are not checked: a group that holds a NaN or an infinity becomes NaN, and so do the loss and the
trainer's guard. (``pack_from_float`` raises.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minicpm4.errors import ConfigError
from minicpm4.formats import rounding
from minicpm4.formats.quant import BlockSpec, QuantSpec

__all__ = ["fake_quantise", "rounded"]


def fake_quantise(w: Tensor, spec: QuantSpec) -> Tensor:
    """Return ``w`` (out, in) rounded to ``spec``; its gradient is passed on to ``w`` as it is.

    Computed in float32 whatever the type of ``w``, in which the result comes. Float kinds round to that type.
    Raises ConfigError when the columns do not fit ``spec``.
    """
    result: Tensor = _StraightThrough.apply(w, spec)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    """The identity with a rounded forward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, spec: QuantSpec) -> Tensor:
        return rounded(w, spec)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


@torch.no_grad()
def rounded(w: Tensor, spec: QuantSpec) -> Tensor:
    """``fake_quantise`` without a gradient."""
    row = spec.row
    if not row.group:
        return w.to(getattr(torch, row.dtype)).to(w.dtype)
    rows, columns = w.shape
    if not spec.fits(columns):
        raise ConfigError(f"{columns} columns do not fit weight format {spec}")
    groups = w.detach().float().reshape(rows, -1, spec.group_size)
    if isinstance(spec, BlockSpec):
        values = _ternary_blocks(groups, spec)
    else:
        values = _values(*row.rounded(torch, groups))
    return values.reshape(rows, columns).to(w.dtype)


def _values(numbers: Tensor, scales: Tensor) -> Tensor:
    # Adding zero turns -0 into 0, as integer codes do.
    return numbers.add_(0.0).mul_(scales[..., None])


def _ternary_blocks(groups: Tensor, spec: BlockSpec) -> Tensor:
    """``groups`` (rows, groups, group): one scale for each group of columns in each ``spec.rows`` rows."""
    (rows, across, group), block, row = groups.shape, spec.rows, spec.row
    blocks = -(-rows // block)
    padded = torch.nn.functional.pad(groups, (0, 0, 0, 0, 0, blocks * block - rows))
    square = padded.reshape(blocks, block, across, group).transpose(1, 2).reshape(blocks, across, -1)
    count = torch.full((blocks, 1), float(block * group), device=groups.device)
    count[-1] = float((rows - (blocks - 1) * block) * group)
    values = _values(*rounding.ternary(torch, square, row.least, row.most, count))
    return values.reshape(blocks, across, block, group).transpose(1, 2).reshape(-1, across, group)[:rows]
