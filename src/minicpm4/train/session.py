"""One process of a run: the model, its optimiser, and what a step does; sharded by FSDP2 under torchrun.

The loss of a step is the sum over all its tokens on all processes, divided by their number (multi-token
prediction likewise), so neither micro-batches nor the number of processes change what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from minicpm4.config import ModelConfig
from minicpm4.data.batch import Batch
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.train.hf_folder import write_folder
from minicpm4.train.layout import stage_config
from minicpm4.train.lora import Lora, LoraConfig
from minicpm4.train.loss import next_token_loss
from minicpm4.train.model import Mode, TrainableModel, as_tensor, fresh_tensors, stored_tensors
from minicpm4.train.mtp import MultiToken, fresh_extra, second_targets
from minicpm4.train.mup import MuP
from minicpm4.train.optim import OptimConfig, Optimiser, clip_gradients
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.tensor_files import Stored, fill, gathered, write_tensors
from minicpm4.train.world import World

__all__ = ["Done", "Session", "World"]

MOMENTS, PAIRS = "optimiser", "lora"  # files begin with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a step's gradients came from: means over all tokens that count."""

    loss: float
    mtp_loss: float | None
    gradient_norm: float
    tokens: int


class Session:
    """The model of ``recipe`` on its device. ``config``: of a new model. Raises ConfigError,
    CheckpointError."""

    def __init__(self, recipe: Recipe, config: ModelConfig | None, world: World) -> None:
        self.recipe, self.world = recipe, world
        self._mup = MuP(base_width=recipe.model.mup_width) if recipe.model.mup_width else None
        init = self._mup.init_std if self._mup else None
        if recipe.model.start:
            self.base, values = stored_tensors(recipe.model.start)
        else:
            assert config is not None
            self.base, values = config, fresh_tensors(config, recipe.seed, init)
        self.model = TrainableModel.without_values(self.base)
        wants_mtp = any(stage.mtp for stage in recipe.stages)
        self.extra = MultiToken.without_values(self.base) if wants_mtp else None
        if world.size > 1:
            self._shard()
        # Only now, so that no process ever holds more than its part and one tensor.
        _give(self.model, values, world.device)
        if self.extra is not None:
            _give(self.extra, fresh_extra(self.base, recipe.seed, init), world.device)
        self.lora: Lora | None = None
        self.optimiser = self._new_optimiser()
        self._stage: Stage | None = None

    def enter(self, stage: Stage, fresh: bool) -> None:
        """Have the next steps be of ``stage``; ``fresh``: it begins now, and may drop the moments before
        it. Low-rank pairs begin here; their moments are dropped with them (``leave``)."""
        self.model.config = stage_config(self.base, stage)
        self.base = self.model.config  # a changed context stays for the stages that follow
        sparse = self.model.config.sparse_config if stage.attention == "sparse" else None
        if stage.attention == "sparse" and sparse is None:
            raise ConfigError(
                f"stage {stage.name!r}: attention = 'sparse', yet the model has no sparse_config",
                "add [model.shape.sparse_config]",
            )
        self.model.mode = Mode(
            rounding=stage.specs, fp8=stage.fp8, sparse=sparse, recompute=self.recipe.checkpoint_activations
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
        seconds = [second_targets(b.targets, b.cu_rows, b.weight) for b in batches] if stage.mtp else []
        counts = self.world.sum(
            [
                sum(_count(b.targets, b.weight) for b in batches),
                sum(_count(t, w) for t, w in seconds),
                sum(len(b.ids) for b in batches),
            ],
            device,
        )
        self.optimiser.zero_grad(set_to_none=True)
        sums = [0.0, 0.0]
        for index, batch in enumerate(batches):
            with self._autocast():
                hidden = self.model(batch)
                loss = self._loss(hidden, batch.targets, batch.weight, stage)
                total = loss.total / max(counts[0], 1.0)
                sums[0] += float(loss.nll)
                if stage.mtp and self.extra is not None:
                    ahead = self._loss(self.extra(self.model, batch, hidden), *seconds[index], stage)
                    total = total + stage.mtp * ahead.total / max(counts[1], 1.0)
                    sums[1] += float(ahead.nll)
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
            mtp_loss=sums[1] / max(counts[1], 1.0) if stage.mtp else None,
            gradient_norm=norm,
            tokens=int(counts[2]),
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
                loss = self._loss(self.model(batch), batch.targets, batch.weight, replace(stage, z_loss=0.0))
            nll, count = nll + float(loss.nll), count + float(loss.count)
        nll, count = self.world.sum([nll, count], self.model.device)
        return nll / max(count, 1.0)

    def parameters(self) -> Iterator[Tensor]:
        """All that is trained."""
        for module in [self.lora] if self.lora is not None else self._modules():
            yield from module.parameters()

    def save(self, folder: Path, tokenizer: Path | None) -> None:
        """Write model, extra layer and moments into a checkpoint's folder; every process calls it, each
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
        if self.extra is not None:
            extra = {name: gathered(tensor).cpu() for name, tensor in self.extra.state_dict().items()}
            self.world.first(lambda: MultiToken(self.base, extra).save(folder / "mtp"))

    def load(self, folder: Path, stage: Stage) -> None:
        """Take back what ``save`` wrote in ``stage``, on any number of processes, each reading its part.
        Raises CheckpointError, ConfigError."""
        config = ModelConfig.from_hf(folder / "model")
        _take(self.model, Stored(folder / "model", "model"), folder)
        self.base = self.model.config = config
        if self.extra is not None:
            _take(self.extra, Stored(folder / "mtp", "model"), folder)
        if stage.lora is not None and any(folder.glob(f"{PAIRS}*.safetensors")):  # cut off within the stage
            self._add_pairs(stage)
            assert self.lora is not None
            _take(self.lora, Stored(folder, PAIRS), folder)
        self.optimiser.load_tensors(Stored(folder, MOMENTS))

    def _add_pairs(self, stage: Stage) -> None:
        assert stage.lora is not None
        wanted = LoraConfig(rank=stage.lora.rank, alpha=stage.lora.alpha, targets=stage.lora.targets)
        self.lora = Lora(self.model, wanted, self.recipe.seed)
        self.optimiser = self._new_optimiser()

    def _modules(self) -> list[nn.Module]:
        return [self.model] + ([self.extra] if self.extra is not None else [])

    def _new_optimiser(self) -> Optimiser:
        given = self.recipe.optimiser
        config = OptimConfig(
            kind=given.kind,
            beta1=given.beta1,
            beta2=given.beta2,
            eps=given.eps,
            weight_decay=given.weight_decay,
            momentum=given.momentum,
            adamw_rate=given.adamw_rate,
        )
        if self.lora is not None:
            return Optimiser(self.lora.named_parameters(), replace(config, kind="adamw"))
        named = list(self.model.named_parameters())
        if self.extra is not None:
            named += [(f"mtp.{name}", parameter) for name, parameter in self.extra.named_parameters()]
        factors = None
        if self._mup is not None:
            factors = self._mup.factors([(name, tuple(p.shape)) for name, p in named], self.base, given.kind)
        return Optimiser(named, config, factors)

    def _loss(self, hidden: Tensor, targets: Any, weight: Any, stage: Stage) -> Any:
        device = hidden.device
        return next_token_loss(
            hidden,
            self.model.head(),
            as_tensor(targets, device),
            scale=self.model.config.logit_scale,
            weight=None if weight is None else as_tensor(weight, device),
            z_loss=stage.z_loss,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return nullcontext()
        # No cache: each weight is used once a pass, and cached copies of all would outlive their layers.
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def _shard(self) -> None:
        for layer in self.model.layers:
            fully_shard(layer)
        fully_shard(self.model)
        if self.extra is not None:
            fully_shard(self.extra)


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
