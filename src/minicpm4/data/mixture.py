"""Batches from several sets, in given shares of tokens: a pure function of seed and step.

Each set is an endless row of tokens: its documents in an order shuffled anew for each epoch, cut into
pieces of at most ``context`` tokens. Batch i takes from set s the next tokens after what batches 0 to i - 1
took, a number that is worked out, not counted. So any batch can be had at any time, in any process; in each
epoch every token comes exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.strict import require
from minicpm4.data.batch import Batch
from minicpm4.data.shards import ShardSet

__all__ = ["Part", "Stream", "buckets"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """``share`` of the tokens, from the documents ``chosen`` of a set (None: all)."""

    name: str
    data: ShardSet
    share: float
    chosen: NDArray[np.int64] | None = None

    @property
    def documents(self) -> NDArray[np.int64]:
        """Numbers of the documents."""
        return np.arange(len(self.data)) if self.chosen is None else self.chosen


def buckets(part: Part, bounds: Sequence[int]) -> list[Part]:
    """``part`` by lengths of its documents, below and from each of ``bounds`` (tokens) on, in equal shares
    of tokens (MiniCPM4 report, section on long context: 0-4K, 4-12K, 12-24K, 24-32K). Lengths that no
    document has are left out."""
    documents = part.documents
    which = np.searchsorted(np.asarray(bounds), part.data.lengths[documents], side="right")
    groups = [documents[which == number] for number in range(len(bounds) + 1)]
    groups = [group for group in groups if len(group)]
    share = part.share / max(len(groups), 1)
    return [
        Part(name=f"{part.name}[{number}]", data=part.data, share=share, chosen=group)
        for number, group in enumerate(groups)
    ]


@dataclass(slots=True, eq=False)
class _Row:
    """The endless row of one part; keeps the order of the epoch that it was last asked for."""

    part: Part
    seed: tuple[int, ...]
    documents: NDArray[np.int64] = field(init=False)
    total: int = field(init=False)
    epoch: int = -1
    order: NDArray[np.int64] = field(init=False)
    ends: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.documents = self.part.documents
        self.total = int(self.part.data.lengths[self.documents].sum())
        require(
            self.total > 0, f"{self.part.name} has no documents", "add some, or leave it out of the mixture"
        )

    def pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, stop) of the tokens from ``start`` on of the row, ``count`` of them."""
        while count > 0:
            self._enter(start // self.total)
            within = start % self.total
            index = int(np.searchsorted(self.ends, within, side="right"))
            document = int(self.order[index])
            length = int(self.part.data.lengths[document])
            first = within - (int(self.ends[index]) - length)
            taken = min(count, length - first)
            yield document, first, first + taken
            start, count = start + taken, count - taken

    def _enter(self, epoch: int) -> None:
        if epoch != self.epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self.order = self.documents[rng.permutation(len(self.documents))]
            self.ends = np.cumsum(self.part.data.lengths[self.order])
            self.epoch = epoch


class Stream:
    """Batches of ``tokens`` tokens. Process ``rank`` of ``processes`` gets every ``processes``-th. Raises
    ConfigError."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        seed: int,
        tokens: int,
        context: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        require(bool(parts), "a mixture has no parts")
        require(tokens > 0 and context > 1, f"{tokens} tokens in pieces of {context} make no batch")
        self.tokens, self.context, self._rank, self._processes = tokens, context, rank, processes
        self._rows = [_Row(part, (seed, number)) for number, part in enumerate(parts)]
        shares = [Fraction(part.share).limit_denominator(1 << 20) for part in parts]
        total = sum(shares)
        self._bounds = [Fraction(0)]
        for share in shares:
            self._bounds.append(self._bounds[-1] + share / total)

    def batch(self, step: int) -> Batch:
        """Batch ``step`` of this process, counted from 0."""
        number = step * self._processes + self._rank
        ids, targets, positions, lengths = [], [], [], []
        for index, row in enumerate(self._rows):
            start, stop = self._taken(index, number), self._taken(index, number + 1)
            for document, first, last in row.pieces(start, stop - start):
                for a in range(first, last, self.context):
                    b = min(a + self.context, last)
                    # One more token: the last row's target is known even where a document is cut.
                    tokens, learn = row.part.data.read(document, a, b + 1)
                    target = np.full(b - a, -1, np.int32)
                    target[: len(tokens) - 1] = tokens[1:]
                    if learn is not None:
                        target[: len(tokens) - 1][~learn[1:]] = -1
                    ids.append(tokens[: b - a])
                    targets.append(target)
                    positions.append(np.arange(b - a, dtype=np.int32))
                    lengths.append(b - a)
        return Batch(
            ids=np.concatenate(ids),
            targets=np.concatenate(targets),
            positions=np.concatenate(positions),
            cu_rows=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        )

    def _taken(self, index: int, batches: int) -> int:
        """Tokens that ``batches`` batches take from a part: those up to its upper bound less those up to
        its lower."""
        upto = [int(batches * self.tokens * bound) for bound in self._bounds[index : index + 2]]
        return upto[1] - upto[0]
