"""A mean and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["mean_with_interval"]


def mean_with_interval(
    values: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, float | None]:
    """The mean of at least one value, and half the width of its 95% interval by the normal law: None of one,
    and where all are alike, as where nothing was right, since that law would take 60 of 60 for certain.
    ``weights``: of each value in the mean, above 0; None: all weigh alike."""
    count, each = len(values), [1.0] * len(values) if weights is None else weights
    whole = math.fsum(each)
    mean = math.fsum(weight * one for weight, one in zip(each, values, strict=True)) / whole
    if min(values) == max(values):
        return mean, None
    spread = math.fsum((weight * (one - mean)) ** 2 for weight, one in zip(each, values, strict=True))
    return mean, 1.96 * math.sqrt(spread * count / (count - 1)) / whole
