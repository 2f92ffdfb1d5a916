"""Batches for tests: documents of random tokens, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Batch:
    ids: NDArray[np.int32]
    targets: NDArray[np.int32]
    positions: NDArray[np.int32]
    cu_rows: NDArray[np.int32]

    @property
    def documents(self) -> list[NDArray[np.int32]]:
        return np.split(self.ids, self.cu_rows[1:-1])


def batch(lengths: Sequence[int], vocab: int, seed: int = 0) -> Batch:
    """Documents of ``lengths`` tokens; every token but a document's last has the next one as its target."""
    ids = np.random.default_rng(seed).integers(0, vocab, sum(lengths)).astype(np.int32)
    cu_rows = np.cumsum([0, *lengths]).astype(np.int32)
    targets = np.roll(ids, -1)
    targets[cu_rows[1:] - 1] = -1
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    return Batch(ids=ids, targets=targets, positions=positions, cu_rows=cu_rows)
