"""A model to be written, part by part: made small, as it is stored, or with muP's scales folded in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.errors import ConfigError
from minicpm4.formats import Checkpoint
from minicpm4.formats.hf_write import check_finite, fold_scales, folded_factors, times
from minicpm4.formats.names import EMBED, HEAD, NORM, layer_tensors
from minicpm4.formats.packing import packed_if_exact, smallest_floats, unpack_rows
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.model.rotary import inverse_frequencies
from minicpm4.quantize.grid import rows_to_nearest
from minicpm4.quantize.walk import as_floats

__all__ = [
    "ENDS",
    "OWN_HEAD",
    "Folded",
    "OnePart",
    "Parts",
    "Stored",
    "WithConfig",
    "folded_config",
    "head_of",
    "is_vector",
    "plain_rope",
    "shapes_of",
    "stem_of",
    "stems_of",
    "tell_layers",
]

ENDS, OWN_HEAD = "ends", "head"
"""Parts that have embeddings and last norm, and a head that is not tied; the others are layers. Embeddings
and head may be the largest matrices by far: they are in memory one after the other."""


def stems_of(config: ModelConfig) -> list[str]:
    """Names of all parts of a model."""
    ends = [ENDS] if config.tie_word_embeddings else [ENDS, OWN_HEAD]
    return [*ends, *map(stem_of, range(config.num_hidden_layers))]


def stem_of(index: int) -> str:
    """The name of a layer's part."""
    return f"layer-{index:05d}"


def shapes_of(config: ModelConfig, stem: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a part: full name -> shape."""
    if stem == ENDS:
        return {EMBED: (config.vocab_size, config.hidden_size), NORM: (config.hidden_size,)}
    if stem == OWN_HEAD:
        return {HEAD: (config.vocab_size, config.hidden_size)}
    prefix = f"model.layers.{_layer_of(stem)}."
    return {prefix + name: shape for name, shape in layer_tensors(config).items()}


def tell_layers(config: ModelConfig, stem: str, progress: Callable[[int, int], None] | None) -> None:
    """Tell ``progress`` how many layers are done, and of how many, when the part ``stem`` is."""
    if progress is not None:
        done = 0 if stem in (ENDS, OWN_HEAD) else _layer_of(stem) + 1
        progress(done, config.num_hidden_layers)


def _layer_of(stem: str) -> int:
    return int(stem.removeprefix("layer-"))


def is_vector(name: str) -> bool:
    """Whether the tensor is a vector: parts have it as a matrix of a row."""
    return name.endswith(("norm.weight", ".bias"))


class Parts(Protocol):
    """``stems``: names of the parts; ``part``: tensors of one by their full names, vectors as matrices of a
    row, made anew. Raises CheckpointError."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def stems(self) -> list[str]: ...

    def part(self, stem: str) -> dict[str, PackedTensor]: ...


@dataclass(slots=True, eq=False)
class OnePart:
    """Tensors of ``made`` for who asks for them part by part: one part is in memory at a time."""

    made: Parts
    _stem: str = ""
    _held: dict[str, PackedTensor] = field(default_factory=dict)

    def tensor(self, stem: str, name: str) -> PackedTensor:
        """``name`` of the part ``stem``. Raises CheckpointError."""
        if stem != self._stem:
            self._held.clear()
            self._stem, self._held = stem, self.made.part(stem)
        return self._held[name]


@dataclass(slots=True, eq=False)
class Stored:
    """A checkpoint's own weights in their own formats; matrices of floats that lie on a grid are packed,
    those of ``formats`` rounded to nearest."""

    checkpoint: Checkpoint
    config: ModelConfig
    formats: Mapping[str, QuantSpec] = field(default_factory=dict)

    @property
    def stems(self) -> list[str]:
        return stems_of(self.config)

    def part(self, stem: str) -> dict[str, PackedTensor]:
        return {name: self._read(name) for name in shapes_of(self.config, stem)}

    def _read(self, name: str) -> PackedTensor:
        if len(self.checkpoint.tensors[name].shape) == 1:
            return as_floats(self.checkpoint.load_vector(name)[None])
        found = self.checkpoint.load(name)
        if not found.spec.row.group:
            check_finite(name, found.codes)
        if name in self.formats:
            return rows_to_nearest(found.shape, self.formats[name], partial(unpack_rows, found))
        return packed_if_exact(found)


@dataclass(slots=True, eq=False)
class WithConfig:
    """The tensors of ``made`` under another configuration."""

    made: Parts
    config: ModelConfig

    @property
    def stems(self) -> list[str]:
        return self.made.stems

    def part(self, stem: str) -> dict[str, PackedTensor]:
        return self.made.part(stem)


def plain_rope(config: ModelConfig) -> tuple[ModelConfig, str]:
    """``config`` without rotary scaling, up to the length that was trained at first, and what that changes.
    Raises ConfigError where there is none."""
    scaling = config.rope_scaling
    if scaling is None:
        raise ConfigError("the model has no rotary scaling", "leave --plain-rope out")
    length = scaling.original_max_position_embeddings or config.max_position_embeddings
    plain = replace(
        config, rope_scaling=None, max_position_embeddings=min(length, config.max_position_embeddings)
    )
    (own, attention), (left, _) = (
        inverse_frequencies(one, plain.max_position_embeddings) for one in (config, plain)
    )
    factors = left / own
    same = np.allclose(factors, 1, rtol=1e-6) and abs(attention - 1) < 1e-6
    told = (
        f"positions up to {length:,} are those that the model was trained with"
        if same
        else f"rotary positions were divided by {factors.min():.3g} to {factors.max():.3g} and are plain "
        "now: answers are another model's, compare them with --test"
    )
    return plain, told


def folded_config(config: ModelConfig) -> ModelConfig:
    """What ``Folded`` makes of it. Raises ConfigError where that is no Llama."""
    nothing = TensorSource(shape=(), dtype="F32", make=lambda: np.zeros((), np.float32))
    found = fold_scales(config, {EMBED: nothing, HEAD: nothing})[0]
    if found.model_type != "llama":
        raise ConfigError(
            f"a {config.model_type} model is no Llama, and has no scales to fold", "use --to hf"
        )
    return found


@dataclass(slots=True, eq=False)
class Folded:
    """A model whose three scales are folded into embeddings and head (``fold_scales``)."""

    made: Parts
    config: ModelConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = folded_config(self.made.config)

    @property
    def stems(self) -> list[str]:
        return stems_of(self.config)

    def part(self, stem: str) -> dict[str, PackedTensor]:
        into_embed, into_head = folded_factors(self.made.config)
        if stem == OWN_HEAD:
            return {HEAD: _folded(head_of(self.made), into_head)}
        found = self.made.part(stem)
        if stem == ENDS:
            found[EMBED] = _folded(found[EMBED], into_embed)
        return found


def head_of(made: Parts) -> PackedTensor:
    """The matrix that gives logits, tied or not. Raises CheckpointError."""
    tied = made.config.tie_word_embeddings
    return made.part(ENDS)[EMBED] if tied else made.part(OWN_HEAD)[HEAD]


def _folded(tensor: PackedTensor, factor: float) -> PackedTensor:
    """``tensor`` times ``factor`` in the smallest floats that hold it, by rows."""
    return smallest_floats(tensor.shape, lambda rows: times(unpack_rows(tensor, rows), factor))
