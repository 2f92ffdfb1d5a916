"""A step gives the logits and hidden states that were asked for, and those alone."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.executors import Executor
from minicpm4.engine.runner import Runner
from minicpm4.engine.sequence import Drafts, Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.registry import resolve
from minicpm4.model.forward import logits
from minicpm4.model.weights import ModelWeights
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint

IDS = np.random.default_rng(3).integers(4, 300, 70).tolist()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> ModelWeights:
    path = make_checkpoint(tmp_path_factory.mktemp("runner") / "tiny", num_hidden_layers=2)
    return load_model(path).weights


@pytest.fixture(params=["ref", "cpu"])
def runner(request: pytest.FixtureRequest, weights: ModelWeights) -> Runner:
    ops: OpTable = RefOps() if request.param == "ref" else resolve("cpu", threads=2)
    pages: Any = {"context": 256, "num_pages": 8, "page_size": 64, "kv": "float32", "sparse": None}
    return Executor(ops, weights.config, **pages).runner(weights, None, max_rows=96, max_sequences=4)


def test_a_huge_budget_takes_no_room_that_the_context_cannot_fill(weights: ModelWeights) -> None:
    """A checkpoint's topk made the choice's buffer rows x heads x topk, in no memory plan."""
    sparse = SparseConfig(topk=1 << 20, window_size=128, dense_len=-1)
    pages: Any = {"context": 128, "num_pages": 2, "page_size": 64, "kv": "float32", "sparse": sparse}
    executor = Executor(RefOps(), weights.config, **pages)
    runner = executor.runner(weights, sparse, max_rows=64, max_sequences=1)
    tracemalloc.start()
    try:
        runner.execute(StepPlan([Span(Sequence(0, IDS[:40], 128, pages=[0, 1]), 0, 40)]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 24


def sequence(number: int, length: int) -> Sequence:
    return Sequence(number, IDS[:length], 256, pages=[2 * number, 2 * number + 1])


def test_logits_are_those_of_the_rows_that_want_them(runner: Runner) -> None:
    a, b, c = sequence(0, 9), sequence(1, 70), sequence(2, 5)
    every = runner.execute(StepPlan([Span(b, 0, 70, "all")]))
    blocks = [(first, block.copy()) for first, block in every.logit_blocks(0, 70)]
    assert [(first, len(block)) for first, block in blocks] == [(0, 64), (64, 6)]
    whole = np.concatenate([block for _, block in blocks])
    mixed = runner.execute(StepPlan([Span(a, 0, 9, "last"), Span(b, 0, 70), Span(c, 0, 5, "all")])).logits
    np.testing.assert_allclose(mixed, whole[[8, 0, 1, 2, 3, 4]], rtol=1e-4, atol=1e-4)
    assert runner.execute(StepPlan([Span(b, 0, 70)])).logits.shape == (0, whole.shape[1])


def test_hidden_states_are_those_of_the_spans_that_ask(runner: Runner, weights: ModelWeights) -> None:
    a, b = sequence(0, 9), sequence(1, 12)
    found = runner.execute(StepPlan([Span(a, 0, 9, hidden=(1,)), Span(b, 0, 12, "last", hidden=(0, 2))]))
    assert sorted(found.hidden) == [0, 1, 2] and [len(found.hidden[i]) for i in (0, 1, 2)] == [12, 9, 12]
    embeddings = RefOps().embed(weights.embed, np.array(b.tokens, np.int32), weights.config.scale_emb)
    np.testing.assert_allclose(found.hidden[0], embeddings, rtol=1e-5)
    head = logits(RefOps(), weights, found.hidden[2][-1:])
    np.testing.assert_allclose(head, found.logits, rtol=1e-4, atol=1e-4)
    again = runner.execute(StepPlan([Span(b, 0, 12, hidden=(1,))]))
    np.testing.assert_allclose(again.hidden[1][:9], found.hidden[1], rtol=1e-5, atol=1e-6)


def test_trees_and_other_spans_come_in_the_order_of_the_plan(runner: Runner) -> None:
    """Each row as in a step of its own, wherever its pass is."""
    a, b, c = sequence(0, 9), sequence(1, 12), sequence(2, 6)
    drafts = Drafts((7, 8, 9), (-1, -1, 0))
    alone = []
    for one in (a, b, c):
        runner.execute(StepPlan([Span(one, 0, len(one.tokens) - 1)]))
        span = Span(one, len(one.tokens) - 1, 1, "last", hidden=(1,))
        plan = StepPlan([span if one is b else span.with_drafts(drafts)])
        result = runner.execute(plan)
        alone.append((result.logits.copy(), result.hidden[1]))
    spans = [Span(one, len(one.tokens) - 1, 1, "last", hidden=(1,)) for one in (a, b, c)]
    both = runner.execute(StepPlan([spans[0].with_drafts(drafts), spans[1], spans[2].with_drafts(drafts)]))
    for found, parts in zip((both.logits, both.hidden[1]), zip(*alone, strict=True), strict=True):
        assert len(found) == 4 + 1 + 4
        np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-4, atol=1e-5)
