"""What settings cost, the cheapest within a wanted loss, and a picture of what they choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minicpm4.evals.intervals import mean_with_interval
from minicpm4.evals.sparse.measuring import Result
from minicpm4.plot import heat_map

__all__ = ["LOOKS_UP", "Cost", "cheapest", "costs", "heat"]

LOW = 0.5  # recall that is as red as it gets
LOOKS_UP = 0.1  # nats a token that a passage must gain where it stands again, or nothing was looked up


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a setting loses. ``running``: share by which the loss of running text grows, ``half`` the half
    width of its 95% interval; ``copy``: share of what dense attention gains by looking a passage up that is
    lost, None of a model that gains nothing."""

    result: Result
    running: float
    half: float | None
    copy: float | None

    def within(self, loss: float) -> bool:
        """Whether neither text loses more; one that cannot be judged does not count."""
        return self.running <= loss and (self.copy is None or self.copy <= loss)


def costs(results: Sequence[Result]) -> list[Cost]:
    """Of all but the first, which is dense."""
    dense, *others = results
    gain = dense.original - dense.copy
    found = []
    for one in others:
        ratios = [(a - b) / dense.running for a, b in zip(one.places, dense.places, strict=True)]
        mean, half = mean_with_interval(ratios)
        copy = (one.copy - dense.copy) / gain if gain >= LOOKS_UP else None
        found.append(Cost(result=one, running=mean, half=half, copy=copy))
    return found


def cheapest(found: Sequence[Cost], loss: float) -> Cost | None:
    """The one that reads least of the cache within ``loss``; None: none that reads less than all is."""
    fit = [one for one in found if one.within(loss) and one.result.cache < 1]
    return min(fit, key=lambda one: (one.result.cache, one.result.blocks), default=None)


def heat(title: str, result: Result) -> str:
    """Recall of a sparse result as a picture: layers down, query heads across."""
    assert result.recall is not None
    rows = result.recall["by_layer_and_head"]
    heads = max((len(row) for row in rows if row is not None), default=1)
    return heat_map(
        title,
        [[math.nan] * heads if row is None else row for row in rows],
        rows=[str(i) for i in range(len(rows))],
        columns=[str(i) for i in range(heads)],
        x_label="query head",
        y_label="layer",
        low=LOW,
    )
