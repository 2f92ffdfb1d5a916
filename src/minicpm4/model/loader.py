"""From a checkpoint to the weight tree: which format each matrix gets, and the loading itself.

Matrices whose stored layout has a kernel stay views into the mapped file; the others are converted
once, one at a time, and the file's pages are let go. So the peak is the model plus one matrix. What took
long to convert is kept on disk for the next start (packed_cache.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minicpm4.config import ModelConfig
from minicpm4.config.gguf import ROPE_VECTORS, config_from_gguf
from minicpm4.config.strict import suggest
from minicpm4.errors import ConfigError
from minicpm4.formats import Checkpoint, check_tensors, open_checkpoint
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.packing import (
    default_spec,
    detect_rounded,
    detect_ternary,
    pack_ternary_exact,
    repack,
)
from minicpm4.formats.quant import FLOAT_KINDS, GROUPED_KINDS, PackedTensor, QuantSpec, packed_nbytes
from minicpm4.kernels.contract import Linear
from minicpm4.model.arena import Arena
from minicpm4.model.packed_cache import WeightCache
from minicpm4.model.weights import ModelWeights, build_layer

WEIGHT_CHOICES = ("auto", "bf16", "int8", "int4", "ternary")
WORTH_KEEPING = 1.0  # seconds of converting
Progress = Callable[[int, int], None]
Prepare = Callable[[PackedTensor], PackedTensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedModel:
    """A model in memory; ``notes`` say what was converted, one line."""

    config: ModelConfig
    weights: ModelWeights
    checkpoint: Checkpoint
    notes: str


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The checkpoint's ModelConfig. Raises ConfigError."""
    raw = checkpoint.hf_config()
    if raw is not None:
        return ModelConfig.from_hf(raw)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    vectors = {name: checkpoint.load_vector(name).tolist() for name in ROPE_VECTORS if name in shapes}
    return config_from_gguf(checkpoint.metadata(), shapes, vectors)


def load_model(
    path: Path, weights: str = "auto", progress: Progress | None = None, prepare: Prepare | None = None
) -> LoadedModel:
    """Load the checkpoint at ``path``; ``progress`` is called with (layers done, layers).

    Raises CheckpointError, ConfigError.
    """
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint)
    check_tensors(checkpoint, config)
    return load_weights(checkpoint, config, weights, progress, prepare)


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    weights: str = "auto",
    progress: Progress | None = None,
    prepare: Prepare | None = None,
    cache: WeightCache | None = None,
) -> LoadedModel:
    """Load every tensor of an opened and checked checkpoint.

    ``prepare`` puts a matrix into the layout that an op table likes. What is converted comes from ``cache``,
    or goes there if it took long; that must be the cache of this very checkpoint, choice and layout.
    """
    check_weights_choice(weights)
    source = _Source(checkpoint, weights, prepare or (lambda tensor: tensor), cache)
    source.read_kept(config, progress)
    layers = []
    for index in range(config.num_hidden_layers):
        layers.append(build_layer(config, f"model.layers.{index}.", checkpoint.load_vector, source.linear))
        if progress is not None:
            progress(index + 1, config.num_hidden_layers)
    embed = source.matrix(EMBED)
    head = embed if config.tie_word_embeddings else source.matrix(HEAD)
    tree = ModelWeights(
        config=config,
        embed=embed,
        layers=tuple(layers),
        norm=checkpoint.load_vector("model.norm.weight"),
        head=head,
    )
    source.keep()
    return LoadedModel(config=config, weights=tree, checkpoint=checkpoint, notes=source.summary())


def plan_weights(checkpoint: Checkpoint, config: ModelConfig, weights: str = "auto") -> int:
    """Bytes that the matrices will take, before loading any (packing found later can only shrink it)."""
    check_weights_choice(weights)
    total = 0
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2 and not (name == HEAD and config.tie_word_embeddings):
            target = target_spec(name, info.spec, (info.shape[0], info.shape[1]), weights)
            same = target == info.spec
            total += info.loaded_nbytes if same else packed_nbytes((info.shape[0], info.shape[1]), target)
    return total


def check_weights_choice(weights: str) -> None:
    """Raise ConfigError unless ``weights`` is one of WEIGHT_CHOICES."""
    if weights not in WEIGHT_CHOICES:
        raise ConfigError(
            f"weights = {weights!r} is not a weight format", suggest(weights, list(WEIGHT_CHOICES))
        )


def target_spec(name: str, stored: QuantSpec, shape: tuple[int, int], weights: str) -> QuantSpec:
    """The format in which a matrix will be held.

    Embeddings and head keep 8 bits when less is asked for: their rows meet every token, and rounding
    them costs far more accuracy than it saves memory.
    """
    if weights in ("auto", stored.kind):
        return stored
    if weights == "bf16":
        return QuantSpec(kind="bf16")
    if name in (EMBED, HEAD) and weights in ("int4", "ternary"):
        return stored if stored.kind not in FLOAT_KINDS else default_spec("int8", shape[1]) or stored
    return default_spec(weights, shape[1]) or stored


@dataclass(slots=True, eq=False)
class _Source:
    """Loads matrices and remembers what it did with them."""

    checkpoint: Checkpoint
    weights: str
    prepare: Prepare
    cache: WeightCache | None
    done: Counter[str] = field(default_factory=Counter)
    arena: Arena = field(default_factory=Arena)
    kept: dict[str, PackedTensor] = field(default_factory=dict)
    converted: dict[str, PackedTensor] = field(default_factory=dict)
    seconds: float = 0.0  # of converting

    def read_kept(self, config: ModelConfig, progress: Progress | None) -> None:
        """Read what earlier starts have converted."""
        if self.cache is not None:
            layers = config.num_hidden_layers
            share = None if progress is None else lambda part: progress(int(part * layers), layers)
            self.kept = self.cache.load(self._expected, share)

    def keep(self) -> None:
        """Have the next start spared what took long."""
        if self.cache is not None and self.seconds > WORTH_KEEPING:
            self.cache.save(self.kept | self.converted, self.seconds)

    def matrix(self, name: str) -> PackedTensor:
        info = self.checkpoint.tensors[name]
        result = self.kept.get(name)
        if result is None:
            # The lesser one, since neither waiting for a disk nor other threads' work is spared next time.
            before = time.perf_counter(), time.process_time()
            result = self._convert(name)
            after = time.perf_counter(), time.process_time()
            if name in self.converted:
                self.seconds += min(after[0] - before[0], after[1] - before[1])
        how = str(result.spec) if _as_stored(info.dtype, result.spec) else f"{info.dtype} as {result.spec}"
        self.done[how] += 1
        return result

    def _convert(self, name: str) -> PackedTensor:
        tensor = self.checkpoint.load(name)
        target = target_spec(name, tensor.spec, tensor.shape, self.weights)
        if target != tensor.spec:
            result = repack(tensor, target)
        else:
            result = self._packed_if_rounded(tensor)
        result = self.prepare(result)
        if result is not tensor or self.checkpoint.tensors[name].spec.kind not in FLOAT_KINDS:
            self.checkpoint.release(name)
        # Mapped arrays, which are read-only, stay where they are: loading them costs nothing.
        if not result.codes.flags.writeable:
            return result
        self.converted[name] = result = self.arena.place(result)
        return result

    def _expected(self, name: str, spec: QuantSpec, shape: tuple[int, int]) -> bool:
        """Whether a kept matrix is what converting gives."""
        info = self.checkpoint.tensors.get(name)
        if info is None or info.shape != shape:
            return False
        target = target_spec(name, info.spec, shape, self.weights)
        found = self.weights == "auto" and target.kind in FLOAT_KINDS and spec.kind in GROUPED_KINDS
        return found or spec == target

    def _packed_if_rounded(self, tensor: PackedTensor) -> PackedTensor:
        # BitCPM4 checkpoints hold float matrices whose values are already scale * {-1, 0, 1}; what this
        # package trains in int4 and int8 is rounded in the same way.
        if self.weights != "auto":
            return tensor
        ternary = detect_ternary(tensor)
        if ternary is not None:
            return pack_ternary_exact(tensor, ternary)
        rounded = detect_rounded(tensor)
        return tensor if rounded is None else repack(tensor, rounded)

    def linear(self, prefix: str) -> Linear:
        bias = prefix + ".bias"
        vector = self.checkpoint.load_vector(bias) if bias in self.checkpoint.tensors else None
        return Linear(weight=self.matrix(prefix + ".weight"), bias=vector)

    def summary(self) -> str:
        parts = [f"{count} matrices {how}" for how, count in self.done.most_common()]
        said = f" ({self.cache.said})" if self.cache is not None and self.cache.said else ""
        return "weights: " + ", ".join(parts) + said


def _as_stored(dtype: str, spec: QuantSpec) -> bool:
    return {"F32": "f32", "F16": "f16", "BF16": "bf16"}.get(dtype) == spec.kind
