"""Settings of optimiser, decay and adapter: one class each, read from a recipe and used as they are by what
trains. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from minicpm4.config.strict import require, suggest

__all__ = ["FALLS", "MAX_RATE", "STATES", "Adapter", "Decay", "OptimConfig", "check_factor"]

STATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"adamw": ("first", "second"), "muon": ("momentum",)}
)
"""Rules that move a parameter, and the moments that each keeps of it, in its shape."""

FALLS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda t: 1 - t,
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "sqrt": lambda t: 1 - math.sqrt(t),
    }
)
"""How much of the fall is left when the part t of a decay is done. "exponential" is not of this form:
``final ** t``."""
MAX_RANK = 4096
MAX_FACTOR = 1e6  # of a loss, a pair or a rate: what is larger only overflows
MAX_RATE = 100.0  # a step of Adam or Muon moves a weight by about its rate; weights are far below 1


def check_factor(name: str, value: float) -> None:
    """Raise ConfigError where a factor is larger than any training takes."""
    require(value <= MAX_FACTOR, f"{name} = {value} is above {MAX_FACTOR:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """``kind``: adamw, or muon (of the layers' matrices; AdamW of the rest, at ``adamw_rate`` times the
    rate). ``weight_decay``: of the layers' matrices. ``clip_norm`` 0: no clipping. Raises ConfigError."""

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    momentum: float = 0.95
    adamw_rate: float = 1.0

    def __post_init__(self) -> None:
        known = list(STATES)
        require(self.kind in known, f"optimiser kind {self.kind!r} is unknown", suggest(self.kind, known))
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimiser.{name} = {value} is not from 0 to below 1")
        for name in ("eps", "adamw_rate"):
            require(getattr(self, name) > 0, f"optimiser.{name} = {getattr(self, name)} is not positive")
        for name in ("eps", "adamw_rate", "weight_decay"):
            check_factor(f"optimiser.{name}", getattr(self, name))
        require(self.weight_decay >= 0, f"optimiser.weight_decay = {self.weight_decay} is negative")
        require(self.clip_norm >= 0, f"optimiser.clip_norm = {self.clip_norm} is negative", "0: no clipping")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decay:
    """The last ``steps`` of a stage, in which the rate falls to ``final`` times the stage's. Raises
    ConfigError."""

    kind: str = "none"
    steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        known = ["none", *FALLS, "exponential"]
        require(self.kind in known, f"decay kind {self.kind!r} is unknown", suggest(self.kind, known))
        require(
            self.steps >= 0 and (self.kind == "none") == (self.steps == 0),
            f"decay.steps = {self.steps} does not fit decay kind {self.kind!r}",
        )
        require(0 <= self.final <= 1, f"decay.final = {self.final} is not from 0 to 1")
        require(
            self.kind != "exponential" or self.final > 0,
            "an exponential decay never reaches decay.final = 0",
            "MiniCPM's is final = 0.1",
        )

    def left(self, t: float) -> float:
        """What is left of the rate when the part ``t`` of the decay is done."""
        if self.kind == "none":
            return 1.0
        if self.kind == "exponential":
            return float(self.final**t)
        return self.final + (1 - self.final) * FALLS[self.kind](t)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """LoRA: pairs of ``rank`` beside the matrices that ``targets`` fit are trained, by AdamW, and nothing
    else; they are merged at the stage's end. ``alpha`` 0: as large as the rank. Raises ConfigError."""

    rank: int = 16
    alpha: float = 0.0
    targets: tuple[str, ...] = ("self_attn.*", "mlp.*")
    optimiser: ClassVar[str] = "adamw"  # whatever moves the rest: Muon is for matrices that are not narrow

    def __post_init__(self) -> None:
        require(0 < self.rank <= MAX_RANK, f"lora rank = {self.rank} is outside 1 to {MAX_RANK}")
        require(self.alpha >= 0, f"lora alpha = {self.alpha} is negative")
        check_factor("lora alpha", self.alpha)
        require(len(self.targets) > 0, "lora has no targets", 'name some, such as "self_attn.*"')

    @property
    def scale(self) -> float:
        """What the product of a pair is multiplied by."""
        return (self.alpha or self.rank) / self.rank
