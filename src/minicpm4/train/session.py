"""One process of a run: the model, its optimiser, and what a step does; sharded by FSDP2 under torchrun.

The loss of a step is the sum over all its tokens on all processes, divided by their number (that of extra
heads likewise): of the same pieces of documents any micro-batches and number of processes compute the same.
Which pieces they are ``train/stages.py`` says: without ``micro_tokens`` they depend on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from minicpm4.config import ModelConfig
from minicpm4.data.batch import Batch
from minicpm4.errors import CheckpointError
from minicpm4.train.extra_head import ExtraHead
from minicpm4.train.head_plan import heads_of
from minicpm4.train.hf_folder import write_folder
from minicpm4.train.lora import Lora
from minicpm4.train.model import Mode, TrainableModel, fresh_tensors, stored_tensors
from minicpm4.train.mtp import MultiToken
from minicpm4.train.mup import MuP
from minicpm4.train.optim import Optimiser, clip_gradients
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.saved import MOMENTS, PAIRS
from minicpm4.train.settings import Adapter
from minicpm4.train.stages import sparse_of, stage_config
from minicpm4.train.tensor_files import Stored, fill, gathered, write_tensors
from minicpm4.train.world import World

__all__ = ["Done", "TrainingSession", "World"]

HEAD_KINDS: tuple[type[ExtraHead], ...] = (MultiToken,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a step's gradients came from: means over all tokens that count. ``head_losses``: of the extra
    heads that the stage trains, by name."""

    loss: float
    head_losses: Mapping[str, float]
    gradient_norm: float
    tokens: int


class TrainingSession:
    """The model of ``recipe`` on its device. ``config``: of a new model. Raises ConfigError,
    CheckpointError."""

    def __init__(self, recipe: Recipe, config: ModelConfig | None, world: World) -> None:
        self.recipe, self.world = recipe, world
        self._mup = MuP(base_width=recipe.model.mup_width) if recipe.model.mup_width else None
        init = self._mup.init_std if self._mup else None
        if recipe.model.start:
            self.base, values = stored_tensors(recipe.model.start, recipe.model.ignore_fields)
        else:
            assert config is not None
            self.base, values = config, fresh_tensors(config, recipe.seed, init)
        self.model = TrainableModel.without_values(self.base)
        wanted = heads_of(recipe.stages)
        self.heads = [kind.without_values(self.base) for kind in HEAD_KINDS if kind.plan in wanted]
        if world.size > 1:
            self._shard()
        # Only now, so that no process ever holds more than its part and one tensor.
        _give(self.model, values, world.device)
        for head in self.heads:
            _give(head, head.fresh(self.base, recipe.seed, init), world.device)
        self.lora: Lora | None = None
        self.optimiser = self._new_optimiser()
        self._stage: Stage | None = None

    def enter(self, stage: Stage, fresh: bool) -> None:
        """Have the next steps be of ``stage``; ``fresh``: it begins now, and may drop the moments before
        it. Low-rank pairs begin here; their moments are dropped with them (``leave``)."""
        self.model.config = stage_config(self.base, stage)
        self.base = self.model.config  # a changed context stays for the stages that follow
        self.model.mode = Mode(
            rounding=stage.specs,
            fp8=stage.fp8,
            sparse=sparse_of(self.base, stage),
            recompute=self.recipe.checkpoint_activations,
        )
        if fresh and stage.lora is not None:
            self._add_pairs(stage)
        elif fresh and stage.fresh_optimiser:
            self.optimiser = self._new_optimiser()
        self._stage = stage

    def leave(self) -> None:
        """End the stage: low-rank pairs are merged into the matrices."""
        if self.lora is not None:
            self.lora.merge(self.model)
            self.lora = None
            self.optimiser = self._new_optimiser()

    def gradients(self, batches: Sequence[Batch]) -> Done:
        """Compute the gradients of a step, over this process's micro-batches and all others'."""
        stage, device = self._stage, self.model.device
        assert stage is not None
        heads = [head for head in self.heads if head.plan.factor(stage)]
        targets = [[head.targets(batch) for batch in batches] for head in heads]
        counts = self.world.sum(
            [
                sum(_count(b.targets, b.weight) for b in batches),
                *(sum(_count(t, w) for t, w in own) for own in targets),
                sum(len(b.ids) for b in batches),
            ],
            device,
        )
        self.optimiser.zero_grad(set_to_none=True)
        sums = [0.0] * (1 + len(heads))
        for index, batch in enumerate(batches):
            with self._autocast():
                hidden = self.model(batch)
                loss = self.model.loss(hidden, batch.targets, batch.weight, stage.z_loss)
                total = loss.total / max(counts[0], 1.0)
                sums[0] += float(loss.nll)
                for n, head in enumerate(heads):
                    more = head.loss(self.model, batch, hidden, targets[n][index], stage.z_loss)
                    total = total + head.plan.factor(stage) * more.total / max(counts[1 + n], 1.0)
                    sums[1 + n] += float(more.nll)
            # FSDP2 takes the mean over processes; what is wanted is the sum.
            (total * self.world.size).backward()
        if self.lora is not None and self.world.size > 1:
            for parameter in self.lora.parameters():  # whole in every process: no module reduces them
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(self.world.size)
        sums = self.world.sum(sums, device)
        norm = clip_gradients(self.parameters(), self.recipe.optimiser.clip_norm)
        return Done(
            loss=sums[0] / max(counts[0], 1.0),
            head_losses={h.plan.name: sums[n] / max(counts[n], 1.0) for n, h in enumerate(heads, 1)},
            gradient_norm=norm,
            tokens=int(counts[-1]),
        )

    def step(self, rate: float) -> None:
        """Let the optimiser take the gradients at learning rate ``rate``."""
        self.optimiser.set_rate(rate)
        self.optimiser.step()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> float:
        """Mean loss of held-out batches, nats a token."""
        stage = self._stage
        assert stage is not None
        nll = count = 0.0
        for batch in batches:
            with self._autocast():
                loss = self.model.loss(self.model(batch), batch.targets, batch.weight, z_loss=0.0)
            nll, count = nll + float(loss.nll), count + float(loss.count)
        nll, count = self.world.sum([nll, count], self.model.device)
        return nll / max(count, 1.0)

    def parameters(self) -> Iterator[Tensor]:
        """All that is trained."""
        for module in [self.lora] if self.lora is not None else self._modules():
            yield from module.parameters()

    def save(self, folder: Path, tokenizer: Path | None) -> None:
        """Write model, extra heads and moments into a checkpoint's folder; every process calls it, each
        writes its part. Raises, in all of them, CheckpointError or OSError."""
        write_folder(
            folder / "model",
            self.model.config,
            self.model.state_dict(),
            tokenizer=tokenizer,
            world=self.world,
        )
        write_tensors(folder, MOMENTS, self.optimiser.tensors(), self.world)
        if self.lora is not None:
            write_tensors(folder, PAIRS, self.lora.state_dict(), self.world)
        for head in self.heads:
            tensors = {name: gathered(tensor).cpu() for name, tensor in head.state_dict().items()}
            write = partial(head.write, folder / head.plan.name, self.base, tensors)
            self.world.first(write)

    def load(self, folder: Path, stage: Stage) -> None:
        """Take back what ``save`` wrote in ``stage``, on any number of processes, each reading its part.
        Raises CheckpointError, ConfigError."""
        config = ModelConfig.from_hf(folder / "model")
        _take(self.model, Stored(folder / "model", "model"), folder)
        self.base = self.model.config = config
        begun = heads_of(self.recipe.stages[: self.recipe.stages.index(stage) + 1])
        for head in self.heads:
            if head.plan in begun:  # else it is as it was made
                _take(head, Stored(folder / head.plan.name, "model"), folder)
        if stage.lora is not None and any(folder.glob(f"{PAIRS}*.safetensors")):  # cut off within the stage
            self._add_pairs(stage)
            assert self.lora is not None
            _take(self.lora, Stored(folder, PAIRS), folder)
        self.optimiser.load_tensors(Stored(folder, MOMENTS))

    def _add_pairs(self, stage: Stage) -> None:
        assert stage.lora is not None
        for module in self._modules():  # the optimiser, which clears gradients, is of the pairs alone
            module.zero_grad(set_to_none=True)
        self.lora = Lora(self.model, stage.lora, self.recipe.seed)
        self.optimiser = self._new_optimiser()

    def _modules(self) -> list[nn.Module]:
        return [self.model, *self.heads]

    def _new_optimiser(self) -> Optimiser:
        config = self.recipe.optimiser
        if self.lora is not None:
            return Optimiser(self.lora.named_parameters(), replace(config, kind=Adapter.optimiser))
        named = list(self.model.named_parameters())
        for head in self.heads:
            named += [(f"{head.plan.name}.{name}", parameter) for name, parameter in head.named_parameters()]
        factors = None
        if self._mup is not None:
            factors = self._mup.factors([(name, tuple(p.shape)) for name, p in named], self.base, config.kind)
        return Optimiser(named, config, factors)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return nullcontext()
        # No cache: each weight is used once a pass, and cached copies of all would outlive their layers.
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def _shard(self) -> None:
        for layer in self.model.layers:
            fully_shard(layer)
        fully_shard(self.model)
        for head in self.heads:
            fully_shard(head)


def _give(module: nn.Module, values: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Set all parameters of a module that has none yet, on ``device``."""
    module.to_empty(device=device)
    own = dict(module.named_parameters())
    for name, value in values:
        fill(own.pop(name), value)
    assert not own, f"no values for {sorted(own)}"


def _take(module: nn.Module, tensors: Stored, folder: Path) -> None:
    own = dict(module.named_parameters())
    if own.keys() != tensors.keys():
        raise CheckpointError(
            f"{folder} holds another model than the recipe's", "resume with the recipe that made it"
        )
    for name, parameter in own.items():
        value = tensors[name]
        if tuple(value.shape) != tuple(parameter.shape):
            raise CheckpointError(
                f"{name} in {folder} has shape {tuple(value.shape)}, "
                f"the recipe's model {tuple(parameter.shape)}",
                "resume with the recipe that made it",
            )
        fill(parameter, value)


def _count(targets: Any, weight: Any) -> float:
    kept = np.asarray(targets) >= 0
    return float(kept.sum()) if weight is None else float(np.asarray(weight)[kept].sum())
