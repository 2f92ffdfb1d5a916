"""From a plan of integers to arrays: one forward pass a step. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.engine.plan import LOGIT_ROWS
from minicpm4.engine.sequence import Attention
from minicpm4.engine.steps import Span, StepPlan, logit_rows
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Accepted, Array, Step, Tree
from minicpm4.model.cache import KVPool
from minicpm4.model.forward import Buffers, Keep, forward, logits, settle
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.stored_prefix import common_length
from minicpm4.model.weights import ModelWeights

_FINAL = -1  # beside numbers of layers: the final states of the rows whose logits are wanted


class StepResult:
    """What a step computed: views that are valid until the runner's next call.

    ``hidden``: for each number of layers that spans asked for, the states (m, hidden) after so many layers,
    of all rows of these spans, one span after another; on the table's device. After 0 layers they are the
    embeddings; after all, what the head reads: the last norm is done.
    """

    def __init__(self, rows: Array, head: Callable[[Array], Array], hidden: Mapping[int, Array]) -> None:
        """``head`` makes logits, when they are asked for, of a slice of ``rows`` (k, ...)."""
        self._rows, self._head, self.hidden = rows, head, hidden

    @property
    def logits(self) -> Array:
        """Logits (k, vocab), float32, of the rows that want them, one span after another: of at most as
        many rows as the runner holds at once."""
        return self._head(self._rows)

    def first_logits(self, count: int) -> Array:
        """The same of the first ``count`` of these rows."""
        return self._head(self._rows[:count])

    def logit_blocks(self, first: int, count: int) -> Iterator[tuple[int, Array]]:
        """The same of any ``count`` of these rows from ``first`` on: (which of them is a block's first,
        logits (m, vocab)), m at most LOGIT_ROWS, each valid until the next."""
        for at in range(0, count, LOGIT_ROWS):
            yield at, self._head(self._rows[first + at : first + min(at + LOGIT_ROWS, count)])


class StepRunner(Protocol):
    """What an engine asks of a runner."""

    @property
    def version(self) -> int:
        """Which weights it runs: pages that others have filled are of no use. Raises CheckpointError while
        there are none whole."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Carry out the copies, run the rows of all spans. Raises UnsupportedError for a tree of drafts that
        the device has no kernels for."""
        ...

    def settle(self, plan: StepPlan, accepted: Sequence[Sequence[int]]) -> None:
        """Before the plan that was just executed is committed: put the accepted drafts of its trees (see
        ``Scheduler.commit``) where they are the next tokens."""
        ...


class Runner:
    """Runs steps of at most ``max_rows`` rows of ``max_sequences`` sequences of ``max_pages`` pages, in the
    host's memory; ``GpuRunner`` does elsewhere.

    Its large arrays are made here, before the first token.
    """

    def __init__(
        self,
        ops: OpTable,
        weights: ModelWeights,
        pool: KVPool,
        rotary: RotaryTable,
        sparse: SparseConfig | None,
        *,
        max_rows: int,
        max_sequences: int,
        max_pages: int,
    ) -> None:
        self._ops, self._weights, self._pool = ops, weights, pool
        self._rotary, self._sparse = rotary, sparse
        self._max_sequences, self._max_pages = max_sequences, max_pages
        self._logits = ops.zeros((logit_rows(max_sequences), weights.config.vocab_size), np.float32)
        self._buffers = Buffers(weights.config, max_rows) if ops.on_host else None
        self._trees: list[tuple[list[Span], Step]] = []

    @property
    def version(self) -> int:
        """See StepRunner."""
        return self._weights.version

    def execute(self, plan: StepPlan) -> StepResult:
        """See StepRunner. Raises CheckpointError while the weights are not whole."""
        self.version  # noqa: B018  (raises)
        self._trees = []
        for source, target in plan.copies:
            self._pool.copy_page(source, target)
        return self._run(plan.spans)

    def settle(self, plan: StepPlan, accepted: Sequence[Sequence[int]]) -> None:
        """See StepRunner."""
        paths = {id(span): path for span, path in zip(plan.spans, accepted, strict=True)}
        for spans, step in self._trees:
            rows, counts, first = [], [0], 0
            for span in spans:
                rows += [first, *(first + 1 + draft for draft in paths[id(span)])]
                counts.append(len(rows))
                first += span.count
            chosen = Accepted(rows=np.array(rows, np.int32), cu_rows=np.array(counts, np.int32))
            settle(self._ops, self._weights, step, chosen, self._pool)

    def _run(self, spans: list[Span]) -> StepResult:
        """Rows of trees in passes of their own, those of a stored prefix, which others lean on, in the first,
        and a pass for each way to attend: what is computed of a row does not depend on what runs beside
        it."""
        passes: dict[tuple[bool, bool, Attention], list[Span]] = {}
        spans = [part for span in spans for part in span.cut(self._stored_rows(span))]
        for span in spans:
            key = not self._stored_rows(span), span.is_tree, span.sequence.attention
            passes.setdefault(key, []).append(span)
        plain = len(passes) == 1 and not any(span.is_tree or span.hidden for span in spans)
        if plain and all(span.num_logits == span.count for span in spans):  # decoding, scoring
            step = self._step(spans)
            return StepResult(
                forward(self._ops, self._weights, step, self._pool, self._buffers), self._head, {}
            )
        kept = _Kept(self._ops, spans, self._weights.config.hidden_size)
        for (_, is_tree, _), some in sorted(passes.items()):
            step = self._step(some, _tree(some) if is_tree else None)
            if is_tree:
                self._trees.append((some, step))
            self._forward(step, kept.keep(some))
        return StepResult(kept.arrays.pop(_FINAL), self._head, kept.arrays)

    def _stored_rows(self, span: Span) -> int:
        """How many of a span's first rows are of the stored prefix."""
        stored = self._weights.stored
        if stored is None or span.start >= len(stored.ids):
            return 0
        assert span.drafts is None, "drafts in a stored prefix"
        alike = common_length(span.sequence.tokens, stored.ids)
        return max(0, min(alike, span.stop) - span.start)

    def _step(self, spans: list[Span], tree: Tree | None = None) -> Step:
        cos, sin = self._angles(max(span.stop for span in spans))
        sparse = self._sparse
        if sparse is not None:
            own = {"": sparse, "dense": None, "sparse": sparse.at_once}
            sparse = own[spans[0].sequence.attention]
        stored = self._stored_rows(spans[0]) > 0
        return Step(**integers(spans), cos=cos, sin=sin, sparse=sparse, tree=tree, stored=stored)

    def _forward(self, step: Step, keep: Keep) -> None:
        keep(_FINAL, forward(self._ops, self._weights, step, self._pool, self._buffers, keep=keep))

    def _angles(self, length: int) -> tuple[Array, Array]:
        """The rotary table, of at least ``length`` positions."""
        return self._rotary.tables(length)

    def _head(self, rows: Array) -> Array:
        """Logits on the host."""
        out = self._logits[: len(rows)]
        return logits(self._ops, self._weights, rows, out) if len(rows) else out


class _Kept:
    """The states that the spans of a plan ask for, of all its passes together; nothing else is copied."""

    def __init__(self, ops: OpTable, spans: Sequence[Span], width: int) -> None:
        self._places: dict[tuple[int, int], int] = {}
        sizes = {_FINAL: 0}
        for span in spans:
            for layers, count in _asked(span):
                self._places[id(span), layers] = sizes.setdefault(layers, 0)
                sizes[layers] += count
        self.arrays = {layers: ops.zeros((size, width), np.float32) for layers, size in sizes.items()}

    def keep(self, spans: Sequence[Span]) -> Keep:
        """What ``forward`` shows its states to, in a pass over these of the spans."""
        rows: dict[int, tuple[list[int], list[int]]] = {}
        stop = 0
        for span in spans:
            stop += span.count
            for layers, count in _asked(span):
                sources, targets = rows.setdefault(layers, ([], []))
                place = self._places[id(span), layers]
                sources += range(stop - count, stop)
                targets += range(place, place + count)

        def keep(layers: int, x: Array) -> None:
            if layers in rows:
                sources, targets = rows[layers]
                self.arrays[layers][targets] = x[sources]

        return keep


def _asked(span: Span) -> list[tuple[int, int]]:
    """After how many layers states of a span are kept, and of how many of its last rows."""
    final = [(_FINAL, span.num_logits)] if span.num_logits else []
    return final + [(layers, span.count) for layers in span.hidden]


def integers(spans: Sequence[Span]) -> dict[str, Any]:
    """The integers of a step: ids, positions, cu_rows and page_table, as in ``Step``."""
    ends = accumulate((span.count for span in spans), initial=0)
    tables = np.zeros((len(spans), max(len(span.sequence.pages) for span in spans)), np.int32)
    for table, span in zip(tables, spans, strict=True):
        table[: len(span.sequence.pages)] = span.sequence.pages
    return {
        "ids": np.array([token for span in spans for token in span.ids], np.int32),
        "positions": np.array([p for span in spans for p in range(span.start, span.stop)], np.int32),
        "cu_rows": np.array([*ends], np.int32),
        "page_table": tables,
    }


def _tree(spans: Sequence[Span]) -> Tree:
    """The trees of spans that all have drafts: a row for the token that they follow, then one for each."""
    ancestors, positions = [], []
    for span in spans:
        assert span.drafts is not None
        bits, places = [1], [span.start]
        for row, parent in enumerate(span.drafts.parents, 1):
            bits.append(bits[parent + 1] | 1 << row)
            places.append(places[parent + 1] + 1)
        ancestors += bits
        positions += places
    return Tree(ancestors=np.array(ancestors, np.uint64), positions=np.array(positions, np.int32))
