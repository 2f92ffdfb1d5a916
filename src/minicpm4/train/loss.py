"""Next-token cross entropy over a large vocabulary, without ever holding all logits.

For rows in chunks, with l = scale * hidden @ head.T:

    nll = log(sum(exp(l))) - l[target],   total = sum(weight * (nll + z_loss * log(sum(exp(l)))^2))

The gradient of a chunk is known as soon as its logits are; it is computed in the forward, so that nothing
is computed twice and the largest arrays are one chunk of logits and the head's gradient. z-loss (PaLM,
arXiv 2204.02311, section 5) keeps log(sum(exp(l))) near 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minicpm4.errors import ConfigError
from minicpm4.train.stages import CHUNK

__all__ = ["LossSum", "distribution_loss", "next_token_loss"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossSum:
    """Sums over the rows of a batch, scalars in float32 at least: divide by the count over all batches of a
    step.

    ``total`` has a gradient and contains the z-loss; ``nll`` and ``count`` (of weights) have none.
    """

    total: Tensor
    nll: Tensor
    count: Tensor


def next_token_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    weight: Tensor | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LossSum:
    """Loss of hidden (n, width) against ``targets`` (n,), rows below 0 left out; head (vocab, width).

    ``scale`` multiplies logits (``ModelConfig.logit_scale``); ``weight`` (n,) multiplies rows; ``chunk``:
    rows at a time. Products are in autocast's type, softmax and sums in float32 (float64 where hidden is).
    Raises ConfigError for a target that the vocabulary does not have.
    """
    kept = targets >= 0
    if not bool(kept.all()):
        rows = kept.nonzero()[:, 0]
        hidden, targets = hidden[rows], targets[rows]
        weight = None if weight is None else weight[rows]
    if targets.numel() and int(targets.max()) >= head.shape[0]:
        raise ConfigError(
            f"target {int(targets.max())} is outside the vocabulary of {head.shape[0]}",
            "the data must be tokenised with the model's tokenizer",
        )
    kind = hidden.device.type
    wide = torch.promote_types(hidden.dtype, torch.float32)
    dtype = torch.promote_types(hidden.dtype, head.dtype)
    if torch.is_autocast_enabled(kind) and wide == torch.float32:
        dtype = torch.get_autocast_dtype(kind)
    factor = torch.ones_like(targets, dtype=wide) if weight is None else weight.to(wide)
    return _summed(hidden, head, targets.long(), factor, (scale, z_loss, chunk, dtype))[0]


def distribution_loss(
    hidden: Tensor, head: Tensor, wanted: Tensor, weight: Tensor, scale: float = 1.0
) -> tuple[LossSum, Tensor]:
    """Cross entropy of hidden (n, width) against distributions ``wanted`` (n, vocab), rows multiplied by
    ``weight`` (n,), logits by ``scale``: with it a small model learns what another one finds likely. Also the
    likeliest token (n,) of each row."""
    dtype = torch.promote_types(hidden.dtype, head.dtype)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    return _summed(hidden, head, wanted, weight, (scale, 0.0, None, dtype))


def _summed(
    hidden: Tensor, head: Tensor, targets: Tensor, factor: Tensor, how: Any
) -> tuple[LossSum, Tensor]:
    """``targets``: tokens (n,), or distributions (n, vocab)."""
    scale, z_loss, chunk, dtype = how
    kind = hidden.device.type
    size = chunk or max(1, CHUNK["cpu" if kind == "cpu" else "cuda"] // head.shape[0])
    wanted = torch.is_grad_enabled()
    with torch.autocast(kind, enabled=False):
        how = (scale, z_loss, size, dtype, wanted)
        total, nll, best = _Loss.apply(hidden, head, targets, factor, how)  # type: ignore[no-untyped-call]
    return LossSum(total=total, nll=nll, count=factor.sum()), best


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weight: Tensor, how: Any) -> Any:
        scale, z_loss, size, dtype, wanted = how
        need_hidden, need_head = (wanted and need for need in ctx.needs_input_grad[:2])
        h, w = hidden.to(dtype), head.to(dtype)
        total, nll = weight.new_zeros(()), weight.new_zeros(())
        soft = targets.ndim == 2
        best = targets.new_zeros(len(targets) if soft else 0, dtype=torch.int64)
        dh = torch.zeros_like(hidden) if need_hidden else None
        dw = torch.zeros_like(head, dtype=weight.dtype) if need_head else None
        for rows in _chunks(len(targets), size):
            logits = (h[rows] @ w.t()).to(weight.dtype).mul_(scale)
            lse = torch.logsumexp(logits, dim=1)
            factor = weight[rows]
            if soft:
                target, found = targets[rows], (logits * targets[rows]).sum(1)
                best[rows] = logits.argmax(1)
            else:
                target = targets[rows, None]
                found = logits.gather(1, target)[:, 0]
            missed = (lse - found) * factor
            nll += missed.sum()
            total += (missed + z_loss * factor * lse.square()).sum()
            if not need_hidden and not need_head:
                continue
            slope = logits.sub_(lse[:, None]).exp_().mul_((factor * (1 + 2 * z_loss * lse))[:, None])
            if soft:
                slope.addcmul_(target, factor[:, None], value=-1.0)
            else:
                slope.scatter_add_(1, target, -factor[:, None])
            slope = slope.mul_(scale).to(dtype)
            if dh is not None:
                dh[rows] = (slope @ w).to(dh.dtype)
            if dw is not None:
                dw += slope.t() @ h[rows]
        ctx.save_for_backward(dh, dw)
        ctx.head_type = head.dtype
        ctx.mark_non_differentiable(nll, best)
        return total, nll, best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.saved_tensors
        up = gradients[0]
        dh = None if dh is None else dh * up.to(dh.dtype)
        dw = None if dw is None else (dw * up).to(ctx.head_type)
        return dh, dw, None, None, None


def _chunks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
