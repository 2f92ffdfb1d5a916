"""A budget of bits, shared out among the matrices of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minicpm4.errors import ConfigError
from minicpm4.formats.quant import QuantSpec, packed_nbytes
from minicpm4.quantize.options import MOST_BITS

__all__ = ["Choices", "allot"]

Choices = Mapping[str, Sequence[QuantSpec]]
"""Formats that a matrix may have, by its name, those of fewer bytes first."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A finer format of a matrix: how much less it costs than the one before, for how many bytes."""

    name: str
    before: QuantSpec
    after: QuantSpec
    gain: float
    nbytes: int


def allot(
    costs: Mapping[str, Sequence[float]],
    choices: Choices,
    shapes: Mapping[str, tuple[int, int]],
    fixed: int,
    bits: float,
    nbytes: Callable[[tuple[int, int], QuantSpec], int] = packed_nbytes,
    rounded_ends: bool = False,
) -> dict[str, QuantSpec]:
    """A format for each matrix of ``choices``, so that the sum of ``costs`` is small and all matrices of
    ``shapes`` together take at most ``bits`` a weight; ``fixed``: bytes of those without a choice;
    ``nbytes``: what a matrix takes in a format; ``rounded_ends``: embeddings and head are among the choices
    wherever they can be. Step by step the format that saves most for a byte.
    Raises ConfigError where the coarsest take more."""
    most = int(bits * sum(rows * columns for rows, columns in shapes.values()) / 8)
    chosen = {name: formats[0] for name, formats in choices.items()}
    sizes = {name: [nbytes(shapes[name], spec) for spec in formats] for name, formats in choices.items()}
    spent = fixed + sum(each[0] for each in sizes.values())
    if spent > most:
        weights = sum(rows * columns for rows, columns in shapes.values())
        raise ConfigError(
            f"the matrices take {8 * spent / weights:.2f} bits a weight in their smallest formats, "
            f"{bits:g} are asked for",
            _more(8 * spent / weights, ends=rounded_ends),
        )
    steps = [step for name in choices for step in _steps(name, costs[name], choices[name], sizes[name])]
    for step in sorted(steps, key=lambda one: -one.gain / max(one.nbytes, 1)):
        if chosen[step.name] == step.before and spent + step.nbytes <= most:
            chosen[step.name] = step.after
            spent += step.nbytes
    return chosen


def _more(least: float, *, ends: bool) -> str:
    """What to ask for where ``least`` bits a weight are needed; ``ends``: embeddings and head are rounded."""
    asked = math.ceil(100 * least) / 100
    found = [f"ask for --bits {asked:g} or more"] if asked <= MOST_BITS else []
    if not ends:
        found.append("--to gguf and mlx hold embeddings and head rounded, too, which takes less")
    return "; ".join(found) or "leave out what --override and --head keep in more bits"


def _steps(
    name: str, costs: Sequence[float], formats: Sequence[QuantSpec], sizes: Sequence[int]
) -> list[_Step]:
    """From the first format to finer ones, each saving less for a byte than the one before."""
    found, at = [], 0
    while at < len(formats) - 1:
        rates = [
            (costs[at] - costs[i]) / max(sizes[i] - sizes[at], 1) if sizes[i] >= sizes[at] else 0.0
            for i in range(at + 1, len(formats))
        ]
        best = at + 1 + int(np.argmax(rates))
        if rates[best - at - 1] <= 0:
            break
        gain, nbytes = costs[at] - costs[best], sizes[best] - sizes[at]
        found.append(_Step(name, formats[at], formats[best], gain, nbytes))
        at = best
    return found
