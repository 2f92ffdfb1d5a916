"""LoRA (arXiv 2106.09685): train a pair of narrow matrices beside each of some, which stay as they are.

The forward sees w + scale * b @ a with scale = alpha / rank; a (rank, in) begins random, b (out, rank)
zero, so that training starts from the model as it was. Where w is rounded or in FP8, the pair is neither.
``Lora`` is a module of its own, with the pairs' parameters alone: give the optimiser
``lora.named_parameters()``, save ``lora.state_dict()``. Exports merge the pairs (``train/export.py``).
"""

from __future__ import annotations

import torch
from torch import nn

from minicpm4.errors import ConfigError
from minicpm4.kernels.autograd import LowRank
from minicpm4.train.model import TrainableModel, new_tensor, plant
from minicpm4.train.settings import Adapter
from minicpm4.train.stages import fitting, pair_names, spec_of
from minicpm4.train.tensor_files import add

__all__ = ["Lora"]


class Lora(nn.Module):
    """Pairs beside the matrices of ``model`` that fit; the model's own parameters are frozen.

    Names are a matrix's with ``lora_A.weight`` and ``lora_B.weight`` instead of ``weight``, as PEFT has
    them. A pair depends on ``seed`` and its name alone. Raises ConfigError for a pattern that fits no
    matrix, and where there are pairs already.
    """

    def __init__(self, model: TrainableModel, adapter: Adapter, seed: int = 0) -> None:
        super().__init__()
        if model.low_rank:
            raise ConfigError("the model has low-rank pairs already", "merge them first")
        matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
        self.targets = fitting(list(matrices), adapter.targets, "lora target")
        for name in self.targets:
            rows, columns = matrices[name].shape
            first, second = pair_names(name)
            like = matrices[name]
            a = new_tensor(first, (adapter.rank, columns), seed, columns**-0.5)
            plant(self, first, a.to(like.device))
            plant(self, second, torch.zeros(rows, adapter.rank, device=like.device))
            pair = self.get_parameter(first), self.get_parameter(second)
            model.low_rank[name] = LowRank(a=pair[0], b=pair[1], scale=adapter.scale)
        model.requires_grad_(False)

    @torch.no_grad()
    def merge(self, model: TrainableModel) -> None:
        """Add the pairs to the model's parameters and take them away; its parameters can be trained again.

        Raises ConfigError where a matrix is rounded: it would be rounded again, with the pair in it.
        """
        matrices = dict(model.named_parameters())
        for name in self.targets:
            if spec_of(name, model.mode.rounding) is not None:
                raise ConfigError(
                    f"a pair cannot be merged into {name}, which is rounded",
                    "export the model, which merges into the rounded matrix, or end rounding first",
                )
        for name in self.targets:
            pair = model.low_rank.pop(name)
            add(matrices[name], pair.b @ pair.a, pair.scale)
        model.requires_grad_(True)
