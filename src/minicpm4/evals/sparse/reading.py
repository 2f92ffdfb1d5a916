"""One model in memory that reads a text several times, each time with other attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.engine.executors import Executor
from minicpm4.engine.load import Inspection, load_planned
from minicpm4.engine.options import CHUNK
from minicpm4.engine.scoring import Losses
from minicpm4.engine.sequence import Sequence as TokenSequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.errors import UnsupportedError
from minicpm4.evals.cost import decode_bytes
from minicpm4.evals.sparse.layout import Layout
from minicpm4.evals.sparse.recall import Recall, Watched
from minicpm4.kernels.contract import OpTable
from minicpm4.model.cache import page_size_for
from minicpm4.progress import Progress

__all__ = ["Reader", "probes"]

PROBE = 32  # queries at the end of running text, and as many in the copy, of which recall is taken


def probes(layout: Layout) -> list[range]:
    """Positions at which recall is taken."""
    return [range(end - PROBE, end) for end in (layout.second, len(layout.ids))]


class Reader:
    """The model of ``found``. Raises CheckpointError, UnsupportedError on a GPU, whose pages are not the
    host's."""

    def __init__(self, found: Inspection, progress: Progress | None = None) -> None:
        if not found.ops.on_host:
            raise UnsupportedError("settings are measured on the CPU", "use backend='cpu'")
        self._found = found
        self.weights = load_planned(
            found.checkpoint, found.config, found.weights, found.ops, progress, found.source.stored
        ).weights

    def losses(
        self,
        layout: Layout,
        sparse: SparseConfig | None,
        tick: Callable[[int], object] = lambda tokens: None,
        watched: Watched | None = None,
    ) -> NDArray[np.float32]:
        """-log p (tokens,) of each token of the layout's stretches, others undefined; ``tick`` is told how
        many were read. ``watched``: what computes instead of the model's own table."""
        found, ids = self._found, list(layout.ids)
        # Duck typing: what it does not do itself is the table's.
        ops = found.ops if watched is None else cast(OpTable, watched)
        size, chunk = page_size_for(sparse), found.options.chunk or CHUNK
        pages = -(-len(ids) // size)
        made: dict[str, Any] = {"context": len(ids), "num_pages": pages, "page_size": size}
        executor = Executor(ops, found.config, kv=found.options.kv, sparse=sparse, **made)
        runner = executor.runner(self.weights, sparse, max_rows=chunk, max_sequences=1)
        sequence = TokenSequence(0, ids, len(ids), pages=list(range(pages)), wanted="all")
        losses = Losses(ids, found.host_ops)
        for start in range(0, len(ids), chunk):
            sequence.computed = start
            span = Span.next(sequence, chunk)
            result = runner.execute(StepPlan([span]))
            for stretch in (layout.original, layout.running, layout.copy):
                # The row before a token foresees it.
                first, end = max(stretch.start - 1, start), min(stretch.stop - 1, span.stop)
                if first < end:
                    for at, logits in result.logit_blocks(first - start, end - first):
                        losses.visit(first + at, logits)
            tick(span.count)
        return np.concatenate([[np.float32(0)], losses.result()])

    def watch(
        self,
        layout: Layout,
        settings: Mapping[str, SparseConfig],
        tick: Callable[[int], object] = lambda tokens: None,
    ) -> tuple[NDArray[np.float32], dict[str, Recall]]:
        """``losses`` of dense attention, and what each of ``settings`` would have chosen of it."""
        config = self._found.config
        sizes = config.num_hidden_layers, config.num_attention_heads
        watched = Watched(self._found.ops, *sizes, settings, probes(layout))
        return self.losses(layout, None, tick, watched), watched.recalls

    def cache_share(self, sparse: SparseConfig, length: int) -> float:
        """Of the bytes of keys, values and compressed keys that the last of ``length`` tokens reads with
        dense attention, those that it reads with ``sparse``."""
        kv = self._found.options.kv
        without = decode_bytes(self.weights, 0, kv, None)
        parts = [decode_bytes(self.weights, length - 1, kv, one) - without for one in (sparse, None)]
        return parts[0] / parts[1]
