"""Models that need no files: a published shape, its weights drawn at random in packed form.

What a matrix product costs does not depend on its numbers, so these tell a machine's speed before
anything is downloaded. Weights are drawn as codes, not rounded from floats: half a billion of them
in INT4 take about a second.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.errors import ConfigError
from minicpm4.formats.checkpoint import TensorInfo
from minicpm4.formats.kinds import WeightKind
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.model.source import OpenModel, open_model
from minicpm4.model.weight_plan import check_weights_choice, target_spec

__all__ = ["SHAPES", "RandomCheckpoint", "open_any", "random_checkpoint"]

MINICPM4_05B = ModelConfig(
    model_type="minicpm",
    vocab_size=73448,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=32768,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    scale_emb=12.0,
    scale_depth=1.4,
    dim_model_base=256.0,
    sparse_config=SparseConfig(),
)
SHAPES: Mapping[str, ModelConfig] = MappingProxyType({"random-minicpm4-0.5b": MINICPM4_05B})

_TABLE = 1 << 16  # normal numbers that float weights are picked from
_SLICE = 1 << 22  # float weights picked at a time

Specs = Callable[[str, tuple[int, int]], QuantSpec]


class RandomCheckpoint:
    """A Checkpoint of ``config`` whose tensors are drawn when loaded, the same ones each time.

    ``specs(name, shape)`` says in which format a matrix is stored. Matrices (out, in) have standard
    deviation 1 / sqrt(in); norm weights are 1, biases 0.
    """

    def __init__(self, config: ModelConfig, specs: Specs, name: str = "random", seed: int = 0) -> None:
        self.config, self.path, self._seed = config, Path(name), seed
        self.files: tuple[Path, ...] = ()
        self.tensors: Mapping[str, TensorInfo] = {
            key: _info(key, shape, specs) for key, shape in expected_tensors(config).items()
        }

    def hf_config(self) -> dict[str, Any] | None:
        """None: ``config`` is not read from a file."""
        return None

    def metadata(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def load(self, name: str) -> PackedTensor:
        """Draw a matrix."""
        info = self.tensors[name]
        spec, shape, row = info.spec, (info.shape[0], info.shape[1]), info.spec.row
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        std = 1 / math.sqrt(shape[1])
        if not spec.group_size:
            return PackedTensor(spec=spec, shape=shape, codes=_floats(rng, row, shape, std))
        scale = np.float16(std / _number_std(row))
        scales = np.full((shape[0], shape[1] // spec.group_size), scale, np.float16)
        return PackedTensor(spec=spec, shape=shape, codes=_codes(rng, row, shape), scales=scales)

    def load_vector(self, name: str) -> NDArray[np.float32]:
        """Ones for a norm, zeros for a bias."""
        make = np.zeros if name.endswith(".bias") else np.ones
        return make(self.tensors[name].shape, np.float32)

    def release(self, name: str) -> None:
        """Nothing is mapped."""


def random_checkpoint(name: str, weights: str = "auto") -> RandomCheckpoint:
    """The random model ``name`` (one of SHAPES), held in ``weights``; "auto" means int4 in groups of 64.

    Raises ConfigError.
    """
    check_weights_choice(weights)
    if name not in SHAPES:
        raise ConfigError(f"{name!r} is not a random model", "use " + " or ".join(SHAPES))
    kind, stored = "int4-g64" if weights == "auto" else weights, QuantSpec(kind="bf16")
    return RandomCheckpoint(
        SHAPES[name], lambda tensor, shape: target_spec(tensor, stored, shape, kind), name=name
    )


def open_any(name: str, weights: str = "auto", ignore_fields: Collection[str] = ()) -> OpenModel:
    """A random model, held in ``weights``, or one with files, opened as by ``open_model``. Raises
    Minicpm4Error."""
    if name.lower() not in SHAPES:
        return open_model(name, ignore_fields)
    found = random_checkpoint(name.lower(), weights)
    return OpenModel(name=name, path=found.path, checkpoint=found, config=found.config)


def _info(name: str, shape: tuple[int, ...], specs: Specs) -> TensorInfo:
    if len(shape) == 1:
        spec, size = QuantSpec(kind="f32"), 4 * shape[0]
    else:
        spec = specs(name, (shape[0], shape[1]))
        size = packed_nbytes((shape[0], shape[1]), spec)
    return TensorInfo(
        shape=shape, dtype=spec.row.file or spec.kind.upper(), nbytes=size, spec=spec, loaded_nbytes=size
    )


def _number_std(row: WeightKind) -> float:
    """Standard deviation, in units of the scale, of a code drawn at random."""
    return float(np.std(row.levels)) if row.levels else math.sqrt((row.count**2 - 1) / 12)


def _codes(rng: np.random.Generator, row: WeightKind, shape: tuple[int, int]) -> NDArray:
    """Codes as they are packed, each as likely as any other."""
    per = 8 // row.bits if 8 % row.bits == 0 else 0
    if row.count**per > 256 or not per:
        return row.pack(rng.integers(0, row.count, shape, np.uint8))
    raw = rng.integers(0, 256, (shape[0], row.width(shape[1])), np.uint8)
    if row.count**per == 256:
        return raw
    if per == 1:
        return np.maximum(raw.view(row.codes), row.least)
    # A byte is ``per`` digits to base ``count``: so many bytes are possible.
    place = np.arange(per)[:, None]
    digits = np.arange(256) % row.count**per // row.count**place % row.count
    return (digits << row.bits * place).sum(axis=0).astype(np.uint8)[raw]


def _floats(rng: np.random.Generator, row: WeightKind, shape: tuple[int, int], std: float) -> NDArray:
    table = (rng.standard_normal(_TABLE, np.float32) * np.float32(std)).astype(np.float32)
    values = row.pack(table)
    out = np.empty(shape[0] * shape[1], row.codes)
    for start in range(0, out.size, _SLICE):
        part = out[start : start + _SLICE]
        np.take(values, rng.integers(0, _TABLE, part.size, np.uint16), out=part)
    return out.reshape(shape)
