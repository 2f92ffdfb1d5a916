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
    """SVG: the share of documents, and of tokens, that are in documents shorter than so many tokens."""
    found = bins(lengths)
    curves = {}
    for label, counts in (
        ("of documents", [one.documents for one in found]),
        ("of tokens", [one.tokens for one in found]),
    ):
        shares = np.cumsum([0, *counts]) / sum(counts)
        places = [found[0].low, *(one.high for one in found)]
        curves[label] = list(zip(map(float, places), shares.tolist(), strict=True))
    return chart(title, curves, "tokens in a document", "share in shorter documents", log_y=False)
