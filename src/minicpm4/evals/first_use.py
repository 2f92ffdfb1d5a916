"""Calibration on first use: a few seconds of measuring, before a long prompt is read for the first time.

Where sparse attention begins to pay is the one choice that a long prompt depends on, and a short one never
does. So nothing is measured for a prompt that stays below the model's own ``dense_len``, none where the
caller has chosen, and none while other programs are busy. What is found is kept like the findings of
``minicpm4 doctor --calibrate``, which measures more, and longer.

It is done before a model is loaded, at the level of the commands: an answer that is being written never
changes, and ``LLM`` measures nothing that it was not asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.engine import calibration
from minicpm4.engine.calibration import Calibration, Crossover, selection
from minicpm4.engine.load import Inspection
from minicpm4.engine.options import EngineOptions, resolve_sparse
from minicpm4.errors import ConfigError
from minicpm4.evals.calibrate import CHUNKS, TOKENS, best_chunk, crossover, make_point, measured_depths
from minicpm4.evals.random_model import RandomCheckpoint
from minicpm4.evals.speed import BenchModel, BenchOptions
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.registry import speed_key
from minicpm4.machine import watch_others
from minicpm4.progress import Progress

__all__ = ["calibrate_first", "measure"]

logger = logging.getLogger("minicpm4")

SECONDS = 4.0  # that measuring may take
TURNS, TRIES = 3, 2
FEWEST_DEPTHS = 3
QUIET, LISTEN = 0.25, 0.2  # share of the processors that others may use; seconds of watching them
SMALL = 64  # width of a layer that is nearly all attention


def calibrate_first(found: Inspection, prompt: str, progress: Progress | None = None) -> str | None:
    """Measure and keep what ``prompt`` will need, if that is not known yet; say in one line what was found.

    None: nothing was measured. An interrupt keeps nothing. What was found counts from the next
    ``plan_model`` on. Raises TextError.
    """
    options = found.asked
    if options.attention != "auto" or calibration.folder() is None:
        return None
    there = speed_key(options.backend, options.isa, options.activations)
    if there is None:
        return None
    sparse = _open_choice(options, found.config)
    if sparse is None:
        return None
    key = calibration.key(there, found.config, found.weights, options.kv)
    known = calibration.load(key)
    if known is not None and known.crossover(sparse) is not None:
        return None
    if len(found.text.encode(prompt)) < sparse.dense_below or _loud():
        return None
    began = time.perf_counter()
    others = watch_others()
    result = measure(found.source.name[:200], found, sparse, progress)
    share = others()
    result = replace(result, others=None if share is None else round(share, 2))
    if known is not None:  # a longer calibration, of other sparse settings
        result = replace(known, crossovers=result.crossovers)
    try:
        calibration.save(key, result)
    except ConfigError as error:  # must not stand in an answer's way
        logger.warning("%s", error)
        return None
    line = (
        f"calibrated in {time.perf_counter() - began:.1f} s, once for this machine and model: {_said(result)}"
    )
    logger.info("%s: %s", found.source.name, line)
    return line


def measure(name: str, found: Inspection, sparse: SparseConfig, progress: Progress | None) -> Calibration:
    """Compare dense and sparse attention at a few depths, then chunks as far as time remains."""
    stop = time.perf_counter() + SECONDS
    settings = selection(sparse)
    depths = measured_depths(sparse)
    total = TURNS * (2 * len(depths) + len(CHUNKS))
    done = iter(range(1, total + 1))

    def tick() -> None:
        if progress is not None:
            progress(next(done, total), total)

    prefill, decode = _crossovers(found, settings, depths, stop, tick)
    pays = Crossover(sparse=settings, prefill=prefill, decode=decode)
    chunk = _chunk(found, stop, tick)
    if progress is not None:
        progress(total, total)
    return Calibration(name=name, chunk=chunk, crossovers=(pays,))


def _open_choice(options: EngineOptions, config: ModelConfig) -> SparseConfig | None:
    """The sparse settings in use, if a calibration decides from where on; None: nothing is open."""
    asked: list[SparseConfig] = []
    used = resolve_sparse(options, config, asked.append)
    return asked[0] if used is not None and asked else None


def _loud() -> bool:
    others = watch_others()
    time.sleep(LISTEN)
    share = others()
    return share is not None and share > QUIET


def _crossovers(
    found: Inspection,
    settings: dict[str, int | bool],
    depths: Sequence[int],
    stop: float,
    tick: Callable[[], None],
) -> tuple[int | None, int | None]:
    """Where sparse attention pays, in prefill and in decoding."""
    # Products cost both alike, so what is left out with them does not move the point where they meet.
    config = replace(
        found.config, num_hidden_layers=1, vocab_size=SMALL, hidden_size=SMALL, intermediate_size=SMALL
    )
    options = BenchOptions(
        sparse={**settings, "dense_len": -1},
        kv=found.options.kv,
        backend=found.options.backend,
        activations=found.options.activations,
        threads=found.options.threads,
        chunk=max(TOKENS.values()),
    )
    checkpoint = RandomCheckpoint(config, lambda name, shape: QuantSpec(kind="f32"))
    model = BenchModel(checkpoint, config, options, room=max(depths) + 2 * max(TOKENS.values()))
    ratios: dict[str, dict[int, list[float]]] = {kind: {} for kind in TOKENS}
    spent = 0.0
    for depth in depths:
        began = time.perf_counter()
        for kind in TOKENS:
            _ratio(model, kind, depth, 1)  # fills pages, touches memory
        spent += time.perf_counter() - began
        if len(ratios["decode"]) >= FEWEST_DEPTHS and began + (1 + TRIES * TURNS) * spent > stop:
            break
        for kind in TOKENS:
            ratios[kind][depth] = []
    for _ in range(TURNS):
        for depth in ratios["decode"]:
            if time.perf_counter() > stop + SECONDS / 2:  # other work has come up
                return None, None
            for kind in TOKENS:
                ratios[kind][depth].append(_ratio(model, kind, depth, TRIES))
                tick()
    whole = len(ratios["decode"]) == len(depths)
    prefill, decode = (_pays(ratios[kind], whole) for kind in ("prefill", "decode"))
    return prefill, decode


def _ratio(model: BenchModel, kind: str, depth: int, tries: int) -> float:
    """Time of sparse by that of dense attention, in turn, each the fastest of ``tries``."""
    points = [make_point(kind, name, depth, TOKENS[kind]) for name in ("sparse", "dense")]
    seconds = [[model.seconds(one) for one in points] for _ in range(tries)]
    sparse, dense = (min(times) for times in zip(*seconds, strict=True))
    return sparse / dense


def _pays(ratios: dict[int, list[float]], whole: bool) -> int | None:
    """As ``crossover``; None as well where depths were left out, and at the others sparse never pays."""
    if not whole and median(ratios[max(ratios)]) >= 1:
        return None
    return crossover(ratios)


def _chunk(found: Inspection, stop: float, tick: Callable[[], None]) -> int | None:
    """The best chunk for one layer of the model's width; None where there is no time, or no clear winner."""
    if time.perf_counter() > stop:
        return None
    config = replace(found.config, num_hidden_layers=1, vocab_size=SMALL)
    targets = {one.name: one.target for one in found.weights}
    checkpoint = RandomCheckpoint(config, lambda name, shape: targets[name])
    options = BenchOptions(
        attentions=("dense",),
        kv=found.options.kv,
        backend=found.options.backend,
        activations=found.options.activations,
        threads=found.options.threads,
        chunk=max(CHUNKS),
    )
    model = BenchModel(checkpoint, config, options, room=max(CHUNKS) + 128)
    began = time.perf_counter()
    model.warm_up()
    now = time.perf_counter()
    if now + TURNS * len(CHUNKS) * (now - began) > stop:
        return None
    return best_chunk(model, tick, TURNS)


def _said(result: Calibration) -> str:
    pays = result.crossovers[0].tokens
    where = (
        "is left to the model, figures were too far apart" if pays is None else f"pays from {pays:,} tokens"
    )
    return f"sparse attention {where}; chunk {result.chunk or 'as by default'}"
