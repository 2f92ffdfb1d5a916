"""Attention of a layer that is run on its own outputs, turn after turn, with gradients: training-time test
(EAGLE-3, arXiv 2503.01840, section 3).

In the first turn every row of a text reads the rows before it, as ever. In turn j (from 1) a row stands j
positions further on, as a draft does: it reads what the first turn made of its own place and of those before,
and what the turns since then made of its own row; of the drafts of other rows it sees nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minicpm4.kernels.autograd import TorchKV, TorchOps

__all__ = ["UnrolledKV", "UnrolledOps"]


class UnrolledKV(TorchKV):
    """Keys and values of all turns. ``rows`` (m,): the rows of the first turn that go on, in order; to be set
    before the second."""

    def __init__(self, num_kv_heads: int, head_dim: int) -> None:
        super().__init__(num_kv_heads, head_dim)
        self.rows: Tensor | None = None
        self.first: Any = None  # cu_rows of the first turn
        self.turns: list[tuple[Tensor, Tensor]] = []

    def put(self, k: Tensor, v: Tensor) -> None:
        """See TorchKV."""
        self.turns.append((k, v))

    def take(self) -> tuple[Tensor, Tensor]:
        """See TorchKV; of the last turn, and nothing is forgotten."""
        return self.turns[-1]


class UnrolledOps(TorchOps):
    """TorchOps for a layer over UnrolledKV; dense."""

    def attend(self, q: Any, kv: Any, step: Any, selection: Any, out: Any = None) -> Any:
        assert selection is None, "drafting layers are dense"
        if len(kv.turns) == 1:
            kv.first = step.cu_rows
            return super().attend(q, kv, step, selection, out)
        parts = []
        for (start, stop), (low, high) in zip(pairwise(kv.first), pairwise(step.cu_rows), strict=True):
            if low < high:
                places = kv.rows[low:high] - int(start)
                keys, values = (x[int(start) : int(stop)] for x in kv.turns[0])
                later = [(k[low:high], v[low:high]) for k, v in kv.turns[1:]]
                parts.append(_further(q[low:high], keys, values, places, later))
        return torch.cat(parts).flatten(1)


def _further(q: Tensor, k: Tensor, v: Tensor, places: Tensor, later: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Rows q (m, hq, d), of ``places`` (m,) of a text with keys k and values v (n, hkv, d), and of later
    turns those of the rows themselves (m, hkv, d); result (m, hq, d)."""
    m, heads, d = q.shape
    grouped = q.view(m, k.shape[1], -1, d)
    scores = [torch.einsum("mhgd,nhd->mhgn", grouped, k)]
    seen = torch.arange(k.shape[0], device=q.device) <= places[:, None]
    scores[0] = scores[0].masked_fill(~seen[:, None, None], float("-inf"))
    scores += [(grouped * own[:, :, None]).sum(-1, keepdim=True) for own, _ in later]
    shares = torch.softmax(torch.cat(scores, dim=-1).float() * d**-0.5, dim=-1).to(v.dtype)
    found = torch.einsum("mhgn,nhd->mhgd", shares[..., : k.shape[0]], v)
    for turn, (_, own) in enumerate(later, k.shape[0]):
        found = found + shares[..., turn : turn + 1] * own[:, :, None]
    return found.reshape(m, heads, d)
