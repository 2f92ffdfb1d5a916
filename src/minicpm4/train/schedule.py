"""Learning rates: warm-up, stable, decay (WSD; MiniCPM, arXiv 2404.06395, section 4).

The rate is a pure function of the step, so a resumed run needs no state of it. A stage of ``steps`` steps,
counted from 0:

    warm-up   steps 0 to warmup - 1        a straight line from ``start`` to ``rate``
    stable    the steps between            ``rate``
    decay     the last ``decay_steps``     from ``rate`` to ``final`` x ``rate``

Both slopes lie strictly between their ends: the first stable step has the whole rate, the step after the
last would have the final one. So no step is spent at a rate of 0. Stages follow one another (``Chain``),
each with its own warm-up: from the rate that the one before ended with or, where ``start`` is given, from
that. A second warm-up is what quantisation-aware training needs (BitCPM4; MiniCPM4 report, arXiv
2506.07900).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from minicpm4.config.strict import require, suggest

__all__ = ["DECAYS", "Chain", "Wsd"]

DECAYS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda t: 1 - t,
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "sqrt": lambda t: 1 - math.sqrt(t),
    }
)
"""How much of the fall is left when the part t of a decay is done. "exponential" is not of this form:
``final ** t``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wsd:
    """One stage. ``start``: the rate that warm-up begins at (not used by a step itself); None: 0 in a first
    stage, else what the stage before ended with. Raises ConfigError."""

    rate: float
    steps: int
    warmup: int = 0
    decay: str = "none"
    decay_steps: int = 0
    final: float = 0.0
    start: float | None = None

    def __post_init__(self) -> None:
        known = ["none", "exponential", *DECAYS]
        require(self.decay in known, f"decay kind {self.decay!r} is unknown", suggest(self.decay, known))
        require(self.rate > 0 and math.isfinite(self.rate), f"learning rate {self.rate} is not positive")
        require(
            self.warmup >= 0 and self.decay_steps >= 0 and self.warmup + self.decay_steps <= self.steps,
            f"warm-up of {self.warmup} and decay of {self.decay_steps} steps exceed the stage's {self.steps}",
        )
        require(
            (self.decay == "none") == (self.decay_steps == 0),
            f"{self.decay_steps} steps do not fit decay kind {self.decay!r}",
        )
        require(0 <= self.final <= 1, f"final = {self.final} is not from 0 to 1")
        require(
            self.decay != "exponential" or self.final > 0,
            "an exponential decay never reaches final = 0",
            "MiniCPM's is final = 0.1",
        )
        require(self.start is None or self.start >= 0, f"start = {self.start} is negative")

    def at(self, step: int, before: float = 0.0) -> float:
        """The rate of ``step`` (0 to steps - 1; later ones: what the stage ends with), warmed up from
        ``before`` unless ``start`` is given."""
        start = before if self.start is None else self.start
        if step < self.warmup:
            return start + (self.rate - start) * (step + 1) / (self.warmup + 1)
        done = step - (self.steps - self.decay_steps) + 1
        if done <= 0 or not self.decay_steps:
            return self.rate
        return self.rate * self._left(min(1.0, done / (self.decay_steps + 1)))

    @property
    def end(self) -> float:
        """The rate that the stage ends with: the limit of its decay."""
        return self.rate * (self.final if self.decay_steps else 1.0)

    def _left(self, t: float) -> float:
        if self.decay == "exponential":
            return float(self.final**t)
        return self.final + (1 - self.final) * DECAYS[self.decay](t)


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages one after another. Raises ConfigError when there are none."""

    stages: Sequence[Wsd]

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "a schedule has no stages")

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0 over all stages; past the end: what the last one
        ends with."""
        require(step >= 0, f"step {step} is negative")
        before = 0.0
        for stage in self.stages[:-1]:
            if step < stage.steps:
                return stage.at(step, before)
            step, before = step - stage.steps, stage.end
        return self.stages[-1].at(step, before)
