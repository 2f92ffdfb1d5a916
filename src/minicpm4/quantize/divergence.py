"""How far the answers of one model are from another's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["kullback_leibler", "log_probabilities"]

Doubles = NDArray[np.float64]


def log_probabilities(logits: NDArray[np.floating]) -> Doubles:
    """Of logits (n, vocab), in nats."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def kullback_leibler(old: Doubles, new: Doubles) -> Doubles:
    """The divergence (n,) of each row of ``new`` from ``old``, log probabilities (n, vocab), in nats."""
    return (np.exp(old) * (old - new)).sum(axis=1)
