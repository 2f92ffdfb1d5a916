"""Which pieces go to which batch: rows of pieces, whole ones spread evenly, cut ones poured to one level."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DocumentPiece", "Row", "batches_in_block", "level", "spread"]

PIECES_IN_BLOCK = 64  # at least so many of the longest: enough to even out their lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentPiece:
    """Tokens ``start`` to ``stop`` - 1 of a document of part number ``part``."""

    part: int
    document: int
    start: int
    stop: int


class Row:
    """The endless row of one part: its pieces, shuffled for each epoch. Keeps the order of the epoch that it
    was last asked for."""

    def __init__(
        self,
        name: str,
        documents: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        seed: tuple[int, ...],
        context: int,
        whole: bool,
    ) -> None:
        self.name, self.whole, self._seed = name, whole, seed
        sizes = lengths[documents]
        # Of cut parts too, or a batch would be of one document, and a long one fill a hundred steps.
        counts = -(-sizes // context)
        self._documents = np.repeat(documents, counts)
        first = np.cumsum(counts) - counts
        self._firsts = (np.arange(len(self._documents)) - np.repeat(first, counts)) * context
        self._sizes = np.minimum(np.repeat(sizes, counts) - self._firsts, context)
        self.total = int(sizes.sum())
        self.longest = int(self._sizes.max())
        self._epoch = -1
        self._order = self._ends = np.zeros(0, np.int64)

    def stretch(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, stop) of the tokens from ``start`` on of the row, ``count`` of them."""
        while count > 0:
            within = self._enter(start)
            index = int(np.searchsorted(self._ends, within, side="right"))
            document, begin, size = self._at(index)
            passed = within - (int(self._ends[index]) - size)
            taken = min(count, size - passed)
            yield document, begin + passed, begin + passed + taken
            start, count = start + taken, count - taken

    def beginning_in(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, stop) of the whole pieces that begin at places ``start`` to ``stop`` - 1."""
        while start < stop:
            within = self._enter(start)
            until = min(within + stop - start, self.total)
            begins = self._ends - self._sizes[self._order]
            for index in range(*(int(np.searchsorted(begins, place)) for place in (within, until))):
                document, begin, size = self._at(index)
                yield document, begin, begin + size
            start += until - within

    def _at(self, index: int) -> tuple[int, int, int]:
        piece = self._order[index]
        return int(self._documents[piece]), int(self._firsts[piece]), int(self._sizes[piece])

    def _enter(self, place: int) -> int:
        """Have the order of the epoch that ``place`` is in; return the place within it."""
        epoch, within = divmod(place, self.total)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self._seed, epoch])
            self._order = rng.permutation(len(self._documents))
            self._ends = np.cumsum(self._sizes[self._order])
            self._epoch = epoch
        return within


def batches_in_block(longest: int, tokens: int) -> int:
    """How many batches of ``tokens`` are planned together for whole pieces of at most ``longest``."""
    return max(1, -(-PIECES_IN_BLOCK * longest // tokens))


def spread(pieces: Sequence[DocumentPiece], count: int, seed: tuple[int, ...]) -> list[list[DocumentPiece]]:
    """Pieces in ``count`` groups of about equal tokens: the longest first, each to the emptiest group."""
    rng = np.random.default_rng([*seed, 1])
    groups: list[list[DocumentPiece]] = [[] for _ in range(count)]
    heap = [(0, group) for group in range(count)]
    shuffled = [pieces[i] for i in rng.permutation(len(pieces))]
    for piece in sorted(shuffled, key=lambda p: p.start - p.stop):
        filled, group = heap[0]
        groups[group].append(piece)
        heapq.heapreplace(heap, (filled + piece.stop - piece.start, group))
    # The first group always gets the longest piece: its place in the block is left to chance.
    return [groups[i] for i in rng.permutation(count)]


def level(
    filled: Sequence[int], stretches: Sequence[tuple[int, int]], parts: Sequence[int]
) -> list[dict[int, int]]:
    """Tokens that each of ``parts`` pours into each batch, so that batches ``filled`` unequally come to one
    level and every part's stretch (start, stop) is used up."""
    rest = {i: stretches[i][1] - stretches[i][0] for i in parts}
    result = []
    for pour in _pour(filled, sum(rest.values())):
        # Of each part by what is left of it: nothing is ever negative, and nothing remains at the end.
        among, amounts = sum(rest.values()), {}
        for i, left in rest.items():
            amounts[i] = left * pour // max(among, 1)
            pour, among = pour - amounts[i], among - left
        rest = {i: left - amounts[i] for i, left in rest.items()}
        result.append(amounts)
    return result


def _pour(filled: Sequence[int], total: int) -> list[int]:
    """``total`` shared out so that the lowest of ``filled`` rise together; remainders go to the first."""
    order = sorted(range(len(filled)), key=lambda i: (filled[i], i))
    taking, held = 0, 0
    for taking in range(1, len(order) + 1):
        held += filled[order[taking - 1]]
        if taking == len(order) or filled[order[taking]] * taking - held >= total:
            break
    height, extra = divmod(total + held, taking)
    poured = [0] * len(filled)
    for rank, i in enumerate(order[:taking]):
        poured[i] = height + (rank < extra) - filled[i]
    return poured
