"""A model's folder, written by the processes of a run together, each its part (train/tensor_files.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray
from torch import Tensor

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.formats.hf_write import (
    begin_folder,
    check_finite,
    check_shapes,
    end_folder,
    hf_config,
    with_end_ids,
)
from minicpm4.text.model_text import tokenizer_files
from minicpm4.train.tensor_files import write_tensors
from minicpm4.train.world import World

__all__ = ["write_folder"]


def write_folder(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: Path | None = None,
    world: World | None = None,
) -> None:
    """As ``formats.hf_write.write_folder``, of float32 tensors that the processes of ``world``, which all
    call it, hold together. ``tokenizer``: a folder whose tokenizer is copied. Raises CheckpointError,
    ConfigError."""
    check_shapes(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    beside, ends = tokenizer_files(tokenizer)
    content = hf_config(with_end_ids(config, ends))
    world = world or World()
    try:
        world.first(lambda: begin_folder(folder, beside))
        write_tensors(folder, "model", tensors, world, _check_finite)
        world.first(lambda: end_folder(folder, content))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror or error}", "check the place and its free space"
        ) from error


def _check_finite(name: str, values: NDArray) -> None:
    """As ``check_finite``, with what to do about a run that came to this."""
    try:
        check_finite(name, values)
    except CheckpointError as error:
        raise CheckpointError(
            error.condition,
            "earlier checkpoints are whole: begin another run with the model folder of the last one as "
            "model.start, and with a lower rate",
        ) from error
