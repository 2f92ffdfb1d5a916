"""A runner whose logits are a function of the tokens alone, over a cache that catches wrong sharing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicpm4.engine.drafting import Drafting
from minicpm4.engine.engine import Engine, EngineLimits
from minicpm4.engine.kept_pages import KeptPages
from minicpm4.engine.outputs import Event, Prefilled, Sampled
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.runner import StepResult
from minicpm4.engine.steps import StepPlan
from minicpm4.kernels.ref import RefOps
from minicpm4.text.stream import NoText
from tests.engine.drafting import texts_of
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
        self.version = 0

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.cache is not None
        self.fail()
        self.plans.append(plan)
        self.cache.run(plan)
        rows = [
            self.logits(text)
            for span in plan.spans
            for text in texts_of(span)[span.count - span.num_logits :]
        ]
        return StepResult(np.array(rows, np.float32).reshape(-1, VOCAB), lambda rows: rows, {})

    def settle(self, plan: StepPlan, accepted: list[list[int]]) -> None:
        assert self.cache is not None
        self.cache.settle(plan, accepted)


class NumberedEngine(Engine):
    """Numbers its requests, and returns the events of each step, as a driver would."""

    asked = 0

    def ask(self, ids: Any, params: SamplingParams) -> int:
        self.add(self.asked, ids, params)
        self.asked += 1
        return self.asked - 1

    def events_of_step(self) -> list[Event]:
        self.step()
        found = list(self.events)
        self.events.clear()
        return found


def make_engine(
    *,
    ends: tuple[int, ...] = (),
    seed: int | None = 0,
    kept: KeptPages | None = None,
    drafting: Drafting | None = None,
    **sizes: Any,
) -> tuple[NumberedEngine, ScriptedRunner]:
    """An engine of 4-token pages over a ScriptedRunner."""
    limits = {"context": 40, "num_pages": 40, "max_rows": 8, "max_sequences": 4} | sizes
    runner = ScriptedRunner()
    engine = NumberedEngine(
        runner,
        RefOps(),
        EngineLimits(vocab_size=VOCAB, page_size=4, **limits),
        text_streams=lambda stop, ids, *shown: NoText(ids),
        end_ids=ends,
        seed=seed,
        kept=kept,
        drafting=drafting,
    )
    runner.cache = ModelCache(engine.scheduler.pages)
    return engine, runner


def run(engine: NumberedEngine) -> list[Event]:
    """Step until there is no work."""
    events = []
    for _ in range(2000):
        if not engine.has_work and not engine.events:
            return events
        events += engine.events_of_step()
    raise AssertionError("the engine does not come to an end")


def tokens_of(events: list[Event], request_id: int, index: int = 0) -> list[int]:
    found = [e.piece for e in events if isinstance(e, Sampled) and e.request_id == request_id]
    return [token for piece in found if piece.index == index for token in piece.token_ids]


def read_of(events: list[Event], request_id: int) -> list[int]:
    return [e.done for e in events if isinstance(e, Prefilled) and e.request_id == request_id]


def greedy(max_tokens: int = 6, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **options)


def plain_greedy(prompt: list[int], new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(logits_of(tokens).argmax()))
    return tokens[len(prompt) :]
