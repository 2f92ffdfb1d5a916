"""From a checkpoint to the weight tree, as planned (weight_plan.py).

Matrices whose stored layout has a kernel stay views into the mapped file; the others are converted
once, one at a time, and the file's pages are let go. So the peak is the model plus one matrix. What took
long to convert is kept on disk for the next start (packed_cache.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.formats import Checkpoint
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Floats
from minicpm4.model.arena import Arena
from minicpm4.model.packed_cache import WeightCache
from minicpm4.model.stored_prefix import StoredPrefix
from minicpm4.model.weight_plan import MatrixPlan, WeightPlan
from minicpm4.model.weight_set import WeightSet, convert
from minicpm4.model.weights import ModelWeights, build_layer
from minicpm4.progress import Progress

WORTH_KEEPING = 1.0  # seconds of converting


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    plan: WeightPlan,
    progress: Progress | None = None,
    ops: OpTable | None = None,
    cache: WeightCache | None = None,
    stored: StoredPrefix | None = None,
) -> WeightSet:
    """Load every tensor of an opened and checked checkpoint, each matrix as ``plan`` has it.

    ``progress`` is called with (layers done, layers). Matrices are put into the layout that the table ``ops``
    likes. What is converted comes from ``cache``, or goes there if it took long; that must be the cache of
    this very checkpoint, choice and layout. ``stored``: its stored prefix. Raises CheckpointError.
    """
    source = _Source(checkpoint, {one.name: one for one in plan}, ops, cache)
    source.read_kept(config, progress)
    layers = []
    for index in range(config.num_hidden_layers):
        own = None if stored is None else stored.layer(index)
        layers.append(build_layer(config, f"model.layers.{index}.", source.vector, source.linear, own))
        if progress is not None:
            progress(index + 1, config.num_hidden_layers)
    embed = source.matrix(EMBED)
    head = embed if config.tie_word_embeddings else source.matrix(HEAD)
    tree = ModelWeights(
        config=config,
        embed=embed,
        layers=tuple(layers),
        norm=source.vector("model.norm.weight"),
        head=head,
        stored=stored,
    )
    source.keep()
    notes = source.summary()
    if stored is not None:
        notes += f"; stored prefix of {len(stored.ids)} tokens"
    return WeightSet(config=config, weights=tree, plan=plan, notes=notes, ops=ops, arena=source.arena)


@dataclass(slots=True, eq=False)
class _Source:
    """Loads matrices and remembers what it did with them."""

    checkpoint: Checkpoint
    plan: Mapping[str, MatrixPlan]
    ops: OpTable | None
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
        result = self.kept.get(name)
        if result is None:
            # The lesser one, since neither waiting for a disk nor other threads' work is spared next time.
            before = time.perf_counter(), time.process_time()
            result = self._convert(name)
            after = time.perf_counter(), time.process_time()
            if name in self.converted:
                self.seconds += min(after[0] - before[0], after[1] - before[1])
        stored = self.plan[name].stored
        how = str(result.spec) if stored == result.spec.row.file else f"{stored} as {result.spec}"
        self.done[how] += 1
        return result

    def _convert(self, name: str) -> PackedTensor:
        result = convert(self.checkpoint, self.plan[name], self.ops)
        # Mapped arrays, which are read-only, stay where they are: loading them costs nothing.
        if not result.codes.flags.writeable:
            return result
        self.converted[name] = result = self.arena.place(result)
        return result

    def _expected(self, name: str, spec: QuantSpec, shape: tuple[int, int]) -> bool:
        """Whether a kept matrix is what converting gives."""
        row = self.plan.get(name)
        return row is not None and row.shape == shape and row.may_be(spec)

    def linear(self, prefix: str) -> Linear:
        bias = prefix + ".bias"
        vector = self.vector(bias) if bias in self.checkpoint.tensors else None
        return Linear(weight=self.matrix(prefix + ".weight"), bias=vector)

    def vector(self, name: str) -> Floats:
        """An array of its own, which may be filled anew."""
        return np.array(self.checkpoint.load_vector(name), np.float32)

    def summary(self) -> str:
        parts = [f"{count} matrices {how}" for how, count in self.done.most_common()]
        said = f" ({self.cache.said})" if self.cache is not None and self.cache.said else ""
        return "weights: " + ", ".join(parts) + said
