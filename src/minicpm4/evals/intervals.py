"""A mean and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["mean_with_interval"]


def mean_with_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of at least one value, and half the width of its 95% interval by the normal law: None of one,
    and where all are alike, as where nothing was right, since that law would take 60 of 60 for certain."""
    count = len(values)
    mean = math.fsum(values) / count
    if min(values) == max(values):
        return mean, None
    return mean, 1.96 * math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (count - 1) / count)
