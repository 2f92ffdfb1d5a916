"""muP: what depends on the width, so that the learning rate found on a narrow model holds on a wide one.

Tensor Programs V (arXiv 2203.03466) in the form of MiniCPM4 (arXiv 2506.07900, ModelTunnel v2). With
m = hidden_size / base width:

                          init std        learning rate (AdamW)    in the forward (ModelConfig)
    matrices of layers    std / sqrt(m)   rate / m                 branches x scale_depth / sqrt(layers)
    embeddings            std             rate                     x scale_emb
    head                  std             rate                     logits / (hidden_size / dim_model_base)
    norms, biases         1, 0            rate                     -

What the forward multiplies by is part of the model's configuration and of its checkpoint; the rest matters
in training alone. It all holds while heads keep their size and number of heads, feed-forward size and width
grow together: ``scaled`` makes such configurations. Muon's update has the right size at any width by
itself: its factor is 1.

``CoordinateCheck`` shows whether it is right: the sizes of activations, and how much steps of training
change them, must not depend on the width (Tensor Programs V, appendix D.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.train.model import Packed, TrainableModel
from minicpm4.train.optim import rule_of

__all__ = ["CoordinateCheck", "CoordinatePoint", "MuP", "activations", "measure", "scaled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MuP:
    """``base_width``: the hidden size at which rate and ``std`` (of all matrices there) hold. Raises
    ConfigError."""

    base_width: int = 256
    std: float = 0.1

    def __post_init__(self) -> None:
        require(self.base_width > 0, f"muP base width = {self.base_width} is not positive")
        require(self.std > 0, f"muP std = {self.std} is not positive")

    def ratio(self, config: ModelConfig) -> float:
        """m: how many times the base width the model has."""
        return config.hidden_size / self.base_width

    def init_std(self, name: str, config: ModelConfig) -> float:
        """Standard deviation of a new matrix ``name`` (norms are 1 and biases 0, whatever it says)."""
        return self.std / math.sqrt(self.ratio(config)) if _inner(name) else self.std

    def factors(
        self, shapes: Iterable[tuple[str, Sequence[int]]], config: ModelConfig, kind: str = "adamw"
    ) -> dict[str, float]:
        """Factor of the learning rate by parameter, for ``train/optim.py`` under optimiser ``kind``."""
        found = {}
        for name, shape in shapes:
            narrow = _inner(name) and len(shape) == 2 and rule_of(name, shape, kind) == "adamw"
            found[name] = 1 / self.ratio(config) if narrow else 1.0
        return found


def _inner(name: str) -> bool:
    return ".layers." in f".{name}"


def scaled(config: ModelConfig, width: int) -> ModelConfig:
    """``config`` at hidden size ``width``: heads of the same size, in proportion as many; feed-forward
    likewise. The three scales stay as they are, dim_model_base too. Raises ConfigError when a size does not
    come out whole."""
    old = config.hidden_size

    def size(name: str) -> int:
        value = getattr(config, name) * width
        require(
            value % old == 0,
            f"{name} = {getattr(config, name)} at hidden size {old} has no counterpart at {width}",
            "choose a width that makes it whole",
        )
        return int(value // old)

    names = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes: dict[str, Any] = {name: size(name) for name in names}
    return replace(config, hidden_size=width, **sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatePoint:
    """Root mean square of the activations at ``place`` after ``step`` steps: their ``size``, and their
    ``change`` from what they were at the start, on the same input."""

    width: int
    step: int
    place: str
    size: float
    change: float


@dataclass(frozen=True, slots=True)
class CoordinateCheck:
    """What ``measure`` found; ready for a picture."""

    points: Sequence[CoordinatePoint]

    def curves(self, step: int, what: str = "change") -> dict[str, list[tuple[float, float]]]:
        """By place, (width, ``what``) after ``step`` steps: curves for a plot with logarithmic axes.
        ``what``: size or change."""
        found: dict[str, dict[int, list[float]]] = {}
        for point in self.points:
            if point.step == step:
                by_width = found.setdefault(point.place, {})
                by_width.setdefault(point.width, []).append(getattr(point, what))
        return {
            place: [(float(w), math.fsum(v) / len(v)) for w, v in sorted(by_width.items())]
            for place, by_width in found.items()
        }

    def slopes(self, step: int, what: str = "change") -> dict[str, float]:
        """By place, the slope of log(``what``) over log(width): 0 is flat, 1 grows with the width."""
        return {place: _slope(curve) for place, curve in self.curves(step, what).items()}


@torch.no_grad()
def activations(model: TrainableModel, batch: Packed) -> dict[str, Tensor]:
    """By name: the residual stream after embeddings and each layer, final hidden states, logits."""
    found: dict[str, Tensor] = {}

    def keep_input(module: Any, inputs: tuple[Any, ...]) -> None:
        found["embeddings"] = inputs[0]

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    hooks = [model.layers[0].register_forward_pre_hook(keep_input)]
    hooks += [m.register_forward_hook(keep(f"layer {i}")) for i, m in enumerate(model.layers)]
    try:
        found["final"] = model(batch)
    finally:
        for one in hooks:
            one.remove()
    found["logits"] = model.logits(found["final"])
    return found


def _slope(curve: Sequence[tuple[float, float]]) -> float:
    xs, ys = [math.log(x) for x, _ in curve], [math.log(max(y, 1e-30)) for _, y in curve]
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    over = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return over / math.fsum((x - mean_x) ** 2 for x in xs)


def measure(
    widths: Sequence[int],
    start: Callable[[int, int], tuple[Callable[[], Mapping[str, Tensor]], Callable[[], None]]],
    *,
    steps: int,
    seeds: int = 1,
) -> CoordinateCheck:
    """Train a model of each width for ``steps`` steps and look at its activations before and after each.

    ``start(width, seed)`` returns two functions: one gives activations by place for a fixed input, the
    other takes a step. Curves are means over ``seeds``. Raises ConfigError unless there are two widths.
    """
    require(len(set(widths)) > 1, f"widths {list(widths)} show no slope", "give two or more")
    points = []
    for width in widths:
        for seed in range(seeds):
            look, step = start(width, seed)
            before = {place: value.detach().clone() for place, value in look().items()}
            for number in range(steps + 1):
                if number:
                    step()
                points += [
                    CoordinatePoint(
                        width=width,
                        step=number,
                        place=place,
                        size=_rms(now),
                        change=_rms(now - before[place]),
                    )
                    for place, now in look().items()
                ]
    return CoordinateCheck(points)


def _rms(values: Tensor) -> float:
    return float(torch.sqrt(values.detach().double().square().mean()))
