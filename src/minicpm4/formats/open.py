"""Open any checkpoint, and check that it holds what its config says."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.files.gguf_parts import models_of
from minicpm4.formats.checkpoint import Checkpoint
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.names import EMBED, HEAD, expected_tensors, is_ignorable
from minicpm4.formats.packing import row_slices, unpack_rows
from minicpm4.formats.safetensors import SafetensorsCheckpoint

__all__ = ["check_tensors", "gguf_of", "open_checkpoint"]

_SHOWN = 3
logger = logging.getLogger("minicpm4")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder, a .gguf file, or a .safetensors file (its whole folder is opened).

    Raises CheckpointError, or ConfigError when a folder's config.json cannot be read.
    """
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path}", "check the path, or pull the model")
    gguf = gguf_of(path)
    if gguf is not None:
        return GgufCheckpoint(gguf)
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return SafetensorsCheckpoint(path.parent)
    if suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointError(
            f"{path} is a pickled checkpoint, and unpickling can run any code", "convert it to safetensors"
        )
    raise CheckpointError(f"{path} is neither a folder nor a .gguf or .safetensors file")


def gguf_of(path: Path) -> Path | None:
    """The .gguf file that ``path`` is, or that is the model of the folder ``path`` (of one that is split the
    first part); None: another format.

    Raises CheckpointError for a folder with several of them.
    """
    if not path.is_dir():
        return path if path.suffix.lower() == ".gguf" else None
    ggufs = [path / name for name in models_of(file.name for file in path.glob("*.gguf"))]
    if not ggufs or any(path.glob("*.safetensors")):
        return None
    if len(ggufs) > 1:
        raise CheckpointError(
            f"{path} holds {len(ggufs)} models in .gguf files", f"name one of them, such as {ggufs[0].name}"
        )
    return ggufs[0]


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> ModelConfig:
    """Check that every tensor that ``config`` asks for is there in its shape, and no other that matters.

    Tables that can be computed are ignored, and so is an lm_head that equals the tied embedding, number by
    number. One that does not is the model's head: then the config that is returned, else ``config``, says
    that they are not tied. Raises CheckpointError, which names up to three tensors with found and expected
    shapes.
    """
    expected = expected_tensors(config)
    problems = []
    for name, shape in expected.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(f"{name} is missing (expected shape {shape})")
        elif info.shape != shape:
            problems.append(f"{name} has shape {info.shape}, expected {shape}")
    for name, info in checkpoint.tensors.items():
        if name in expected or is_ignorable(name):
            continue
        if name != HEAD:
            problems.append(
                f"{name} of shape {info.shape} is in the file, but the config has no place for it"
            )
        elif info.shape != expected[EMBED]:
            problems.append(f"{name} has shape {info.shape}, expected {expected[EMBED]}")
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"the tensors of {checkpoint.path} do not fit its config: " + "; ".join(problems[:_SHOWN]) + more,
            "use the config that belongs to these weights",
        )
    if HEAD in expected or HEAD not in checkpoint.tensors or _same_head(checkpoint):
        return config
    logger.warning(
        "%s: the config ties the head to the embeddings, but the file has another: it is used",
        checkpoint.path,
    )
    return replace(config, tie_word_embeddings=False)


def _same_head(checkpoint: Checkpoint) -> bool:
    """Whether head and embedding hold the same numbers, all of them."""
    head, embed = checkpoint.load(HEAD), checkpoint.load(EMBED)
    if head.spec == embed.spec and head.scales is None:
        return all(np.array_equal(head.codes[part], embed.codes[part]) for part in row_slices(*head.shape))
    return all(
        np.array_equal(unpack_rows(head, part), unpack_rows(embed, part)) for part in row_slices(*head.shape)
    )
