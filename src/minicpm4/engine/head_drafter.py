"""A head on the model's hidden states as a drafter: EAGLE-2, EAGLE-3, multi-token prediction.

Of each sequence it keeps the features of what it was shown and has not read yet, at most WINDOW positions of
them, and pages with its own keys and values. It reads features before it guesses, then goes on from its own;
what it made of its own is overwritten by the next true ones. It sees the last WINDOW positions alone: of a
long prompt no more is read (the engine copies a step's states for it, as of any), and a sequence whose
beginning came from the prefix cache begins where it was first shown states.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from minicpm4.config.choices import KVFormat
from minicpm4.engine.draft_chain import Chain, choose
from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.executors import Executor
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.sequence import Sequence
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Array, Step
from minicpm4.model.heads import Head

WINDOW = 1024  # tokens that a head reads, the last ones


@dataclass(slots=True, eq=False)
class _Seen:
    """What is known of a sequence. ``held``: its pages, and how many rows of them are read (``computed``);
    the first is position ``first`` of the text. ``waiting``: features of the positions behind these."""

    held: Sequence
    first: int
    waiting: list[Array] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Positions that wait."""
        return sum(map(len, self.waiting))

    @property
    def stop(self) -> int:
        """The position behind all that was shown."""
        return self.first + self.held.computed + self.count


@dataclass(slots=True, eq=False, kw_only=True)
class _Chain(Chain):
    """``feature`` and ``row`` (1, width) are the head's of its last position."""

    seen: _Seen
    feature: Array
    row: Array


class HeadDrafter:
    """A Drafter over a ``head``; ``ops`` on the host. ``max_rows``: rows that it runs at once; ``context``:
    the model's."""

    is_free = False

    def __init__(
        self,
        ops: OpTable,
        head: Head,
        *,
        num_pages: int,
        page_size: int,
        max_rows: int,
        context: int,
        kv: KVFormat,
    ) -> None:
        self.hidden: tuple[int, ...] = tuple(dict.fromkeys(head.hidden))  # of small models two are the same
        self._ops, self._head, self._max_rows = ops, head, max_rows
        self._sizes = num_pages, page_size
        sizes: Any = {"num_pages": num_pages, "page_size": page_size, "kv": kv}
        executor = Executor(ops, head.config, context=context, sparse=None, **sizes)
        self._kv, self._rotary = executor.pool.layer(0), executor.rotary
        self.start_over()

    def start_over(self) -> None:
        """See Drafter."""
        self._pages = PageAllocator(*self._sizes, prefix_cache=False)
        self._seen: dict[tuple[int, int], _Seen] = {}

    def drop(self, sequence: Sequence) -> None:
        """See Drafter."""
        seen = self._seen.pop(sequence.order, None)
        if seen is not None:
            self._pages.release(seen.held)

    def see(self, sequence: Sequence, start: int, states: Mapping[int, Array]) -> None:
        """See Drafter."""
        shown = [states[layers] for layers in self._head.hidden]
        seen = self._seen.get(sequence.order)
        known = seen.stop if seen is not None else -1
        if start < known:  # it was sent away, and reads again what it had read
            shown, start = [array[known - start :] for array in shown], known
        unread = len(sequence.tokens) - WINDOW - start  # rows that are never read: the text only grows
        if unread > 0:
            shown, start = [array[unread:] for array in shown], start + unread
        if not len(shown[0]):
            return
        if seen is None or start > known or seen.count + len(shown[0]) > WINDOW:
            # There is a gap, or more than is ever read: begin anew with the last of it.
            before = [] if seen is None or start > known else seen.waiting
            self.drop(sequence)
            late = max(len(shown[0]) - WINDOW, 0)
            features = self._features([array[late:] for array in shown])
            kept = np.concatenate([*before, features])[-WINDOW:]
            held = Sequence(sequence.request_id, [], sequence.limit, sequence.index)
            first = start + len(shown[0]) - len(kept)
            self._seen[sequence.order] = _Seen(held, first, [kept])
            return
        seen.waiting.append(self._features(shown))

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        """See Drafter."""
        chains = [self._begin(wish) for wish in wishes]
        going = [chain for chain in chains if chain is not None and chain.goes_on]
        while going:
            rows = np.concatenate([chain.row for chain in going])
            choose(self._ops, going, self._head.logits(rows), self._head.tokens)
            going = [chain for chain in going if chain.goes_on]
            self._go_on(going)
        return [None if chain is None else chain.guess for chain in chains]

    def _features(self, states: list[Array]) -> Array:
        return np.array(self._head.fuse(states), np.float32)

    def _begin(self, wish: Wish) -> _Chain | None:
        """Read what waits of a sequence; None where it was not shown all, or pages are missing."""
        seen, tokens = self._seen.get(wish.sequence.order), wish.sequence.tokens
        if seen is None or not seen.waiting or seen.stop != len(tokens) - 1:
            return None
        if self._pages.ensure(seen.held, seen.held.computed + seen.count + wish.most) is None:
            return None
        features, seen.waiting = np.concatenate(seen.waiting), []
        for start in range(0, len(features), self._max_rows):
            some = features[start : start + self._max_rows]
            at = seen.first + seen.held.computed
            following = tokens[at + 1 : at + 1 + len(some)]
            made, rows = self._run([seen], [some], [following], [seen.held.computed])
            seen.held.computed += len(some)
        return _Chain(wish=wish, seen=seen, feature=made[-1:], row=rows[-1:])

    def _go_on(self, chains: list[_Chain]) -> None:
        """The head's features behind the last draft of each."""
        if not chains:
            return
        places = [chain.seen.held.computed + len(chain.tokens) - 1 for chain in chains]
        following = [[chain.tokens[-1]] for chain in chains]
        seen, features = [chain.seen for chain in chains], [chain.feature for chain in chains]
        made, rows = self._run(seen, features, following, places)
        for i, chain in enumerate(chains):
            chain.feature, chain.row = made[i : i + 1], rows[i : i + 1]

    def _run(
        self, seen: list[_Seen], features: list[Array], following: list[list[int]], places: list[int]
    ) -> tuple[Array, Array]:
        """g' and r of rows of sequences, from ``places`` of their pages on."""
        counts = [len(array) for array in features]
        stop = max(place + count for place, count in zip(places, counts, strict=True))
        tables = np.zeros((len(seen), max(len(one.held.pages) for one in seen)), np.int32)
        for table, one in zip(tables, seen, strict=True):
            table[: len(one.held.pages)] = one.held.pages
        cos, sin = self._rotary.tables(stop)
        positions = [place + i for place, count in zip(places, counts, strict=True) for i in range(count)]
        tokens: Any = np.array([token for some in following for token in some], np.int32)
        step = Step(
            ids=tokens,
            positions=np.array(positions, np.int32),
            cu_rows=np.array([*accumulate(counts, initial=0)], np.int32),
            page_table=tables,
            cos=cos,
            sin=sin,
        )
        made, rows = self._head.step(step, tokens, np.concatenate(features), self._kv)
        return np.array(made), np.array(rows)
