"""AdamW, and Muon for the layers' matrices, in one optimiser; clipping by the global norm.

Which rule a parameter gets depends on its name alone (``rule_of``): matrices inside layers are Muon's where
it is asked for; embeddings, head, norms and biases are always AdamW's. Every parameter has a factor of the
learning rate (muP's, ``train/mup.py``), and the rate itself is set before each step (``set_rate``): it is a
function of the step (``train/schedule.py``), no state.

AdamW (Loshchilov & Hutter, arXiv 1711.05101), with g the gradient, t the step from 1:

    w -= rate * decay * w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    w -= rate * factor * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): m = b m + (1 - b) g, then u = g + b (m - g)
(Nesterov), which Newton-Schulz steps bring near the orthogonal factor of its polar decomposition:

    w -= rate * decay * w;  w -= rate * factor * sqrt(max(1, out / in)) * orthogonal(u)

Weights decay by rate * decay, without the factor, so that muP's small factors do not switch decay off.
The update's spectral norm follows out / in as muP asks, so Muon's factor is 1 at any width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from minicpm4.config.strict import require
from minicpm4.errors import CheckpointError
from minicpm4.train.settings import STATES, OptimConfig
from minicpm4.train.stages import rule_of
from minicpm4.train.tensor_files import Lazy, fill

__all__ = ["Optimiser", "clip_gradients", "orthogonal", "rule_of"]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Optimiser(torch.optim.Optimizer):
    """Moves the parameters of ``named`` that have a gradient; one group each, in their order.

    ``factors``: of the learning rate, by name (1 where there is none). A parameter may be a DTensor
    (FSDP2): moments are sharded as it is, and Muon gathers one matrix at a time.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        config: OptimConfig,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.config = config
        groups = []
        for name, parameter in named:
            if parameter.requires_grad:
                groups.append(_group(name, parameter, config, (factors or {}).get(name, 1.0)))
        require(bool(groups), "no parameter asks for a gradient: there is nothing to train")
        super().__init__(groups, {"lr": 0.0, "rate": 0.0})

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps, before each parameter's factor."""
        for group in self.param_groups:
            group["rate"], group["lr"] = rate, rate * group["factor"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step. Parameters without a gradient stay, and so do their moments."""
        assert closure is None, "a closure is not supported"
        for group in self.param_groups:
            (parameter,) = group["params"]
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.int64)
                for name in STATES[group["rule"]]:
                    state[name] = torch.zeros_like(parameter)
            state["step"] += 1
            parameter.mul_(1 - group["rate"] * group["decay"])
            if group["rule"] == "muon":
                self._muon(parameter, state, group["lr"])
            else:
                self._adamw(parameter, state, group["lr"])

    def _adamw(self, parameter: Tensor, state: Mapping[str, Tensor], rate: float) -> None:
        c, t = self.config, int(state["step"])
        gradient = parameter.grad
        assert gradient is not None
        first, second = state["first"], state["second"]
        first.lerp_(gradient, 1 - c.beta1)
        second.mul_(c.beta2).addcmul_(gradient, gradient, value=1 - c.beta2)
        size = second.sqrt().div_(math.sqrt(1 - c.beta2**t)).add_(c.eps)
        parameter.addcdiv_(first, size, value=-rate / (1 - c.beta1**t))

    def _muon(self, parameter: Tensor, state: Mapping[str, Tensor], rate: float) -> None:
        gradient, momentum = parameter.grad, state["momentum"]
        assert gradient is not None
        momentum.lerp_(gradient, 1 - self.config.momentum)
        wanted = gradient.lerp(momentum, self.config.momentum)
        whole = wanted.full_tensor() if isinstance(wanted, DTensor) else wanted
        update = orthogonal(whole).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            # Every rank has computed the same: each takes its part without asking another.
            mesh, placements = parameter.device_mesh, parameter.placements
            update = distribute_tensor(update, mesh, placements, src_data_rank=None)
        scale = math.sqrt(max(1.0, parameter.shape[0] / parameter.shape[1]))
        parameter.add_(update, alpha=-rate * scale)

    def tensors(self) -> dict[str, Tensor]:
        """All moments and step counts by "parameter's name/what", for a checkpoint: the very tensors, not
        copies."""
        found = {}
        for group in self.param_groups:
            for what, value in self.state.get(group["params"][0], {}).items():
                found[f"{group['name']}/{what}"] = value
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor | Lazy]) -> None:
        """Take back what ``tensors`` gave: training goes on bit for bit as it would have.

        A DTensor parameter takes its part of a whole tensor. Raises CheckpointError for a tensor that
        belongs to no parameter, is missing or has another shape.
        """
        left = set(tensors)
        for group in self.param_groups:
            name, parameter = group["name"], group["params"][0]
            wanted = ("step", *STATES[group["rule"]])
            found = {what: tensors[f"{name}/{what}"] for what in wanted if f"{name}/{what}" in left}
            left -= {f"{name}/{what}" for what in found}
            if not found:
                self.state.pop(parameter, None)  # it has had no gradient yet
                continue
            for what in wanted:
                shape = torch.Size([]) if what == "step" else parameter.shape
                if what not in found or found[what].shape != shape:
                    had = tuple(found[what].shape) if what in found else "nothing"
                    raise CheckpointError(
                        f"the optimiser's {name}/{what} should have shape {tuple(shape)}, found is {had}",
                        "resume with the optimiser and model that the checkpoint was made with",
                    )
            self.state[parameter] = {what: _placed(value, parameter) for what, value in found.items()}
        if left:
            raise CheckpointError(
                f"the optimiser's state holds {len(left)} tensors of no parameter, such as {min(left)}",
                "resume with the optimiser and model that the checkpoint was made with",
            )


def _group(name: str, parameter: Tensor, config: OptimConfig, factor: float) -> dict[str, Any]:
    rule = rule_of(name, parameter.shape, config.kind)
    decays = parameter.ndim == 2 and ".layers." in f".{name}"
    if config.kind == "muon" and rule == "adamw":
        factor *= config.adamw_rate
    return {
        "params": [parameter],
        "name": name,
        "rule": rule,
        "factor": factor,
        "decay": config.weight_decay if decays else 0.0,
    }


def _placed(value: Tensor | Lazy, parameter: Tensor) -> Tensor:
    """A copy of ``value`` where and as ``parameter`` lies; of a count, on the CPU."""
    if not value.shape:
        return (value.read() if isinstance(value, Lazy) else value).clone()
    if isinstance(value, DTensor):
        return value.to(parameter.device, parameter.dtype, copy=True)
    found = torch.zeros_like(parameter)
    fill(found, value)
    return found


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U V' of ``matrix`` = U S V': singular values between about 0.7 and 1.2, zero for a zero matrix.

    Newton-Schulz iterations of a quintic, chosen to climb fast rather than to converge; in bf16 on CUDA,
    else in float32 or the matrix's own float64. A non-finite matrix gives NaN.
    """
    a, b, c = NEWTON_SCHULZ
    kind = torch.bfloat16 if matrix.is_cuda else torch.promote_types(matrix.dtype, torch.float32)
    x = matrix.to(kind)
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x  # the products are of the shorter side
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.t()
        x = a * x + (b * square + c * square @ square) @ x
    return x.t() if tall else x


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients so that their norm, taken over all at once, is at most ``limit`` (0: no limit).

    Returns the norm before. If it is not finite, gradients stay as they are: the caller must look at it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch.stack([_norm(g) for g in gradients])
    total = float(torch.linalg.vector_norm(norms))
    if limit > 0 and math.isfinite(total) and total > limit:
        for gradient in gradients:
            gradient.mul_(limit / total)
    return total


def _norm(gradient: Tensor) -> Tensor:
    kind = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=kind)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
