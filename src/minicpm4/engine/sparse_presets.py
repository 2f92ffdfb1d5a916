"""Settings of sparse attention that were measured for a model: the user's own, else those that ship.

``minicpm4 eval sparse MODEL --write`` measures and keeps them (evals/sparse), ``sparse="auto"`` looks them
up. A model is known by its shape and its norms, which quantising leaves as they are: all its forms share a
setting."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.sparse import AUTO
from minicpm4.config.strict import check_integer, from_table, require
from minicpm4.engine.options import EngineOptions
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import json_text, read_json, write_json
from minicpm4.formats import Checkpoint
from minicpm4.places import cache_folder

__all__ = ["Preset", "find", "identity", "save", "with_sparse"]

logger = logging.getLogger("minicpm4")

VARIABLE = "MINICPM4_SPARSE"  # a folder for the user's own; "off": only what ships is looked up
SHIPPED = Path(__file__).with_name("sparse_presets.json")
VERSION = 1
MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """``sparse``, fields of SparseConfig, as measured for ``model`` (what it was called then) on ``date``
    with a text of ``length`` tokens; ``figures``: what it reads and loses, as ``eval sparse`` tells. Raises
    ConfigError."""

    model: str
    date: str
    length: int
    sparse: Mapping[str, Any]
    figures: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("model", "date"):
            value = getattr(self, name)
            require(isinstance(value, str) and 0 < len(value) <= 200, f"{name} is not a short text")
        check_integer("length", self.length, 1, 1 << 24)
        require(isinstance(self.sparse, Mapping), "sparse is not a table")
        require(isinstance(self.figures, Mapping), "figures is not a table")
        self.config  # noqa: B018  (raises)

    @property
    def config(self) -> SparseConfig:
        return SparseConfig.from_mapping(self.sparse, "sparse")


def identity(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """What a model is known by. Raises CheckpointError."""
    shape = [
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rope_theta,
    ]
    digest = hashlib.sha256(json_text(shape).encode())
    for name in sorted(checkpoint.tensors):
        if name.endswith("norm.weight"):
            digest.update(name.encode())
            digest.update(checkpoint.load_vector(name).astype("<f4").tobytes())
    return digest.hexdigest()[:32]


def folder() -> Path | None:
    """Where the user's own are: $MINICPM4_SPARSE, else ``sparse`` beside the downloads; None: off."""
    return cache_folder("sparse", VARIABLE)


def find(checkpoint: Checkpoint, config: ModelConfig, name: str) -> Preset:
    """The setting for a model that is called ``name``; one of the user's that cannot be read is left out,
    with a warning. Raises ConfigError where nothing was measured, CheckpointError."""
    known = identity(checkpoint, config)
    found = _own(known) or _shipped().get(known)
    if found is None:
        raise ConfigError(
            f"sparse = 'auto', and no setting was measured for {name}",
            f"measure it: minicpm4 eval sparse {name} --write; or give settings, such as topk=16,window=512",
        )
    return found


def save(checkpoint: Checkpoint, config: ModelConfig, preset: Preset) -> Path:
    """Keep a setting for a model, in place of an earlier one; return the file. Raises ConfigError,
    CheckpointError."""
    place = folder()
    require(place is not None, f"{VARIABLE}=off: nothing can be kept", f"unset {VARIABLE}")
    assert place is not None
    file = place / f"{identity(checkpoint, config)}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_json(file, {"version": VERSION, **asdict(preset)})
    except OSError as error:
        raise ConfigError(
            f"cannot write the setting to {place}: {error.strerror}", f"set {VARIABLE} to another folder"
        ) from error
    return file


def with_sparse(
    options: EngineOptions, checkpoint: Checkpoint, config: ModelConfig, name: str
) -> tuple[EngineOptions, str]:
    """``options`` with what sparse = "auto" stands for, and some words on that; others as they are. Raises as
    ``find`` does."""
    if options.sparse != AUTO:
        return options, ""
    preset = find(checkpoint, config, name)
    return replace(options, sparse=preset.config), f"; sparse as measured at {preset.length:,} tokens"


def _own(known: str) -> Preset | None:
    place = folder()
    file = None if place is None else place / f"{known}.json"
    if file is None or not file.exists():
        return None
    try:
        table = read_json(file, MAX_BYTES, ConfigError)
        require(table.pop("version", None) == VERSION, "it is of another version")
        return from_table(Preset, table, "it")
    except (ConfigError, CheckpointError) as error:
        logger.warning(
            "setting of sparse attention %s is ignored: %s; minicpm4 eval sparse --write makes it anew",
            file,
            error.condition,
        )
        return None


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, Preset]:
    table = read_json(SHIPPED, MAX_BYTES, ConfigError)
    return {known: from_table(Preset, one, "it") for known, one in table.items()}
