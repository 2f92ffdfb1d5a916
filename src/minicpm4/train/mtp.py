"""Multi-token prediction: a draft layer (``model/draft.py``) that learns the token after the next.

The loss of a step is next-token loss + lambda * this one (MiniCPM4 report, arXiv 2506.07900; DeepSeek-V3,
arXiv 2412.19437, section 2.2). Embeddings, final norm and head are the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minicpm4.config import ModelConfig
from minicpm4.data.batch import Batch
from minicpm4.kernels.layer_weights import Linear
from minicpm4.model.draft import LAYER, build_draft, draft
from minicpm4.model.forward import Compute
from minicpm4.train.extra_head import ExtraHead
from minicpm4.train.head_plan import MULTI_TOKEN
from minicpm4.train.model import DecoderLayer, Packed, TrainableModel, as_tensor, plant

__all__ = ["MultiToken", "second_targets"]


class MultiToken(ExtraHead):
    """The draft layer in training."""

    plan = MULTI_TOKEN

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(config, tensors)
        own = {n.removeprefix(LAYER): t for n, t in tensors.items() if n.startswith(LAYER)}
        for name, tensor in tensors.items():
            if not name.startswith(LAYER):
                plant(self, name, tensor)
        self.layers = nn.ModuleList([DecoderLayer(config, LAYER, own)])

    def forward(self, model: TrainableModel, batch: Packed, hidden: Tensor) -> Tensor:
        """Return h' (n, hidden).

        The last row of each document has no next token: what it gives is meaningless, and read by none.
        """
        ops, weights, step = model.ops, model.weights(), model.step(batch)
        ids: Any = step.ids
        following: Any = torch.cat([ids[1:], ids[-1:]])

        def run(compute: Compute, layer: Any, x: Any) -> Any:
            # fc's product is narrow under autocast, the residual stream is not. The module has its weights.
            return self.layers[0](x.to(hidden.dtype), compute, model.matrix, model.mode.recompute)

        given: Any = hidden
        vector: Any = self.get_parameter
        head = build_draft(self.config, vector, lambda name: self._linear(name, model))
        result: Any = draft(ops, weights, head, step, following, given, model.cache().layer(0), run)
        return result

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return second_targets(batch.targets, batch.cu_rows, batch.weight)

    def _linear(self, name: str, model: TrainableModel) -> Linear:
        weight: Any = model.matrix(f"{name}.weight", self.get_parameter(f"{name}.weight"))
        bias: Any = dict(self.named_parameters()).get(f"{name}.bias")
        return Linear(weight=weight, bias=bias)


def second_targets(
    targets: Any, cu_rows: Any, weight: Any = None, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """Targets (n,) and weights of the draft layer: those of the next row, -1 in the last row of each
    document."""
    place = device or torch.device("cpu")
    found = torch.roll(as_tensor(targets, place), -1)
    ends = as_tensor(cu_rows, place)[1:].long() - 1
    found[ends[ends >= 0]] = -1
    return found, None if weight is None else torch.roll(as_tensor(weight, place), -1)
