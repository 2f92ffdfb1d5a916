"""Where the batches of each stage come from: streams over the packed sets; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from minicpm4.data.batch import Batch
from minicpm4.data.mixture import MixturePart, Stream, buckets
from minicpm4.data.shards import ShardSet
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.stages import passes

__all__ = ["Batches", "Source", "held_out_stream", "sources", "training_stream"]

HELD_OUT = 8  # forward passes of one process, whose tokens validation looks at


class Batches(Protocol):
    """Where a stage's batches come from: a pure function of the step (of all micro-batches, of this
    process)."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Of one stage: training and held-out batches."""

    training: Batches
    held_out: Sequence[Batch] = ()


def sources(
    recipe: Recipe, data: Mapping[str, ShardSet], rank: int = 0, processes: int = 1
) -> dict[str, Source]:
    """Training and held-out batches of each stage, of process ``rank``; ``data``: packed sets by corpus.
    Raises ConfigError."""
    found = {}
    for stage in recipe.stages:
        held = held_out_stream(recipe, data, stage, rank, processes)
        found[stage.name] = Source(
            training=training_stream(recipe, data, stage, rank, processes),
            held_out=[] if held is None else [held.batch(i) for i in range(_held_out(stage, processes))],
        )
    return found


def training_stream(
    recipe: Recipe, data: Mapping[str, ShardSet], stage: Stage, rank: int = 0, processes: int = 1
) -> Stream:
    """What ``stage`` learns from. Raises ConfigError where its sets give no such batches."""
    return Stream(
        _parts(recipe, data, stage, held_out=False),
        seed=recipe.seed + recipe.stages.index(stage),
        tokens=passes(stage, processes).tokens,
        context=stage.context,
        rank=rank,
        processes=processes,
    )


def held_out_stream(
    recipe: Recipe, data: Mapping[str, ShardSet], stage: Stage, rank: int = 0, processes: int = 1
) -> Stream | None:
    """What validation looks at in ``stage``; None where it does not, or its corpora hold nothing out. Raises
    ConfigError."""
    parts = _parts(recipe, data, stage, held_out=True) if recipe.validate else []
    if not parts:
        return None
    return Stream(
        parts,
        seed=recipe.seed,
        tokens=passes(stage, processes).tokens,
        context=stage.context,
        rank=rank,
        processes=processes,
    )


def _held_out(stage: Stage, processes: int) -> int:
    """Held-out batches of each process: all together read as many tokens as one would alone, fewer where they
    cannot share these batches evenly, and more where there are more processes than batches."""
    wanted = HELD_OUT * passes(stage, 1).tokens
    return max(wanted // (processes * passes(stage, processes).tokens), 1)


def _parts(
    recipe: Recipe, sets: Mapping[str, ShardSet], stage: Stage, *, held_out: bool
) -> list[MixturePart]:
    parts: list[MixturePart] = []
    for name, share in stage.data.items():
        data, holdout = sets[name], recipe.corpora[name].holdout
        if held_out and not holdout:
            continue
        chosen = data.chosen(holdout, held_out=held_out)
        part = MixturePart(name=name, data=data, share=share, chosen=chosen)
        parts += buckets(part, stage.buckets, stage.context) if stage.buckets else [part]
    return parts
