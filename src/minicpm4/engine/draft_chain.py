"""Chains of drafts, one token behind another, each the likeliest: what drafters with weights guess."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.sequence import Drafts
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Array, Ints

__all__ = ["Chain", "choose"]


@dataclass(slots=True, eq=False, kw_only=True)
class Chain:
    """Drafts for one sequence, and how likely each is behind the one before it."""

    wish: Wish
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether another draft is wished for, and can pay."""
        return len(self.tokens) < self.wish.most and self.wish.pays(self.chances)

    @property
    def guess(self) -> Guess | None:
        return Guess(Drafts.chain(self.tokens), tuple(self.chances)) if self.tokens else None


def choose(
    ops: OpTable, chains: Items[Chain], logits: Array, tokens: Ints | None = None, most: int | None = None
) -> None:
    """Append to each chain the likeliest of its row of ``logits`` (chains, columns), on the host: the number
    of the column, or of ``tokens`` the one there. ``most``: only the first so many columns."""
    totals = ops.log_sum_exp(logits)
    for chain, row, total in zip(chains, logits[:, :most], totals, strict=True):
        best = int(row.argmax())
        chain.tokens.append(best if tokens is None else int(tokens[best]))
        chain.chances.append(min(math.exp(float(row[best]) - float(total)), 1.0))
