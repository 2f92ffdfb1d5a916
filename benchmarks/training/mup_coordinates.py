"""muP's coordinate check: do activations and what training changes of them depend on the width?

Models of width 64, 128 and 256, four optimiser steps, two seeds: the root mean square of the change of the
activations after each layer, on the same batch, by width; flat with muP, growing without (one
initialisation, one rate, no multipliers). The slope is that of log(change) over log(width).

    .venv/bin/python -m benchmarks.training.mup_coordinates [--steps 4] [--seeds 2]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from benchmarks.training.common import Lab, arguments
from benchmarks.training.mup_transfer import WIDTHS, table
from minicpm4.train.mup import activations, measure
from minicpm4.train.recipe import model_config, parse_recipe
from minicpm4.train.session import TrainingSession
from minicpm4.train.sources import sources
from minicpm4.train.world import World

RATE = 2.0**-6  # the best of mup_transfer.py
PLACES = ("layer 0", "layer 2", "logits")


def main() -> None:
    given = arguments(__doc__, steps="4", seeds="2")
    lab, steps = Lab("mup_coordinates", given), int(given.steps)
    checks = {
        kind: measure(
            WIDTHS, lambda w, s, kind=kind: trial(lab, kind, w, s), steps=steps, seeds=int(given.seeds)
        )
        for kind in ("muP", "no muP")
    }
    lab.write(
        f"Change of activations after {steps} steps by width",
        {
            f"{kind}, {place}": check.curves(steps)[place]
            for kind, check in checks.items()
            for place in PLACES
        },
        {
            "steps": steps,
            "seeds": int(given.seeds),
            "rate": RATE,
            "slopes of change": {kind: check.slopes(steps) for kind, check in checks.items()},
            "slopes of size": {kind: check.slopes(steps, "size") for kind, check in checks.items()},
        },
        x="width",
        y="root mean square of the change",
        log_x=True,
        log_y=True,
    )


def trial(
    lab: Lab, kind: str, width: int, seed: int
) -> tuple[Callable[[], Mapping[str, Tensor]], Callable[[], None]]:
    """How to look at the activations of a fresh model, and how to train it a step."""
    recipe = parse_recipe({"name": kind, "output": "unused", **table(kind, width, RATE, 100), "seed": seed})
    prepared = lab.prepared(recipe)
    session = TrainingSession(recipe, model_config(recipe, prepared.vocab_size, prepared.special), World())
    (stage,) = recipe.stages
    session.enter(stage, fresh=True)
    source = sources(recipe, prepared.data)[stage.name].training
    looked_at, number = source.batch(0), 0

    def step() -> None:
        nonlocal number
        number += 1
        session.gradients([source.batch(number)])
        session.step(RATE)

    return lambda: activations(session.model, looked_at), step


if __name__ == "__main__":
    main()
