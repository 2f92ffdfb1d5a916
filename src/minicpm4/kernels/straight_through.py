"""Rounding with a straight-through gradient, for training with weights as they will be packed.

The forward sees the rounded weight, the backward passes its gradient to the weight itself, as if rounding
were not there (BitNet, arXiv 2310.11453, section 2; BitCPM4: MiniCPM4 report, arXiv 2506.07900). Values are
EXACTLY those of ``formats/packing.pack_from_float``, float16 scales included: the same float32 operations
in the same order as ``formats/rounding.py``, which NumPy and torch, CPU and GPU, compute alike bit for bit.
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
from minicpm4.formats.quant import GROUPED_KINDS, ROW_MULTIPLE, QuantSpec
from minicpm4.formats.rounding import F16_MAX, INT4_TRIES, BlockSpec, group_sum

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
    if spec.kind not in GROUPED_KINDS:
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[spec.kind]
        return w.to(kind).to(w.dtype)
    rows, columns = w.shape
    group = spec.group_size
    if columns % group or columns % ROW_MULTIPLE[spec.kind]:
        raise ConfigError(f"{columns} columns do not fit weight format {spec}")
    groups = w.detach().float().reshape(rows, -1, group)
    if isinstance(spec, BlockSpec):
        values = _ternary_blocks(groups, spec.rows)
    else:
        values = {"int8": _int8, "int4": _int4, "ternary": _ternary}[spec.kind](groups)
    return values.reshape(rows, columns).to(w.dtype)


def _storable(scales: Tensor) -> Tensor:
    """Scales as they will be stored, as float32 (see formats/rounding.py)."""
    stored = scales.to(torch.float16)
    low = stored.float().abs() < scales.abs() * 0.999
    # One up in the bits is the next float16 away from zero, for either sign.
    away = (stored.view(torch.int16) + low.to(torch.int16)).view(torch.float16)
    return torch.where(scales.abs() > F16_MAX, scales, away.float())


def _codes(groups: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    tiny = scales.abs() < 1e-30
    inverse = torch.where(tiny, 0.0, 1.0 / torch.where(tiny, 1.0, scales))
    # Adding zero turns -0 into 0, as integer codes do.
    return (groups * inverse[..., None]).round_().clamp_(low, high).add_(0.0)


def _int8(groups: Tensor) -> Tensor:
    # A tensor, not a number, which CUDA would multiply by its rounded inverse.
    scales = _storable(groups.abs().amax(dim=2) / groups.new_tensor(127.0))
    return _codes(groups, scales, -127, 127).mul_(scales[..., None])


def _int4(groups: Tensor) -> Tensor:
    high, low = groups.amax(dim=2), groups.amin(dim=2)
    base = torch.where(high > -low, high, low) / -8.0 + 0.0
    best, best_error = groups, base
    for number, part in enumerate(INT4_TRIES):
        scales = _storable(base * part)
        values = _codes(groups, scales, -8, 7).mul_(scales[..., None])
        missed = values - groups
        error = group_sum(missed.mul_(missed))
        if number == 0:
            best, best_error = values, error
            continue
        better = error < best_error
        best = torch.where(better[..., None], values, best)
        best_error = torch.minimum(error, best_error)
    return best


def _ternary(groups: Tensor, count: Tensor | None = None) -> Tensor:
    """``count``: weights of each group where some are padding, broadcast over (rows, groups)."""
    size = groups.abs()
    top = size.amax(dim=2)
    already = ((size == 0) | (size == top[..., None])).all(dim=2)
    number = groups.new_tensor(float(groups.shape[2])) if count is None else count
    scales = _storable(torch.where(already, top, group_sum(size) / number))
    return _codes(groups, scales, -1, 1).mul_(scales[..., None])


def _ternary_blocks(groups: Tensor, block: int) -> Tensor:
    """``groups`` (rows, groups, group): one scale for each group of columns in each ``block`` rows."""
    rows, across, group = groups.shape
    blocks = -(-rows // block)
    padded = torch.nn.functional.pad(groups, (0, 0, 0, 0, 0, blocks * block - rows))
    square = padded.reshape(blocks, block, across, group).transpose(1, 2).reshape(blocks, across, -1)
    count = torch.full((blocks, 1), float(block * group), device=groups.device)
    count[-1] = float((rows - (blocks - 1) * block) * group)
    values = _ternary(square, count)
    return values.reshape(blocks, across, block, group).transpose(1, 2).reshape(-1, across, group)[:rows]
