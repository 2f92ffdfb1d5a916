"""How long a set's documents are: what share of documents and of tokens lies in which lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicpm4.plot import chart

__all__ = ["Bin", "bins", "length_chart"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Documents of ``low`` to ``high`` - 1 tokens: how many, and their ``tokens`` together."""

    low: int
    high: int
    documents: int
    tokens: int


def bins(lengths: NDArray[np.int64]) -> list[Bin]:
    """``lengths`` by powers of two, from the shortest to the longest, those between that have none too."""
    if not len(lengths):
        return []
    low, high = (int(length).bit_length() - 1 for length in (lengths.min(), lengths.max()))
    found = []
    for power in range(low, high + 1):
        inside = lengths[(lengths >= 1 << power) & (lengths < 1 << (power + 1))]
        found.append(
            Bin(low=1 << power, high=1 << (power + 1), documents=len(inside), tokens=int(inside.sum()))
        )
    return found


def length_chart(title: str, lengths: NDArray[np.int64]) -> str:
    """SVG: the share of documents, and of tokens, that are in documents of at most so many tokens."""
    ordered = np.sort(lengths)
    at = np.unique(ordered)
    upto = np.searchsorted(ordered, at, side="right")
    tokens = np.cumsum(ordered)
    # Every length would be a point: as many as can be told apart will do.
    chosen = np.unique(np.linspace(0, len(at) - 1, min(len(at), 200)).astype(int))
    curves = {
        "of documents": [(float(at[i]), float(upto[i] / len(ordered))) for i in chosen],
        "of tokens": [(float(at[i]), float(tokens[upto[i] - 1] / tokens[-1])) for i in chosen],
    }
    return chart(title, curves, "length of a document, tokens", "share up to that length", log_y=False)
