"""What a trainer takes at a time: pieces of documents, one after another, that never see one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """n rows in pieces: piece j owns rows cu_rows[j] to cu_rows[j + 1] - 1, at positions from 0.

    ``ids`` (n,) tokens; ``targets`` (n,) the token that follows each, -1 where none does or none is learnt;
    ``weight`` (n,) of each row's loss, None: all 1.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.int32]
    positions: NDArray[np.int32]
    cu_rows: NDArray[np.int32]
    weight: NDArray[np.float32] | None = None
