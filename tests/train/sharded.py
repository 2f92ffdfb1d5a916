"""What the two processes of test_sharded.py run: a module of its own, for they import it by name."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from minicpm4.errors import CheckpointError
from minicpm4.train import checkpoint, tensor_files
from minicpm4.train.loss import next_token_loss
from minicpm4.train.model import Mode
from minicpm4.train.mtp import MultiToken, second_targets
from minicpm4.train.recipe import model_config
from minicpm4.train.session import TrainingSession, World
from tests.train.batches import Batch, batch
from tests.train.runs import recipe, stage
from tests.train.test_model import SMALL, TINY, small

LARGE = replace(
    model_config(recipe(stage()), 96, {}),
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
)
MODES = (Mode(), Mode(recompute=True, sparse=TINY))


def loss_of(model: Any, more: Any, given: Batch) -> Any:
    hidden = model(given)
    targets, _ = second_targets(given.targets, given.cu_rows)
    losses = [
        next_token_loss(hidden, model.head(), torch.from_numpy(given.targets), scale=0.5),
        next_token_loss(more(model, given, hidden), model.head(), targets, scale=0.5),
    ]
    return sum(loss.total / loss.count for loss in losses)


def modules(mode: Mode) -> tuple[Any, Any]:
    return small(mode), MultiToken.new(SMALL, 3, lambda name, config: 0.3)


def one_of_two(rank: int, folder: str) -> None:
    """Gradients of both modules, on two batches at once, into files by rank 0."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for number, mode in enumerate(MODES):
        found = gradients(rank, mode)
        if rank == 0:
            np.savez(Path(folder) / f"{number}.npz", **found)
    World(rank=rank, size=2).leave()


def begin_of_two(rank: int, folder: str) -> None:
    """How many bytes more than before this process has ever held once it has begun, into a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank=rank, size=2)
    made = recipe(stage())
    TrainingSession(
        made, model_config(made, 96, {}), world
    )  # what a first one loads of torch is not the model's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session = TrainingSession(made, LARGE, world)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    own = sum(parameter.to_local().nbytes for parameter in session.parameters())
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"grown": grown, "own": own}))
    world.leave()


def fail_of_two(rank: int, folder: str) -> None:
    """Save three checkpoints; at the second the disk is full, for the second process alone. What each was
    told goes into a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    world, run = World(rank=rank, size=2), Path(folder) / "run"
    made = recipe(stage())
    session = TrainingSession(made, model_config(made, 96, {}), world)
    write, told = tensor_files.write_file, []

    def full(file: Path, tensors: dict[str, Any], check: Any) -> None:
        raise OSError(28, "No space left on device", str(file))

    for number in (1, 2, 3):
        tensor_files.write_file = full if number == 2 and rank == 1 else write
        try:
            checkpoint.save(run, number, {}, lambda to: session.save(to, None), world)
            told.append("saved")
        except CheckpointError as error:
            told.append(str(error))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    world.leave()


def gradients(rank: int, mode: Mode) -> dict[str, Any]:
    model, more = modules(mode)
    for part in (*model.layers, model, more):
        fully_shard(part)
    loss_of(model, more, batch([37 + rank, 22], 50, seed=rank)).backward()
    named = [*model.named_parameters(), *more.named_parameters()]
    return {name: parameter.grad.full_tensor().numpy() for name, parameter in named}
