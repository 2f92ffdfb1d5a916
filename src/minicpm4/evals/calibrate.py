"""Measure what an engine chooses by: threads, chunk, rows together, and where sparse beats dense.

Seconds, not minutes: attention and chunks are timed on two layers with a small vocabulary, since every
layer is alike and the head is the same for all; threads and rows on as many layers as no cache holds.

Other work on the machine must not decide. Candidates run in turns, each is compared with the default of the
same turn, and it takes a clear win in nearly all turns to replace a default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.engine.calibration import Calibration, Crossover, selection
from minicpm4.engine.options import CHUNK
from minicpm4.evals.speed import BenchModel, BenchOptions, Point
from minicpm4.formats import Checkpoint
from minicpm4.formats.checkpoint import TensorInfo
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.quant import PackedTensor
from minicpm4.machine import default_threads, logical_cores, watch_others
from minicpm4.model.weight_plan import plan_weights
from minicpm4.progress import Progress

__all__ = [
    "CHUNKS",
    "TOKENS",
    "best_chunk",
    "calibrate",
    "crossover",
    "faster",
    "make_point",
    "measured_depths",
]

TURNS = 5
TRIES = 3  # of a turn of decoding, the fastest counts: in so few milliseconds, one interruption is a lot
CHUNKS = (128, 256, 512, 1024)
ROWS = (1, 2, 4, 8, 16)
SHARES = (
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
)  # depths, in budgets of sparse attention: below one it reads everything
DEEPEST = 1 << 16
TOKENS = {"prefill": 128, "decode": 16}  # timed at each depth
SMALL_LAYERS, SMALL_VOCABULARY = 2, 256
WEIGHT_BYTES = 256 << 20  # weights that no cache holds
WIN, TURNS_WON = 0.95, 0.8  # of the default's time, in so many of the turns
QUIET = 0.05  # of all processors may be busy with other work where the number of threads is chosen
NOISE = 0.3  # half of the ratios lie further apart: nothing can be said


def calibrate(
    name: str,
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    weights: str = "auto",
    kv: KVFormat = "bf16",
    sparse: SparseConfig | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the CPU's kernels, also where there is a GPU: of a GPU's nothing is left open. ``sparse`` None:
    the model's settings, or the defaults. Raises Minicpm4Error."""
    sparse = sparse or config.sparse_config or SparseConfig()
    settings = {**selection(sparse), "dense_len": -1}
    counts = _thread_counts()
    depths = measured_depths(sparse)
    turns = TURNS * (len(counts) + len(ROWS) + len(CHUNKS) + 4 * len(depths))
    done = iter(range(1, turns + 1))

    def tick() -> None:
        if progress is not None:
            progress(next(done), turns)

    common: Any = {"backend": "cpu", "weights": weights, "kv": kv}
    options = BenchOptions(attentions=("dense",), chunk=64, batch=max(ROWS), **common)
    part, shown = _first_layers(checkpoint, config, weights)
    others = watch_others()
    wide = BenchModel(part, shown, options, room=128)
    threads = _threads(wide, counts, tick)
    share = others()
    if share is not None and share > QUIET:
        threads = None  # with fewer processors to itself, this process finds fewer threads to be enough
    rows = _rows(wide if threads is None else _with_threads(wide, threads), tick)
    layers = config.num_hidden_layers / shown.num_hidden_layers
    del wide

    small = replace(
        config, num_hidden_layers=min(SMALL_LAYERS, config.num_hidden_layers), vocab_size=SMALL_VOCABULARY
    )
    deep_options = BenchOptions(sparse=settings, chunk=max(CHUNKS), threads=threads, **common)
    deep = BenchModel(_Part(checkpoint, small), small, deep_options, room=max(*depths, max(CHUNKS)) + 128)
    return Calibration(
        name=name,
        threads=threads,
        chunk=best_chunk(deep, tick),
        others=None if (share := others()) is None else round(share, 2),
        rows={count: round(rate / layers, 3) for count, rate in rows.items()},
        crossovers=(_crossover(deep, selection(sparse), depths, tick),),
    )


def faster(seconds: Mapping[Any, Sequence[float]], default: Any) -> Any | None:
    """The candidate that clearly beats ``default``, turn by turn; None where none does."""
    best, best_ratio = None, WIN
    for candidate, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, seconds[default], strict=True)]
        won = sum(ratio < 1 for ratio in ratios) / len(ratios)
        if candidate != default and median(ratios) < best_ratio and won >= TURNS_WON:
            best, best_ratio = candidate, median(ratios)
    return best


def crossover(ratios: Mapping[int, Sequence[float]]) -> int | None:
    """The least depth from which sparse time / dense time stays below 1 in the median.

    The deepest one where it never does: further down nothing was measured. None: too noisy to tell.
    """
    for one in ratios.values():
        low, _, high = quantiles(one, n=4)
        if high - low > NOISE:
            return None
    best = max(ratios)
    for depth in sorted(ratios, reverse=True):
        if median(ratios[depth]) >= 1:
            break
        best = depth
    return best


def _threads(model: BenchModel, counts: Sequence[int], tick: Callable[[], None]) -> int | None:
    default = default_threads()
    if len(counts) == 1:
        for _ in range(TURNS):
            tick()
        return None
    models = {count: _with_threads(model, count) for count in counts}
    points = (make_point("prefill", "dense", 0, 64), make_point("decode", "dense", 64, 4))
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for one in models.values():
        one.warm_up()
    for _ in range(TURNS):
        for count, one in models.items():
            prefill, decode = (one.seconds(point) for point in points)
            seconds[count].append(prefill * decode)  # the square of their geometric mean
            tick()
    return faster({count: [time**0.5 for time in times] for count, times in seconds.items()}, default)


def _rows(model: BenchModel, tick: Callable[[], None]) -> dict[int, float]:
    points = {count: replace(make_point("decode", "dense", 16, 2), batch=count) for count in ROWS}
    model.fill(16, max(ROWS))
    seconds = _turns(model, points, tick)
    return {count: points[count].tokens * count / median(times) for count, times in seconds.items()}


def best_chunk(model: BenchModel, tick: Callable[[], None], turns: int = TURNS) -> int | None:
    """The chunk that reads a prompt clearly faster than the default one; None: none does."""
    points = {chunk: make_point("prefill", "dense", 0, max(CHUNKS)) for chunk in CHUNKS}
    model.warm_up()
    seconds: dict[int, list[float]] = {chunk: [] for chunk in CHUNKS}
    for _ in range(turns):
        for chunk in CHUNKS:
            seconds[chunk].append(model.seconds(points[chunk], chunk=chunk))
            tick()
    return faster(seconds, CHUNK)


def _crossover(
    model: BenchModel, sparse: Mapping[str, int | bool], depths: Sequence[int], tick: Callable[[], None]
) -> Crossover:
    found: dict[str, int | None] = {}
    for kind, tokens in TOKENS.items():
        points = {
            (depth, name): make_point(kind, name, depth, tokens) for depth in depths for name in model.sparse
        }
        seconds = _turns(model, points, tick)
        found[kind] = crossover(
            {
                depth: [s / d for s, d in zip(seconds[depth, "sparse"], seconds[depth, "dense"], strict=True)]
                for depth in depths
            }
        )
    return Crossover(sparse=sparse, **found)


def _turns(
    model: BenchModel, points: Mapping[Any, Point], tick: Callable[[], None]
) -> dict[Any, list[float]]:
    """Seconds of each point in each turn; a turn that warms up goes before them."""
    seconds: dict[Any, list[float]] = {name: [] for name in points}
    for point in points.values():
        model.seconds(point)
    for _ in range(TURNS):
        for name, point in points.items():
            tries = TRIES if point.kind == "decode" else 1
            seconds[name].append(min(model.seconds(point) for _ in range(tries)))
            tick()
    return seconds


def make_point(kind: str, attention: str, depth: int, tokens: int) -> Point:
    """A Point of one sequence."""
    return Point(kind=kind, attention=attention, depth=depth, tokens=tokens)  # type: ignore[arg-type]


def measured_depths(sparse: SparseConfig) -> list[int]:
    """Tokens at which dense and sparse attention are compared."""
    tokens = sparse.budget * sparse.block_size
    return sorted({min(DEEPEST, max(1, int(share * tokens))) for share in SHARES})


def _thread_counts() -> list[int]:
    """The default, half of it, and all logical processors that this process may use."""
    default = default_threads()
    return sorted({max(1, default // 2), default, min(logical_cores(), 2 * default)})


def _with_threads(model: BenchModel, threads: int) -> BenchModel:
    """The same weights and pages under another number of threads."""
    other = copy.copy(model)
    other.use_threads(threads)
    return other


def _first_layers(
    checkpoint: Checkpoint, config: ModelConfig, weights: str
) -> tuple[Checkpoint, ModelConfig]:
    """As many layers as no cache holds, or all."""
    each = max(1, plan_weights(checkpoint, config, weights).nbytes // config.num_hidden_layers)
    layers = min(config.num_hidden_layers, -(-WEIGHT_BYTES // each))
    shown = replace(config, num_hidden_layers=layers)
    return _Part(checkpoint, shown), shown


class _Part:
    """A Checkpoint's first layers and first tokens: those of ``config``."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._whole, self._config = checkpoint, config
        self.path = checkpoint.path
        self.files: tuple[Path, ...] = ()  # parts are not kept
        self.tensors: Mapping[str, TensorInfo] = {
            name: info for name, info in checkpoint.tensors.items() if _layer(name) < config.num_hidden_layers
        }

    def hf_config(self) -> dict[str, Any] | None:
        return self._whole.hf_config()

    def metadata(self) -> Mapping[str, Any]:
        return self._whole.metadata()

    def load(self, name: str) -> PackedTensor:
        tensor = self._whole.load(name)
        rows = min(tensor.shape[0], self._config.vocab_size) if name in (EMBED, HEAD) else tensor.shape[0]
        if rows == tensor.shape[0]:
            return tensor

        parts: dict[str, Any] = {
            part: np.ascontiguousarray(array[:rows]) for part, array in tensor.parts.items()
        }
        return replace(tensor, shape=(rows, tensor.shape[1]), **parts)

    def load_vector(self, name: str) -> NDArray[np.float32]:
        return self._whole.load_vector(name)

    def release(self, name: str) -> None:
        self._whole.release(name)


def _layer(name: str) -> int:
    """The layer of a tensor; -1 for those outside the layers."""
    prefix, _, rest = name.partition("model.layers.")
    number = rest.partition(".")[0]
    return int(number) if not prefix and number.isdigit() else -1
