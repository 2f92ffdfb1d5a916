"""From a plan of integers to arrays: one forward pass a step. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.engine.plan import LOGIT_ROWS
from minicpm4.engine.scheduler import Rows, StepPlan
from minicpm4.kernels.contract import Array, OpTable, Step
from minicpm4.model.cache import KVPool
from minicpm4.model.forward import Buffers, forward, logits
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weights import ModelWeights

Visit = Callable[[int, Array], None]


class StepRunner(Protocol):
    """What an engine asks of a runner."""

    def execute(self, plan: StepPlan) -> Array:
        """Carry out the copies, run the rows; return the logits (k, vocab) of those to be sampled.

        The result is valid until the next call."""
        ...

    def score(self, rows: Rows, visit: Visit) -> None:
        """Run rows of one sequence and show all their logits, in order: ``visit(position of the
        first, logits (m, vocab))``, m at most 64, each valid until the next."""
        ...


class Runner:
    """Runs steps of at most ``max_rows`` rows of ``max_sequences`` sequences of ``max_pages`` pages.

    All its arrays are made here, before the first token.
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
        config = weights.config
        self._ops, self._weights, self._pool = ops, weights, pool
        self._rotary, self._sparse = rotary, sparse
        self._buffers = Buffers(config, max_rows)
        self._ids = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._cu_rows = np.zeros(max_sequences + 1, np.int32)
        self._page_table = np.zeros((max_sequences, max_pages), np.int32)
        self._logits = np.empty((max(max_sequences, LOGIT_ROWS), config.vocab_size), np.float32)

    def execute(self, plan: StepPlan) -> Array:
        """See StepRunner."""
        for source, target in plan.copies:
            self._pool.copy_page(source, target)
        hidden = self._forward(plan.rows)
        ends = np.cumsum([rows.count for rows in plan.rows])
        last = [end - 1 for end, rows in zip(ends, plan.rows, strict=True) if rows.sample]
        return self._head(hidden[last]) if last else self._logits[:0]

    def score(self, rows: Rows, visit: Visit) -> None:
        """See StepRunner."""
        hidden = self._forward([rows])
        for start in range(0, rows.count, LOGIT_ROWS):
            visit(rows.start + start, self._head(hidden[start : start + LOGIT_ROWS]))

    def _head(self, hidden: Array) -> Array:
        return logits(self._ops, self._weights, hidden, self._logits[: len(hidden)])

    def _forward(self, plan: list[Rows]) -> Array:
        n = 0
        for index, rows in enumerate(plan):
            stop, pages = n + rows.count, rows.sequence.pages
            end = rows.start + rows.count
            self._ids[n:stop] = rows.sequence.tokens[rows.start : end]
            self._positions[n:stop] = np.arange(rows.start, end, dtype=np.int32)
            self._page_table[index, : len(pages)] = pages
            self._cu_rows[index + 1] = n = stop
        cos, sin = self._rotary.tables(max(rows.start + rows.count for rows in plan))
        step = Step(
            ids=self._ids[:n],
            positions=self._positions[:n],
            cu_rows=self._cu_rows[: len(plan) + 1],
            page_table=self._page_table[: len(plan)],
            cos=cos,
            sin=sin,
            sparse=self._sparse,
        )
        return forward(self._ops, self._weights, step, self._pool, self._buffers)
