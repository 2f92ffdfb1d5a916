"""Learning rates: warm-up, stable, decay (WSD; MiniCPM, arXiv 2404.06395, section 4).

The rate is a pure function of the step, so a resumed run needs no state of it. A stage of ``steps`` steps,
counted from 0:

    warm-up   steps 0 to warmup - 1        a straight line from ``warmup_from`` x ``rate`` to ``rate``
    stable    the steps between            ``rate``
    decay     the last ``decay.steps``     from ``rate`` to ``decay.final`` x ``rate``

Both slopes lie strictly between their ends: the first stable step has the whole rate, the step after the
last would have the final one. So no step is spent at a rate of 0. Stages follow one another, each with its
own warm-up: from the rate that the one before ended with or, where ``warmup_from`` is given, from that. A
second warm-up is what quantisation-aware training needs (BitCPM4; MiniCPM4 report, arXiv 2506.07900).
"""

from __future__ import annotations

from typing import Protocol

from minicpm4.train.recipe import Recipe
from minicpm4.train.settings import Decay

__all__ = ["Slopes", "rate_at", "rate_within"]


class Slopes(Protocol):
    """What of a stage decides its rates."""

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def warmup_from(self) -> float: ...
    @property
    def decay(self) -> Decay: ...


def rate_at(recipe: Recipe, step: int) -> float:
    """The learning rate of ``step``, counted from 0 over all stages."""
    number, within = recipe.at(step)
    return rate_within(recipe.stages[number], within, _end(recipe.stages[number - 1]) if number else 0.0)


def rate_within(stage: Slopes, step: int, before: float = 0.0) -> float:
    """The rate of a stage's step; ``before``: what the stage before ended with."""
    if step < stage.warmup:
        start = before if stage.warmup_from < 0 else stage.warmup_from * stage.rate
        return start + (stage.rate - start) * (step + 1) / (stage.warmup + 1)
    done = step - (stage.steps - stage.decay.steps) + 1
    if done <= 0 or not stage.decay.steps:
        return stage.rate
    return stage.rate * stage.decay.left(min(1.0, done / (stage.decay.steps + 1)))


def _end(stage: Slopes) -> float:
    """The rate that a stage ends with: the limit of its decay."""
    return stage.rate * (stage.decay.final if stage.decay.steps else 1.0)
