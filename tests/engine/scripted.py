"""A runner whose logits are a function of the tokens alone, over a cache that catches wrong sharing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicpm4.engine.engine import Engine, EngineLimits
from minicpm4.engine.outputs import Event, Prefilled, Sampled
from minicpm4.engine.request import NoText
from minicpm4.engine.runner import Visit
from minicpm4.engine.scheduler import Rows, StepPlan
from minicpm4.kernels.ref import RefOps
from tests.engine.model_cache import ModelCache

VOCAB = 12


def logits_of(tokens: list[int]) -> np.ndarray:
    """Random logits, the same for the same tokens."""
    return np.random.default_rng(tokens).standard_normal(VOCAB).astype(np.float32) * 2


class ScriptedRunner:
    """Stands in for Runner. ``fail`` is called before each step and may raise."""

    def __init__(self) -> None:
        self.cache: ModelCache | None = None
        self.fail: Callable[[], None] = lambda: None
        self.logits = logits_of
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> np.ndarray:
        assert self.cache is not None
        self.fail()
        self.plans.append(plan)
        self.cache.run(plan)
        rows = [self.logits(rows.sequence.tokens) for rows in plan.rows if rows.sample]
        return np.array(rows, np.float32).reshape(-1, VOCAB)

    def score(self, rows: Rows, visit: Visit) -> None:
        assert self.cache is not None
        self.cache.verify(rows.sequence)
        self.cache.write(rows.sequence, rows.start, rows.start + rows.count)
        for position in range(rows.start, rows.start + rows.count):
            visit(position, self.logits(rows.sequence.tokens[: position + 1])[None])


def make_engine(
    *, ends: tuple[int, ...] = (), seed: int | None = 0, **sizes: Any
) -> tuple[Engine, ScriptedRunner]:
    """An engine of 4-token pages over a ScriptedRunner."""
    limits = {"context": 40, "num_pages": 40, "max_rows": 8, "max_sequences": 4} | sizes
    runner = ScriptedRunner()
    engine = Engine(
        runner,
        RefOps(),
        EngineLimits(vocab_size=VOCAB, page_size=4, **limits),
        text_streams=lambda stop, ids: NoText(ids),
        end_ids=ends,
        seed=seed,
    )
    runner.cache = ModelCache(engine.scheduler.pages)
    return engine, runner


def run(engine: Engine) -> list[Event]:
    """Step until there is no work."""
    events = []
    for _ in range(2000):
        if not engine.has_work:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def tokens_of(events: list[Event], request_id: int, index: int = 0) -> list[int]:
    found = [e.piece for e in events if isinstance(e, Sampled) and e.request_id == request_id]
    return [token for piece in found if piece.index == index for token in piece.token_ids]


def read_of(events: list[Event], request_id: int) -> list[int]:
    return [e.done for e in events if isinstance(e, Prefilled) and e.request_id == request_id]
