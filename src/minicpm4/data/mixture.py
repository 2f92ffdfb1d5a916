"""Batches from several sets, in given shares of tokens: a pure function of seed and step.

Each set is an endless row of tokens: its pieces in an order shuffled anew for each epoch. Batches 0 to
i - 1 have taken a known number of them, so batch i can be had at any time, in any process; in each epoch
every token comes exactly once. A piece is a document, and of one longer than ``context`` so many tokens.

*Cut* parts give each batch the very next tokens, wherever these begin and end within a piece. *Whole*
parts (buckets, chats, needles) give whole pieces. For them a block of batches is planned at a time: the
pieces that begin within the block's stretch of the row go to its batches, the longest first, each to the
emptiest batch; then cut parts fill all batches to one level. See ``minicpm4.data.batching``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.strict import require
from minicpm4.data.batch import Batch
from minicpm4.data.batching import DocumentPiece, Row, batches_in_block, level, spread
from minicpm4.data.shards import ShardSet

__all__ = ["MixturePart", "Stream", "buckets", "exact_shares", "require_room"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixturePart:
    """``share`` of the tokens, from the documents ``chosen`` of a set (None: all).

    ``whole``: no piece is cut at the edge of a batch. A set that was packed whole (chats, needles) is taken
    whole in any case, and its documents longer than the context are left out: half of one teaches nothing.
    """

    name: str
    data: ShardSet
    share: float
    chosen: NDArray[np.int64] | None = None
    whole: bool = False

    @property
    def documents(self) -> NDArray[np.int64]:
        """Numbers of the documents."""
        return np.arange(len(self.data)) if self.chosen is None else self.chosen


def buckets(part: MixturePart, bounds: Sequence[int], context: int) -> list[MixturePart]:
    """``part`` by lengths of its documents, below and from each of ``bounds`` (tokens) on, in equal shares
    of tokens (InfLLM v2, training: 0-4K, 4-12K, 12-24K, 24-32K), whole. Lengths that no document has are
    left out, and of a set packed whole those that no document has which fits ``context``."""
    documents = part.documents
    lengths = part.data.lengths[documents]
    which = np.searchsorted(np.asarray(bounds), lengths, side="right")
    fits = lengths <= context
    if part.data.whole and fits.any():
        # Those that are too long go with the longest that fit: the stream leaves them out, and counts them.
        which[~fits] = which[fits].max()
    groups = {number: documents[which == number] for number in range(len(bounds) + 1)}
    groups = {number: group for number, group in groups.items() if len(group)}
    share = part.share / max(len(groups), 1)
    return [
        replace(part, name=f"{part.name}[{number}]", share=share, chosen=group, whole=True)
        for number, group in groups.items()
    ]


def exact_shares(named: Sequence[tuple[str, float]], tokens: int) -> list[Fraction]:
    """Parts of 1 for the shares of a mixture, by its parts' names. Raises ConfigError for one that is
    negative, or less than one of a batch's ``tokens``."""
    shares = [_meant(share) for _, share in named]
    total = sum(shares)
    require(min(shares) >= 0 < total, "the shares of a mixture must be positive")
    for (name, _), share in zip(named, shares, strict=True):
        require(
            share == 0 or share * tokens >= total,
            f"the share of {name} is less than one token of a batch of {tokens}",
            "raise it, or leave the part out",
        )
    return [share / total for share in shares]


def _meant(share: float) -> Fraction:
    """The plain fraction that ``share`` was written for: 0.1 is a tenth. One that is small is rounded by what
    it is one part of, so that it never becomes nothing."""
    exact, most = Fraction(share), 1 << 20
    if 0 < exact < Fraction(1, 1 << 10):
        return 1 / (1 / exact).limit_denominator(most)
    return exact.limit_denominator(most) if exact > 0 else exact


def require_room(longest: int, tokens: int) -> None:
    """Raise ConfigError unless a batch of ``tokens`` holds a whole piece of ``longest``."""
    require(
        longest <= tokens,
        f"a batch of {tokens} tokens cannot hold a piece of {longest}",
        "whole pieces need batches (of one forward pass) of at least the stage's context",
    )


class Stream:
    """Batches of ``tokens`` tokens. Process ``rank`` of ``processes`` gets every ``processes``-th.

    Without whole parts a batch has exactly ``tokens`` tokens; with them it has about as many, at most by the
    longest piece more, and over a block of batches the shares are exact but for a piece of each part.
    ``left_out``: for each part, documents of a set packed whole that are longer than the context. Raises
    ConfigError.
    """

    def __init__(
        self,
        parts: Sequence[MixturePart],
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
        self._seed = seed
        self.left_out: Mapping[str, int] = {}
        self._rows = [self._row(part, (seed, number)) for number, part in enumerate(parts)]
        self._data = [part.data for part in parts]
        self._bounds = [Fraction(0)]
        for share in exact_shares([(part.name, part.share) for part in parts], tokens):
            self._bounds.append(self._bounds[-1] + share)
        longest = max((row.longest for row in self._rows if row.whole), default=0)
        require_room(longest, tokens)
        self._block = batches_in_block(longest, tokens)
        self._planned: tuple[int, list[list[DocumentPiece]]] = (-1, [])

    def batch(self, step: int) -> Batch:
        """Batch ``step`` of this process, counted from 0."""
        return self._assemble(self._pieces(step * self._processes + self._rank))

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each part has been read after ``steps`` batches of every process."""
        count = steps * self._processes
        return {row.name: self._taken(i, count) / row.total for i, row in enumerate(self._rows)}

    def _row(self, part: MixturePart, seed: tuple[int, ...]) -> Row:
        documents, lengths = part.documents, part.data.lengths
        whole = part.whole or part.data.whole
        if part.data.whole:
            fits = lengths[documents] <= self.context
            self.left_out = {**self.left_out, part.name: int(np.count_nonzero(~fits))}
            require(
                bool(fits.any()) or not len(documents),
                f"no document of {part.name} fits a context of {self.context} tokens",
                f"the shortest has {lengths[documents].min(initial=1 << 62)}: raise the context",
            )
            documents = documents[fits]
        require(
            len(documents) > 0, f"{part.name} has no documents", "add some, or leave it out of the mixture"
        )
        return Row(part.name, documents, lengths, seed=seed, context=self.context, whole=whole)

    def _pieces(self, number: int) -> list[DocumentPiece]:
        block, within = divmod(number, self._block)
        if self._planned[0] != block:
            self._planned = (block, self._plan(block))
        return self._planned[1][within]

    def _plan(self, block: int) -> list[list[DocumentPiece]]:
        """Pieces of each batch of a block."""
        first, count = block * self._block, self._block
        stretch = [(self._taken(i, first), self._taken(i, first + count)) for i in range(len(self._rows))]
        whole = [
            DocumentPiece(part=i, document=d, start=a, stop=b)
            for i, row in enumerate(self._rows)
            if row.whole
            for d, a, b in row.beginning_in(*stretch[i])
        ]
        plan = spread(whole, count, (self._seed, len(self._rows), block))
        cut = [i for i, row in enumerate(self._rows) if not row.whole]
        amounts = level([sum(p.stop - p.start for p in batch) for batch in plan], stretch, cut)
        at = {i: stretch[i][0] for i in cut}
        for batch, wanted in zip(plan, amounts, strict=True):
            for i in cut:
                batch += self._cut(i, at[i], wanted[i])
                at[i] += wanted[i]
        return plan

    def _cut(self, part: int, start: int, count: int) -> Iterator[DocumentPiece]:
        for document, a, b in self._rows[part].stretch(start, count):
            for first in range(a, b, self.context):
                yield DocumentPiece(
                    part=part, document=document, start=first, stop=min(first + self.context, b)
                )

    def _assemble(self, pieces: Sequence[DocumentPiece]) -> Batch:
        if not pieces:  # fewer pieces than batches in a block: one row that is no target of anything
            return Batch(
                ids=np.zeros(1, np.int32),
                targets=np.full(1, -1, np.int32),
                positions=np.zeros(1, np.int32),
                cu_rows=np.array([0, 1], np.int32),
            )
        read = [self._read(piece) for piece in pieces]
        lengths = [piece.stop - piece.start for piece in pieces]
        return Batch(
            ids=np.concatenate([ids for ids, _ in read]),
            targets=np.concatenate([targets for _, targets in read]),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            cu_rows=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        )

    def _read(self, piece: DocumentPiece) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        data, length = self._data[piece.part], piece.stop - piece.start
        # One more token: the last row's target is known even where a document is cut.
        tokens, learn = data.read(piece.document, piece.start, piece.stop + 1)
        target = np.full(length, -1, np.int32)
        target[: len(tokens) - 1] = tokens[1:]
        if learn is not None:
            target[: len(tokens) - 1][~learn[1:]] = -1
        return tokens[:length], target

    def _taken(self, index: int, batches: int) -> int:
        """Tokens that ``batches`` batches take from a part: those up to its upper bound less those up to
        its lower."""
        upto = [int(batches * self.tokens * bound) for bound in self._bounds[index : index + 2]]
        return upto[1] - upto[0]
