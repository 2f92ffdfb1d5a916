"""A mean and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["mean_with_interval", "student"]

_NORMAL = 1.959964
_FEW = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # where the expansion is off by over 1e-3


def student(freedom: int) -> float:
    """The 97.5th percentile of Student's t with so many degrees of freedom, 1 at least: to 3e-4, beyond 4 by
    its expansion around the normal law (Abramowitz and Stegun, 26.7.5)."""
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    near = z + sum(term / freedom**power for power, term in enumerate(terms, 1))
    return _FEW.get(freedom, near)


def mean_with_interval(
    values: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, float | None]:
    """The mean of at least one value, and half the width of its 95% interval by Student's t, as the spread is
    known from these values alone: None of one, and where all are alike, as where nothing was right, since
    that would take 60 of 60 for certain. ``weights``: of each value in the mean, above 0; None: all weigh
    alike."""
    count, each = len(values), [1.0] * len(values) if weights is None else weights
    whole = math.fsum(each)
    mean = math.fsum(weight * one for weight, one in zip(each, values, strict=True)) / whole
    if min(values) == max(values):
        return mean, None
    spread = math.fsum((weight * (one - mean)) ** 2 for weight, one in zip(each, values, strict=True))
    return mean, student(count - 1) * math.sqrt(spread * count / (count - 1)) / whole
