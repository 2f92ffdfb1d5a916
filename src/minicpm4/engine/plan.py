"""What a model will take, added up before anything large is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.engine.steps import logit_rows
from minicpm4.errors import MemoryPlanError, UnsupportedError
from minicpm4.formats.kinds import grouped_kinds
from minicpm4.kernels.contract import OpTable
from minicpm4.machine import human, resident_memory
from minicpm4.model.cache import page_nbytes, page_size_for
from minicpm4.model.forward import Buffers
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weight_plan import WeightPlan

LOGIT_ROWS = 64  # rows of logits held at once when a whole text is scored
BATCH_TOKENS = 1024  # cache planned for each sequence beside the longest one
MIN_CONTEXT = 256  # a context shorter than this was not worth loading the model for
_SMALL = frozenset(grouped_kinds())  # int4 makes a model of several of these little smaller
MARGIN = 0.05  # of the available memory stays free when the context is chosen here


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes by purpose, for ``context`` tokens in one sequence and ``num_pages`` pages in all.

    ``process``: what the process held when planned; ``available``: what it could still take then,
    None where the system does not tell.
    """

    context: int
    page_size: int
    num_pages: int
    weights: int
    kv: int
    activations: int
    scratch: int
    logits: int
    rotary: int
    kept: int
    draft: int
    process: int
    available: int | None

    @property
    def needed(self) -> int:
        """Bytes to come: all but what the process already holds."""
        return (
            self.weights
            + self.kv
            + self.activations
            + self.scratch
            + self.logits
            + self.rotary
            + self.kept
            + self.draft
        )

    @property
    def total(self) -> int:
        return self.needed + self.process

    def parts(self) -> list[tuple[str, int]]:
        """(purpose, bytes) of all that is needed, largest concerns first."""
        tokens = self.num_pages * self.page_size
        kept = [("pages on their way to and from files", self.kept)] if self.kept else []
        draft = [("what drafts, with all its own", self.draft)] if self.draft else []
        return [
            ("weights", self.weights),
            (f"cache of {tokens:,} tokens ({self.num_pages:,} pages of {self.page_size})", self.kv),
            ("activations", self.activations),
            ("kernels' scratch", self.scratch),
            ("logits", self.logits),
            (f"rotary table of {self.context:,} positions", self.rotary),
            *kept,
            *draft,
        ]

    def sums(self) -> list[tuple[str, int]]:
        """What is needed and the total, by the names that both have wherever they are shown."""
        return [("memory planned", self.needed), ("with this process", self.total)]

    def rows(self) -> list[tuple[str, int]]:
        """(purpose, bytes) of every part, the sums and what there is."""
        needed, total = self.sums()
        rows = [*self.parts(), needed, ("process before loading", self.process), total]
        if self.available is not None:
            rows.append(("available beside this process", self.available))
        return rows

    def told(self) -> str:
        """Both sums on one line."""
        (name, needed), (beside, total) = self.sums()
        return f"{name}: {human(needed)} ({human(total)} {beside})"

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {human(size):>10}" for name, size in rows)


def planned_tokens(context: int, max_batch: int) -> int:
    """Tokens for which there is cache where memory allows it: one whole ``context``, some of each other."""
    return context + (max_batch - 1) * min(context, BATCH_TOKENS)


def no_draft(context: int) -> int:
    """Bytes of a drafter that there is not."""
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What is to be planned, for the kernels of ``ops``. ``weights`` and ``process`` in bytes; ``context``
    None: the most that fits, up to the model's own; ``max_rows`` tokens a step; ``max_batch`` sequences at a
    time; ``kinds`` of weights that kernels may meet; ``kept_pages`` that are on their way to files or
    from there; ``draft``: bytes of what drafts, with all it needs, for a context; ``limited``: ``available``
    is what the caller allows, and not all that there is."""

    ops: OpTable
    config: ModelConfig
    sparse: SparseConfig | None
    kv: KVFormat
    page_size: int
    weights: int
    kinds: frozenset[str]
    context: int | None
    max_batch: int
    max_rows: int
    kept_pages: int = 0
    draft: Callable[[int], int] = no_draft
    process: int = 0
    available: int | None = None
    limited: bool = False

    @property
    def page(self) -> int:
        """Bytes of one page."""
        return page_nbytes(self.config, page_size=self.page_size, kv=self.kv, sparse=self.sparse)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def whole(self, context: int) -> MemoryPlan:
        """Add up for a context with all pages beyond it that are wanted."""
        return self.plan(context, (self.max_batch - 1) * self.pages_for(min(context, BATCH_TOKENS)))

    def plan(self, context: int, extra_pages: int) -> MemoryPlan:
        """Add up for a context and pages beyond it."""
        config = self.config
        pages = self.pages_for(context)
        num_pages = pages + extra_pages
        return MemoryPlan(
            context=context,
            page_size=self.page_size,
            num_pages=num_pages,
            weights=self.weights,
            # A GPU's pool has one more, for rows that fill up a captured step.
            kv=(num_pages + (not self.ops.on_host)) * self.page,
            # Beside the buffers, the states that logits are computed from: of all rows, where all are scored.
            activations=Buffers.nbytes(config, self.max_rows) + self.max_rows * config.hidden_size * 4,
            scratch=self.ops.scratch_nbytes(
                config,
                None if self.sparse is None else self.sparse.within(pages),  # as the steps have it
                kv=self.kv,
                rows=self.max_rows,
                context=context,
                weights=self.kinds,
            ),
            # Sampling looks at one row in float64, with two temporaries of that size.
            logits=config.vocab_size * (logit_rows(self.max_batch) * 4 + 3 * 8),
            rotary=RotaryTable.nbytes(config, context),
            kept=self.kept_pages * self.page,
            draft=self.draft(context),
            process=self.process,
            available=self.available,
        )


def memory_demand(
    ops: OpTable,
    config: ModelConfig,
    weights: WeightPlan,
    sparse: SparseConfig | None,
    kv: KVFormat,
    *,
    context: int | None,
    max_batch: int,
    max_rows: int,
    memory: int | None = None,
    kept_pages: int = 0,
    stored: int = 0,
    draft: Callable[[int], int] = no_draft,
) -> Demand:
    """What weights, pages and steps take beside what this process holds now; arguments as in Demand.
    ``memory``: bytes that they may take, however much is available; ``stored``: of a stored prefix.

    Raises UnsupportedError for what ``ops`` has no kernels for.
    """
    ops.check_supports(kv=kv, weights=weights.kinds, windows=bool(config.windows))
    if kept_pages and not ops.on_host:
        raise UnsupportedError("cache_dir is built for the CPU only", "leave it out, or use backend='cpu'")
    available = ops.available_memory()
    return Demand(
        ops=ops,
        config=config,
        sparse=sparse,
        kv=kv,
        page_size=page_size_for(sparse),
        weights=weights.nbytes + stored,
        kinds=weights.possible_kinds,
        context=context,
        max_batch=max_batch,
        max_rows=max_rows,
        kept_pages=kept_pages,
        draft=draft,
        process=resident_memory(),
        available=available if memory is None else min(memory, available or memory),
        limited=memory is not None and memory <= (available or memory),
    )


def make_plan(demand: Demand) -> MemoryPlan:
    """Choose context and pages that fit. Raises MemoryPlanError, with figures, when none do.

    The pool holds one sequence of full context, and for each of ``max_batch`` - 1 others up to 1,024
    tokens where there is room.
    """
    context = demand.context or demand.config.max_position_embeddings
    plan = demand.whole(context)
    room = demand.available
    if room is None or plan.needed <= _usable(demand, room):
        return plan
    spare = _usable(demand, room) - demand.plan(context, 0).needed
    if spare >= 0:
        return demand.plan(context, spare // demand.page)
    fitting = _largest_context(demand, context, room)
    if demand.context is None and fitting >= min(MIN_CONTEXT, context):
        return demand.plan(fitting, 0)
    raise _refusal(demand, demand.plan(context, 0), fitting, room)


def check_score(rows: int, vocab_size: int, available: int | None) -> None:
    """Raise MemoryPlanError unless float32 logits (rows, vocab_size) fit."""
    size = rows * vocab_size * 4
    if available is not None and size > available:
        raise MemoryPlanError(
            f"logits of {rows:,} tokens take {human(size)}, {human(available)} are available",
            "pass fewer tokens, or use nll, which keeps one number a token",
        )


def _usable(demand: Demand, available: int) -> int:
    return available if demand.context is not None else int(available * (1 - MARGIN))


def _largest_context(demand: Demand, context: int, available: int) -> int:
    """The longest context, in whole pages, that fits; 0 when none does."""
    low, high = 0, demand.pages_for(context)
    while low < high:
        middle = (low + high + 1) // 2
        if demand.plan(middle * demand.page_size, 0).needed <= _usable(demand, available):
            low = middle
        else:
            high = middle - 1
    return min(low * demand.page_size, context)


def _refusal(demand: Demand, plan: MemoryPlan, fitting: int, available: int) -> MemoryPlanError:
    parts = ", ".join(f"{name} {human(size)}" for name, size in plan.parts())
    least = _least(demand, plan)
    over = least.needed - _usable(demand, available)  # helps only what takes as much
    remedies = []
    if fitting >= MIN_CONTEXT:
        remedies.append(f"a context (--context) of at most {fitting:,} tokens fits")
    if demand.kv == "float32" and over <= least.kv:
        remedies.append("--kv bf16 halves the cache")
    if demand.kv == "bf16" and over <= least.kv:
        remedies.append("--kv int8 makes the cache half as large")
    if (demand.kinds == {"int8"} or demand.kinds - _SMALL) and over <= least.weights + least.kv:
        remedies.append("--weights int4 makes the weights smaller")
    if demand.limited:
        enough = least.needed if demand.context is not None else least.needed / (1 - MARGIN)
        tokens = "" if least.context == plan.context else f", with a context of {least.context:,} tokens"
        remedies.append(f"allow more: --memory {math.ceil(enough / 1e7) / 100:g} is the least{tokens}")
    elif fitting < MIN_CONTEXT:
        remedies.append("end what else takes memory")
    return MemoryPlanError(
        f"a context of {plan.context:,} tokens needs {human(plan.needed)} ({parts}), "
        f"{human(available)} are {'allowed (--memory)' if demand.limited else 'available'}",
        "; ".join(remedies),
    )


def _least(demand: Demand, plan: MemoryPlan) -> MemoryPlan:
    """The smallest plan that would be taken in place of one that does not fit."""
    pages = demand.pages_for(min(MIN_CONTEXT, plan.context))
    if demand.context is not None:
        return plan
    return demand.plan(min(pages * demand.page_size, plan.context), 0)


def describe(ops: OpTable, plan: MemoryPlan, sparse: SparseConfig | None, notes: str) -> str:
    """One line on what was chosen at load."""
    attention = "dense"
    if sparse is not None:
        since = "always" if sparse.dense_below <= 1 else f"from {sparse.dense_below:,} tokens"
        budget = sparse.within(-(-plan.context // sparse.block_size)).budget
        attention = f"sparse {since} (up to {budget} blocks of {sparse.block_size})"
    return (
        f"attention: {attention}; {notes}; kernels: {ops.description}; context {plan.context:,} tokens; "
        f"{plan.told()}"
    )
