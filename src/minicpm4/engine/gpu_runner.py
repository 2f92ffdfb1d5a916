"""Steps on a GPU. Steps that decode, a row a sequence, are captured once as CUDA graphs and replayed.

A graph has fixed sizes, so there is one for each power of two of sequences and of pages: a smaller step is
filled up with rows of a page that belongs to nobody. All that changes from step to step lies in one block of
integers, copied to the device before a replay; then logits are copied back. Nothing waits in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minicpm4.config import SparseConfig
from minicpm4.engine.plan import LOGIT_ROWS
from minicpm4.engine.runner import Visit
from minicpm4.engine.scheduler import Rows, StepPlan
from minicpm4.kernels.contract import Array, Step
from minicpm4.kernels.gpu.table import GpuOps
from minicpm4.kernels.gpu.tiles import DeviceRows
from minicpm4.model.forward import forward, logits
from minicpm4.model.gpu_cache import GpuPool
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weights import ModelWeights

__all__ = ["GpuRunner"]

LEAST_PAGES = 16  # the smallest graph reads contexts up to this


class GpuRunner:
    """Runs steps of at most ``max_sequences`` sequences of ``max_pages`` pages; see StepRunner."""

    def __init__(
        self,
        ops: GpuOps,
        weights: ModelWeights,
        pool: GpuPool,
        rotary: RotaryTable,
        sparse: SparseConfig | None,
        *,
        max_rows: int,
        max_sequences: int,
        max_pages: int,
    ) -> None:
        self._ops, self._weights, self._pool, self._sparse = ops, weights, pool, sparse
        self._max_sequences, self._max_pages = max_sequences, max_pages
        self._angles = ops.angles(*rotary.tables(max_pages * pool.page_size))
        self._graphs: dict[tuple[int, int], _Decode] = {}
        rows = max(max_sequences, LOGIT_ROWS)
        size = (rows, weights.config.vocab_size)
        self._logits = torch.empty(size, dtype=torch.float32, device=ops.device)
        self._host = torch.empty(size, dtype=torch.float32, pin_memory=ops.device.type == "cuda")

    @torch.no_grad()
    def execute(self, plan: StepPlan) -> Array:
        """See StepRunner."""
        for source, target in plan.copies:
            self._pool.copy_page(source, target)
        if all(rows.count == 1 and rows.sample for rows in plan.rows):
            return self._to_host(self._decode(plan.rows).run(plan.rows))
        hidden = self._forward(plan.rows)
        ends = np.cumsum([rows.count for rows in plan.rows])
        last = [int(end) - 1 for end, rows in zip(ends, plan.rows, strict=True) if rows.sample]
        return self._head(hidden[last]) if last else self._host[:0].numpy()

    @torch.no_grad()
    def score(self, rows: Rows, visit: Visit) -> None:
        """See StepRunner."""
        hidden = self._forward([rows])
        for start in range(0, rows.count, LOGIT_ROWS):
            visit(rows.start + start, self._head(hidden[start : start + LOGIT_ROWS]))

    def _head(self, hidden: Any) -> Array:
        out: Any = self._logits[: len(hidden)]
        return self._to_host(logits(self._ops, self._weights, hidden, out))

    def _to_host(self, found: Any) -> Array:
        host = self._host[: len(found)]
        host.copy_(found, non_blocking=True)
        if self._ops.device.type == "cuda":
            torch.cuda.current_stream(self._ops.device).synchronize()
        return host.numpy()

    def _forward(self, plan: list[Rows]) -> Any:
        ids, positions, tables = _integers(plan, max(len(rows.sequence.pages) for rows in plan))
        step = Step(
            ids=ids,
            positions=positions,
            cu_rows=np.cumsum([0, *(rows.count for rows in plan)]).astype(np.int32),
            page_table=tables,
            cos=self._angles[0],
            sin=self._angles[1],
            sparse=self._sparse,
        )
        return forward(self._ops, self._weights, step, self._pool)

    def _decode(self, plan: list[Rows]) -> _Decode:
        """The captured step that fits."""
        batch = min(_power(len(plan)), self._max_sequences)
        pages = max(LEAST_PAGES, *(_power(len(rows.sequence.pages)) for rows in plan))
        key = batch, min(pages, self._max_pages)
        found = self._graphs.get(key)
        if found is None:
            step = _StaticStep.make(self._ops, *key, self._pool.spare, self._angles, self._sparse)
            found = self._graphs[key] = _Decode(self._ops, self._weights, self._pool, step)
        return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _StaticStep:
    """A step of one row a sequence whose integers may be changed in place: ``host`` (batch, 2 + pages), a
    row's id, position and pages; ``device``, its copy there, which ``step`` reads."""

    host: Tensor
    device: Tensor
    step: Step
    spare: int

    @classmethod
    def make(
        cls, ops: GpuOps, batch: int, pages: int, spare: int, angles: Any, sparse: SparseConfig | None
    ) -> _StaticStep:
        host = torch.empty((batch, 2 + pages), dtype=torch.int32, pin_memory=ops.device.type == "cuda")
        device = torch.empty_like(host, device=ops.device)
        columns: Any = device.t().contiguous()
        step = Step(
            ids=columns[0],
            positions=np.zeros(batch, np.int32),
            cu_rows=np.arange(batch + 1, dtype=np.int32),
            page_table=np.zeros((batch, pages), np.int32),
            cos=angles[0],
            sin=angles[1],
            sparse=sparse,
        )
        made = cls(host=host, device=columns, step=step, spare=spare)
        rows = ops.rows(step)
        rows.positions = columns[1]
        made.fill([])
        return made

    @property
    def rows(self) -> DeviceRows:
        found: DeviceRows = self.step.native["gpu"]
        return found

    def fill(self, plan: list[Rows]) -> None:
        """Copy a plan's integers to the device; what it lacks are rows of the spare page."""
        n = len(plan)
        block = self.host.numpy()
        block[:, :2], block[:, 2:] = 0, self.spare
        if n:
            ids, positions, tables = _integers(plan, max(len(rows.sequence.pages) for rows in plan))
            block[:n, 0], block[:n, 1] = ids, positions
            block[:n, 2 : 2 + tables.shape[1]] = tables
        moved = self.host.to(self.device.device, non_blocking=True)
        self.device[:2].copy_(moved[:, :2].t())
        self.rows.page_table.copy_(moved[:, 2:])


class _Decode:
    """One forward pass and its logits, captured where there is a GPU."""

    def __init__(self, ops: GpuOps, weights: ModelWeights, pool: GpuPool, static: _StaticStep) -> None:
        self._ops, self._weights, self._pool, self._static = ops, weights, pool, static
        self._graph: Any = None
        self._result: Any = None
        if ops.device.type == "cuda":
            self._capture()

    def run(self, plan: list[Rows]) -> Any:
        """Logits (k, vocab) on the device, valid until the next run."""
        self._static.fill(plan)
        if self._graph is None:
            self._result = self._compute()
        else:
            self._graph.replay()
        return self._result[: len(plan)]

    def _compute(self) -> Any:
        hidden = forward(self._ops, self._weights, self._static.step, self._pool)
        return logits(self._ops, self._weights, hidden)

    def _capture(self) -> None:
        # The first pass compiles kernels and copies weights, which must not be part of a graph.
        stream: Any = torch.cuda.Stream(self._ops.device)
        stream.wait_stream(torch.cuda.current_stream(self._ops.device))
        with torch.cuda.stream(stream):
            self._compute()
        torch.cuda.current_stream(self._ops.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._result = self._compute()
        self._graph = graph


def _integers(plan: list[Rows], pages: int) -> tuple[NDArray[np.int32], ...]:
    """Ids and positions (n,) and the page table (sequences, pages) of a plan's rows."""
    ids = np.concatenate([_tokens(rows) for rows in plan])
    positions = [np.arange(rows.start, rows.start + rows.count, dtype=np.int32) for rows in plan]
    tables = np.zeros((len(plan), pages), np.int32)
    for table, rows in zip(tables, plan, strict=True):
        table[: len(rows.sequence.pages)] = rows.sequence.pages
    return ids, np.concatenate(positions), tables


def _tokens(rows: Rows) -> NDArray[np.int32]:
    return np.asarray(rows.sequence.tokens[rows.start : rows.start + rows.count], np.int32)


def _power(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
