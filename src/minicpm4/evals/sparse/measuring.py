"""Readings of one text with several settings, kept as they come; and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.config.strict import check_scalar, from_table, require
from minicpm4.engine.load import Inspection
from minicpm4.evals.calibrate import TOKENS, make_point
from minicpm4.evals.sparse.layout import Layout
from minicpm4.evals.sparse.reading import Reader
from minicpm4.evals.speed import BenchModel, BenchOptions
from minicpm4.evals.speed import measure as measure_points
from minicpm4.files import Kept
from minicpm4.progress import Progress

__all__ = ["CANDIDATES", "DENSE", "PLACES", "Result", "measure", "name_of", "time_settings"]

DENSE = "dense"
PLACES = 32  # stretches of running text, over which intervals are told
TURNS = 5  # of timing, dense and sparse by turns; the least of each counts, as other work only adds


def _setting(topk: int, window: int, kernel: int) -> SparseConfig:
    return SparseConfig(
        topk=topk, window_size=window, kernel_size=kernel, kernel_stride=kernel // 2, dense_len=-1
    )


CANDIDATES = (
    _setting(8, 512, 32),
    _setting(8, 512, 16),
    _setting(8, 512, 8),
    _setting(16, 512, 8),
    _setting(16, 512, 16),
    _setting(16, 1024, 32),
    _setting(32, 1024, 32),
    _setting(32, 1024, 16),
)
_NAMES = {
    "topk": "topk",
    "window_size": "window",
    "kernel_size": "kernel",
    "kernel_stride": "stride",
    "block_size": "block",
    "init_blocks": "init",
    "lse_approx": "lse",
    "use_nope": "use_nope",
    "dense_len": "dense_len",
}
_ALWAYS = ("topk", "window_size", "kernel_size", "kernel_stride")


def name_of(config: SparseConfig) -> str:
    """As --sparse takes it: the four sizes, and what else is not as by default."""
    usual = SparseConfig(dense_len=-1)
    told = {
        short: getattr(config, name)
        for name, short in _NAMES.items()
        if name in _ALWAYS or getattr(config, name) != getattr(usual, name)
    }
    return ",".join(f"{name}={'on' if value is True else value}" for name, value in told.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One reading. Losses in nats a token: ``places`` of running text by stretches, ``original`` and ``copy``
    of the passage. ``blocks`` and ``cache``: shares of blocks, and of bytes, that the last token reads of
    what dense attention does. ``recall``: as ``Recall.as_dict`` has it, None of dense."""

    name: str
    sparse: Mapping[str, Any] | None
    places: tuple[float, ...]
    original: float
    copy: float
    blocks: float = 1.0
    cache: float = 1.0
    recall: Mapping[str, Any] | None = None

    @property
    def running(self) -> float:
        return float(np.mean(self.places))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "running": self.running}


def measure(
    open_reader: Callable[[], Reader],
    layout: Layout,
    settings: Sequence[SparseConfig],
    kept: Kept | None,
    progress: Progress | None = None,
) -> list[Result]:
    """The dense reading, then one with each of ``settings``; those that are kept are found again, and the
    model is opened only for others."""
    readers: list[Reader] = []
    length, count = len(layout.ids), 0

    def tick(tokens: int) -> None:
        nonlocal count
        count += tokens
        if progress is not None:
            progress(count, length * (1 + len(settings)))

    def reader() -> Reader:
        if not readers:
            readers.append(open_reader())
        return readers[0]

    results = []
    named = {name_of(one): one for one in settings}
    for name, make in _readings(reader, layout, named, tick):
        found = None if kept is None else kept.get(partial(_reading, named), "reading", name)
        if found is None:
            found = make()
            if kept is not None:
                kept.put(found, "reading", name)
        else:
            tick(length)
        results.append(found)
    dense, *others = results
    return [
        _result(DENSE, None, dense),
        *(
            _result(name, {**one, "recall": dense["recalls"][name]}, one)
            for name, one in zip(named, others, strict=True)
        ),
    ]


def _readings(
    reader: Callable[[], Reader],
    layout: Layout,
    settings: Mapping[str, SparseConfig],
    tick: Callable[[int], object],
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is to be read, and how."""

    def dense() -> dict[str, Any]:
        losses, recalls = reader().watch(layout, settings, tick)
        return {**_losses(losses, layout), "recalls": {name: one.as_dict() for name, one in recalls.items()}}

    yield DENSE, dense
    last = len(layout.ids) - 1
    for name, config in settings.items():

        def sparse(config: SparseConfig = config) -> dict[str, Any]:
            return {
                **_losses(reader().losses(layout, config, tick), layout),
                "sparse": asdict(config),
                "blocks": config.num_selected(last) / (last // config.block_size + 1),
                "cache": reader().cache_share(config, len(layout.ids)),
            }

        yield name, sparse


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shares:
    """As ``Recall.as_dict`` has them."""

    by_layer_and_head: tuple[tuple[float, ...] | None, ...]
    mean: float | None
    far: float | None
    far_mass: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """What is kept of a reading: ``recalls`` of the dense one, the last three of others."""

    places: tuple[float, ...]
    original: float
    copy: float
    recalls: Mapping[str, _Shares] | None = None
    sparse: SparseConfig | None = None
    blocks: float | None = None
    cache: float | None = None


def _reading(settings: Mapping[str, SparseConfig], value: Any) -> dict[str, Any]:
    """A kept reading, looked at. Raises ConfigError."""
    one = from_table(_Reading, value, "it")
    require(len(one.places) == PLACES, f"it has {len(one.places)} stretches, not {PLACES}")
    if one.recalls is not None:
        require(one.recalls.keys() == settings.keys(), "it has the recall of other settings")
    else:
        sides = (one.sparse, one.blocks, one.cache)
        require(None not in sides, "it is neither a dense reading nor that of a setting")
    return dict(value)


def _kept_times(value: Any) -> dict[str, float]:
    require(isinstance(value, Mapping) and value.keys() == TOKENS.keys(), f"it has not {', '.join(TOKENS)}")
    return {kind: check_scalar(rate, float, f"it.{kind}") for kind, rate in value.items()}


def _losses(losses: NDArray[np.float32], layout: Layout) -> dict[str, Any]:
    running = np.array_split(losses[layout.running.start : layout.running.stop].astype(np.float64), PLACES)
    passage = {"original": layout.original, "copy": layout.copy}
    means = {name: float(losses[each.start : each.stop].mean()) for name, each in passage.items()}
    return {"places": [float(part.mean()) for part in running], **means}


def _result(name: str, more: Mapping[str, Any] | None, reading: Mapping[str, Any]) -> Result:
    names = ("sparse", "blocks", "cache", "recall")
    others: dict[str, Any] = {"sparse": None} if more is None else {key: more[key] for key in names}
    return Result(
        name=name,
        places=tuple(reading["places"]),
        original=reading["original"],
        copy=reading["copy"],
        **others,
    )


def time_settings(
    found: Inspection,
    length: int,
    settings: Sequence[SparseConfig],
    kept: Kept | None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """By name how many times as fast as dense attention a setting reads and writes after ``length`` tokens:
    by the least times of turns. Random keys, which spread the choice."""
    times: dict[str, dict[str, float]] = {}
    for done, config in enumerate(settings, 1):
        name = name_of(config)
        one = None if kept is None else kept.get(_kept_times, "times", name)
        if one is None:
            one = _times(found, length, config)
            if kept is not None:
                kept.put(one, "times", name)
        times[name] = one
        if progress is not None:
            progress(done, len(settings))
    return times


def _times(found: Inspection, length: int, config: SparseConfig) -> dict[str, float]:
    asked = found.options
    options = BenchOptions(
        sparse=asdict(config),
        weights=asked.weights,
        kv=asked.kv,
        activations=asked.activations,
        backend=asked.backend,
        threads=asked.threads,
        chunk=TOKENS["prefill"],
    )
    model = BenchModel(found.checkpoint, found.config, options, length)
    points = [
        make_point(kind, way, length - tokens, tokens)
        for kind, tokens in TOKENS.items()
        for way in ("dense", "sparse")
    ]
    seconds = [one.seconds for one in measure_points(model, points, TURNS)]
    return {
        kind: min(dense) / min(sparse)
        for kind, (dense, sparse) in zip(TOKENS, (seconds[:2], seconds[2:]), strict=True)
    }
