"""The one way to open a model: from what a user calls it to its files, its configuration, its text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from minicpm4 import zoo
from minicpm4.config import ModelConfig
from minicpm4.config.gguf import ROPE_VECTORS, config_from_gguf
from minicpm4.formats import Checkpoint, check_tensors, open_checkpoint
from minicpm4.formats.names import O_BIAS
from minicpm4.model.stored_prefix import StoredPrefix, read_stored, refuse_stored
from minicpm4.text.model_text import ModelText

__all__ = ["OpenModel", "open_model", "open_text", "read_config"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenModel:
    """A model whose tensors fit its configuration, their values still in the file. ``name``: what it was
    asked for by; ``path``: the folder or .gguf file that this led to; ``stored``: keys and values that are a
    part of the model (model/stored_prefix.py)."""

    name: str
    path: Path
    checkpoint: Checkpoint
    config: ModelConfig
    stored: StoredPrefix | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether all about it stands in one file: what lies beside that is not its own."""
        return bool(self.checkpoint.metadata())

    def text(self) -> ModelText:
        """Read its tokenizer and chat template. Raises TextError."""
        return ModelText(self.checkpoint)

    def refuse_stored(self, who: str) -> None:
        """Raise UnsupportedError where it has a stored prefix: ``who`` knows none."""
        refuse_stored(self.stored, self.name, who)


def open_model(name: str | Path, ignore_fields: Collection[str] = ()) -> OpenModel:
    """Open a model by name, folder (of safetensors, or with one .gguf file), file or hub repository.

    ``ignore_fields``: fields of config.json, or keys of GGUF metadata, that are taken for null. Raises
    ModelNotFoundError, CheckpointError, ConfigError.
    """
    path = zoo.resolve(str(name))
    checkpoint = open_checkpoint(path)
    config = check_tensors(checkpoint, read_config(checkpoint, ignore_fields))
    gguf = bool(checkpoint.metadata())  # what lies beside such a file is not its own
    stored = None if gguf else read_stored(checkpoint.path, config)
    return OpenModel(name=str(name), path=path, checkpoint=checkpoint, config=config, stored=stored)


def open_text(name: str | Path) -> ModelText:
    """Open the text of a model that ``open_model`` would open, or of a folder with a tokenizer alone.

    Raises ModelNotFoundError, CheckpointError, TextError.
    """
    return ModelText(zoo.resolve(str(name)))


def read_config(checkpoint: Checkpoint, ignore_fields: Collection[str] = ()) -> ModelConfig:
    """The checkpoint's ModelConfig; ``ignore_fields`` as for ``open_model``. Raises ConfigError."""
    raw = checkpoint.hf_config()
    if raw is not None:
        config = ModelConfig.from_hf(raw, ignore_fields)
        if config.output_bias and not any(name.endswith(O_BIAS) for name in checkpoint.tensors):
            # As in its own class, where biases that are missing are 0.
            config = replace(config, output_bias=False)
        return config
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    vectors = {name: checkpoint.load_vector(name).tolist() for name in ROPE_VECTORS if name in shapes}
    return config_from_gguf(checkpoint.metadata(), shapes, vectors, ignore_fields)
