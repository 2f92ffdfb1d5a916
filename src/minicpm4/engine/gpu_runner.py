"""Steps on a GPU. Steps that decode, a row a sequence, are captured once as CUDA graphs and replayed.

A graph has fixed sizes, so there is one for each power of two of sequences and of pages: a smaller step is
filled up with rows of a page that belongs to nobody. All that changes from step to step lies in one block of
integers, copied to the device before a replay; then logits are copied back. Nothing waits in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minicpm4.config import SparseConfig
from minicpm4.engine.runner import Runner, StepResult, integers
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.kernels.gpu.table import GpuOps
from minicpm4.kernels.gpu.tiles import DeviceRows
from minicpm4.kernels.step import Array, Step
from minicpm4.model.cache import KVPool
from minicpm4.model.forward import forward, logits
from minicpm4.model.weights import ModelWeights

__all__ = ["GpuRunner"]

LEAST_PAGES = 16  # the smallest graph reads contexts up to this


class GpuRunner(Runner):
    """A runner for a table whose arrays are tensors on a device."""

    def __init__(self, ops: Any, weights: ModelWeights, pool: KVPool, *more: Any, **sizes: Any) -> None:
        super().__init__(ops, weights, pool, *more, **sizes)
        self._table: GpuOps = ops
        # The last norm is put on the device once: nothing may be copied there while a step is captured.
        self._host_norm, self._norm_version = weights.norm, weights.version
        self._weights = replace(weights, norm=ops.put(weights.norm))
        tables = self._rotary.tables(self._max_pages * pool.page_size)
        self._on_device = ops.angles(*tables)
        self._graphs: dict[tuple[int, int], _Decode] = {}
        shape = tuple(self._logits.shape)
        self._host = torch.empty(shape, dtype=torch.float32, pin_memory=ops.device.type == "cuda")

    @torch.no_grad()
    def execute(self, plan: StepPlan) -> StepResult:
        """See StepRunner."""
        if self.version != self._norm_version:
            norm: Any = self._weights.norm
            norm.copy_(self._table.put(self._host_norm))
            self._norm_version = self.version
        return super().execute(plan)

    def _run(self, spans: list[Span]) -> StepResult:
        apart = (span.hidden or span.sequence.attention or self._stored_rows(span) for span in spans)
        captured = not any(apart)
        if captured and all(span.count == span.num_logits == 1 for span in spans):
            return StepResult(self._decode(spans).run(spans), self._to_host, {})
        return super()._run(spans)

    def _angles(self, length: int) -> tuple[Any, Any]:
        return self._on_device

    @torch.no_grad()
    def _head(self, rows: Any) -> Array:
        return self._to_host(super()._head(rows))

    def _to_host(self, found: Any) -> Array:
        host = self._host[: len(found)]
        host.copy_(found, non_blocking=True)
        if self._table.device.type == "cuda":
            torch.cuda.current_stream(self._table.device).synchronize()
        return host.numpy()

    def _decode(self, spans: list[Span]) -> _Decode:
        """The captured step that fits."""
        batch = min(_power(len(spans)), self._max_sequences)
        pages = max(LEAST_PAGES, *(_power(len(span.sequence.pages)) for span in spans))
        key = batch, min(pages, self._max_pages)
        found = self._graphs.get(key)
        if found is None:
            step = _StaticStep.make(self._table, *key, self._pool, self._on_device, self._sparse)
            found = self._graphs[key] = _Decode(self._table, self._weights, self._pool, step)
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
        cls, ops: GpuOps, batch: int, pages: int, pool: KVPool, angles: Any, sparse: SparseConfig | None
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
        assert pool.spare is not None
        made = cls(host=host, device=columns, step=step, spare=pool.spare)
        rows = ops.rows(step)
        rows.positions = columns[1]
        made.fill([])
        return made

    @property
    def rows(self) -> DeviceRows:
        found: DeviceRows = self.step.native["gpu"]
        return found

    def fill(self, spans: list[Span]) -> None:
        """Copy the spans' integers to the device; what they lack are rows of the spare page."""
        n = len(spans)
        block = self.host.numpy()
        block[:, :2], block[:, 2:] = 0, self.spare
        if n:
            known = integers(spans)
            block[:n, 0], block[:n, 1] = known["ids"], known["positions"]
            block[:n, 2 : 2 + known["page_table"].shape[1]] = known["page_table"]
        moved = self.host.to(self.device.device, non_blocking=True)
        self.device[:2].copy_(moved[:, :2].t())
        self.rows.page_table.copy_(moved[:, 2:])


class _Decode:
    """One forward pass and its logits, captured where there is a GPU."""

    def __init__(self, ops: GpuOps, weights: ModelWeights, pool: KVPool, static: _StaticStep) -> None:
        self._ops, self._weights, self._pool, self._static = ops, weights, pool, static
        self._graph: Any = None
        self._result: Any = None
        if ops.device.type == "cuda":
            self._capture()

    def run(self, spans: list[Span]) -> Any:
        """Logits (k, vocab) on the device, valid until the next run."""
        self._static.fill(spans)
        if self._graph is None:
            self._result = self._compute()
        else:
            self._graph.replay()
        return self._result[: len(spans)]

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


def _power(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
