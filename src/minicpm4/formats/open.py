"""Open any checkpoint, and check that it holds what its config says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.formats.checkpoint import Checkpoint
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.names import expected_tensors, is_ignorable
from minicpm4.formats.packing import unpack_rows
from minicpm4.formats.safetensors import SafetensorsCheckpoint

__all__ = ["check_tensors", "open_checkpoint"]

_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SHOWN = 3


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder, a .gguf file, or a .safetensors file (its whole folder is opened).

    Raises CheckpointError, or ConfigError when a folder's config.json cannot be read.
    """
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path}", "check the path, or pull the model")
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return GgufCheckpoint(path)
    if suffix == ".safetensors":
        return SafetensorsCheckpoint(path.parent)
    if suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointError(
            f"{path} is a pickled checkpoint, and unpickling can run any code", "convert it to safetensors"
        )
    raise CheckpointError(f"{path} is neither a folder nor a .gguf or .safetensors file")


def _open_folder(folder: Path) -> Checkpoint:
    ggufs = sorted(folder.glob("*.gguf"))
    if not ggufs or any(folder.glob("*.safetensors")):
        return SafetensorsCheckpoint(folder)
    if len(ggufs) > 1:
        raise CheckpointError(
            f"{folder} holds {len(ggufs)} .gguf files", f"name one of them, such as {ggufs[0].name}"
        )
    return GgufCheckpoint(ggufs[0])


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Check that every tensor that ``config`` asks for is there in its shape, and no other that matters.

    Rotary tables are ignored, and so is an lm_head that equals the tied embedding. Raises
    CheckpointError, which names up to three tensors with found and expected shapes.
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
        if name != _HEAD:
            problems.append(
                f"{name} of shape {info.shape} is in the file, but the config has no place for it"
            )
        elif not problems and not _same_head(checkpoint):
            problems.append(f"{_HEAD} differs from {_EMBED}, though the config ties them")
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"the tensors of {checkpoint.path} do not fit its config: " + "; ".join(problems[:_SHOWN]) + more,
            "use the config that belongs to these weights",
        )


def _same_head(checkpoint: Checkpoint) -> bool:
    """Whether head and embedding agree in a few rows: a wrongly tied head must not pass in silence."""
    head, embed = checkpoint.load(_HEAD), checkpoint.load(_EMBED)
    if head.shape != embed.shape:
        return False
    rows = head.shape[0]
    sample = sorted({0, rows // 3, rows // 2, rows - 1})
    pairs = [(unpack_rows(head, slice(r, r + 1)), unpack_rows(embed, slice(r, r + 1))) for r in sample]
    # The head of a GGUF file may be stored finer than the embedding it equals.
    return all(np.abs(a - b).max() <= 0.2 * np.abs(b).max() for a, b in pairs)
