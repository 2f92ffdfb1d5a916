"""Tokens per second of reading and writing at any depth, dense and sparse.

A depth is made without running the model: pages are filled with random keys and values of the
scale that normalised inputs give, through the op table's own append, compressed keys included.
Time does not depend on the numbers; which blocks sparse attention chooses does, and random keys
spread the choice over the whole context, which is the hard case for caches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.engine.executors import Executor
from minicpm4.engine.load import load_planned, plan_memory
from minicpm4.engine.options import EngineOptions, resolve_sparse
from minicpm4.engine.runner import Runner
from minicpm4.engine.sequence import Sequence as TokenSequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.evals.cost import decode_bytes, prefill_flops
from minicpm4.formats import Checkpoint
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.registry import resolve
from minicpm4.kernels.step import Step
from minicpm4.model.cache import page_size_for
from minicpm4.model.weight_plan import plan_weights
from minicpm4.progress import Progress

__all__ = ["BenchModel", "BenchOptions", "Kind", "Measurement", "Point", "measure"]

Kind = Literal["prefill", "decode"]
FILL = 4096  # tokens whose keys are drawn at a time
WARM_UP = 8  # tokens decoded, after a chunk was read, before anything is timed


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Run ``tokens`` tokens that follow ``depth`` others: in chunks (prefill), or one by one (decode).

    Decoding may be of several sequences at a time, ``batch``, of ``tokens`` each."""

    kind: Kind
    attention: str
    depth: int
    tokens: int
    batch: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Seconds of each repeat of a point."""

    point: Point
    seconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Tokens per second of all sequences together, the median of the repeats."""
        return self.point.batch * self.point.tokens / median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest less fastest repeat, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / median(self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """How the model runs; see LLM. ``attentions``: what points may ask for, each dense, sparse or
    auto. ``chunk``: tokens of a prefill step; ``batch``: the most sequences that a point decodes."""

    attentions: tuple[str, ...] = ("dense", "sparse")
    sparse: Mapping[str, Any] | str | None = None
    weights: str = "auto"
    kv: KVFormat = "bf16"
    activations: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    chunk: int = 512
    batch: int = 1
    ignore_fields: tuple[str, ...] = ()

    def engine(self, attention: str, room: int) -> EngineOptions:
        """The same for one attention and ``room`` tokens. Raises ConfigError."""
        return EngineOptions(
            attention=attention,
            sparse=None if attention == "dense" else self.sparse,
            weights=self.weights,
            kv=self.kv,
            activations=self.activations,
            backend=self.backend,
            threads=self.threads,
            context=room,
            max_batch=self.batch,
            chunk=self.chunk,
        )


class BenchModel:
    """A loaded model and pages for ``room`` tokens of each sequence, which all attentions share.

    Raises CheckpointError, ConfigError, UnsupportedError, MemoryPlanError.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        options: BenchOptions,
        room: int,
        progress: Progress | None = None,
    ) -> None:
        engines = {name: options.engine(name, room) for name in options.attentions}
        self.config, self.options, self.room = config, options, room
        self.sparse = {name: resolve_sparse(engine, config) for name, engine in engines.items()}
        self.ops: OpTable = resolve(options.backend, threads=options.threads, activations=options.activations)
        weights = plan_weights(checkpoint, config, options.weights).on(self.ops)
        paged = next((sparse for sparse in self.sparse.values() if sparse is not None), None)
        page_size = page_size_for(paged)
        every = options.batch * -(-room // page_size) * page_size  # as if all were one sequence
        sizes: Any = {"context": every, "max_batch": 1, "max_rows": options.chunk}
        self.plan = plan_memory(self.ops, config, weights, paged, options.kv, **sizes)
        loaded = load_planned(checkpoint, config, weights, self.ops, progress)
        self.weights, self.notes = loaded.weights, loaded.notes
        self._paged, self._filled = paged, [0] * options.batch
        self._executor = Executor(
            self.ops,
            config,
            context=room,
            num_pages=self.plan.num_pages,
            page_size=page_size,
            kv=options.kv,
            sparse=paged,
        )
        self._runners = {name: self._runner(sparse) for name, sparse in self.sparse.items()}
        self._rng = np.random.Generator(np.random.SFC64(0))
        self._tokens: list[int] = self._rng.integers(0, config.vocab_size, room).tolist()
        each = -(-room // page_size)
        self._sequences = [
            TokenSequence(index, [], room, pages=list(range(index * each, (index + 1) * each)))
            for index in range(options.batch)
        ]

    def cost(self, point: Point) -> float:
        """Bytes that a decoded token reads, or operations that a prefilled one takes, at least."""
        sparse = self.sparse[point.attention]
        if point.kind == "decode":
            return decode_bytes(self.weights, point.depth, self.options.kv, sparse, point.batch)
        return prefill_flops(self.weights, point.depth, point.tokens, sparse) / point.tokens

    def warm_up(self) -> None:
        """Touch all memory and code that points use."""
        for name in self._runners:
            tokens = min(self.options.chunk, self.room)
            self.seconds(Point(kind="prefill", attention=name, depth=0, tokens=tokens))
            self.seconds(Point(kind="decode", attention=name, depth=0, tokens=min(WARM_UP, self.room)))

    def use_threads(self, threads: int) -> None:
        """Go on with another number of threads. Raises ConfigError."""
        self.ops = resolve(self.options.backend, threads=threads, activations=self.options.activations)
        self._executor.ops = self.ops
        self._runners = {name: self._runner(sparse) for name, sparse in self.sparse.items()}

    def seconds(self, point: Point, chunk: int | None = None) -> float:
        """Run a point once, pages before it filled; return its time. ``chunk``: less than options.chunk."""
        self.fill(point.depth, point.batch)
        runner = self._runners[point.attention]
        chunk = min(chunk or self.options.chunk, self.options.chunk) if point.kind == "prefill" else 1
        tokens, end, total = self._tokens, point.depth + point.tokens, 0.0
        for start in range(point.depth, end, chunk):
            stop = min(start + chunk, end)
            # As in the engine, logits are computed where a token is to be sampled: at the very end.
            sequences = self._sequences[: point.batch]
            for sequence in sequences:
                sequence.tokens = tokens[: stop if point.kind == "decode" else end]
                sequence.computed = start
            plan = StepPlan([Span.next(sequence, chunk) for sequence in sequences])
            began = time.perf_counter()
            _ = runner.execute(plan).logits  # made when asked for
            total += time.perf_counter() - began
        return total

    def fill(self, depth: int, batch: int = 1) -> None:
        """Have random keys and values in all pages of ``batch`` sequences up to ``depth`` tokens."""
        for index in range(batch):
            self._fill(index, depth)

    def _fill(self, index: int, depth: int) -> None:
        while self._filled[index] < depth:
            start, stop = self._filled[index], min(self._filled[index] + FILL, depth)
            shape = (stop - start, self.config.num_key_value_heads, self.config.head_dim)
            # Layers never meet, so all may have the same ones.
            keys, values = (self.ops.put(self._rng.standard_normal(shape, np.float32)) for _ in range(2))
            step = self._step(index, start, stop)
            for layer in range(self.config.num_hidden_layers):
                self.ops.append(keys, values, self._executor.pool.layer(layer), step)
            self._filled[index] = stop

    def _step(self, index: int, start: int, stop: int) -> Step:
        cos, sin = self._executor.rotary.tables(stop)
        return Step(
            ids=np.zeros(stop - start, np.int32),
            positions=np.arange(start, stop, dtype=np.int32),
            cu_rows=np.array([0, stop - start], np.int32),
            page_table=np.array([self._sequences[index].pages], np.int32),
            cos=cos,
            sin=sin,
            sparse=self._paged,
        )

    def _runner(self, sparse: SparseConfig | None) -> Runner:
        sizes = {"max_rows": self.options.chunk, "max_sequences": self.options.batch}
        return self._executor.runner(self.weights, sparse, **sizes)


def measure(
    model: BenchModel, points: Sequence[Point], repeats: int, progress: Progress | None = None
) -> list[Measurement]:
    """Run every point ``repeats`` times, one after another and not each by itself, so that a slow
    moment of the machine meets all of them alike."""
    for point in points:
        model.fill(point.depth, point.batch)
    model.warm_up()
    seconds: list[list[float]] = [[] for _ in points]
    for repeat in range(repeats):
        for index, point in enumerate(points):
            seconds[index].append(model.seconds(point))
            if progress is not None:
                progress(repeat * len(points) + index + 1, repeats * len(points))
    return [Measurement(point=p, seconds=tuple(s)) for p, s in zip(points, seconds, strict=True)]
