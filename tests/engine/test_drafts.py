"""Drafts change no token of a greedy answer: chains and trees, dense and sparse, several at once."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.executors import Executor
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.plan import LOGIT_ROWS
from minicpm4.engine.runner import Runner
from minicpm4.engine.scheduler import Scheduler
from minicpm4.engine.sequence import MAX_DRAFTS, Drafts, Sequence
from minicpm4.engine.steps import logit_rows
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.registry import resolve
from minicpm4.kernels.step import Tree
from minicpm4.model.weights import ModelWeights
from tests.engine.drafting import follow, make_drafts, walk
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint

VOCAB, PAGE, PAGES = 320, 16, 60
SPARSE = SparseConfig(
    kernel_size=8, kernel_stride=4, init_blocks=1, block_size=PAGE, window_size=32, topk=2, dense_len=-1
)
PROMPTS = [np.random.default_rng(s).integers(4, 300, n).tolist() for s, n in enumerate((70, 33, 5, 70))]
PROMPTS[3][:48] = PROMPTS[0][:48]  # found in the prefix cache
LIMIT = 110


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> ModelWeights:
    path = make_checkpoint(tmp_path_factory.mktemp("drafts") / "tiny", num_hidden_layers=2, vocab_size=VOCAB)
    return load_model(path).weights


class Greedy:
    """A scheduler over a runner that takes the best token, with or without drafts."""

    def __init__(
        self, ops: OpTable, weights: ModelWeights, sparse: SparseConfig | None, limit: int = LIMIT
    ) -> None:
        pages: Any = {"num_pages": PAGES, "page_size": PAGE, "kv": "float32", "sparse": sparse}
        executor = Executor(ops, weights.config, context=limit + 2, **pages)
        self.limit = limit
        self.runner: Runner = executor.runner(weights, sparse, max_rows=64, max_sequences=3)
        self.scheduler = Scheduler(PageAllocator(PAGES, PAGE), max_rows=64, max_sequences=3)
        self.accepted, self.steps, self.trees, self.choosing = 0, 0, 0, 0
        self.first_choosing = limit if sparse is None else sparse.first_choosing

    def answer(self, prompts: list[list[int]], drafter: Any = None) -> list[list[int]]:
        every = [Sequence(i, list(prompt), self.limit) for i, prompt in enumerate(prompts)]
        for one in every:
            self.scheduler.add(one)
        while self.scheduler.has_work:
            if drafter is not None:
                for one in self.scheduler.running:
                    one.drafts = drafter(one)
            self.step()
            self.scheduler.pages.check(self.scheduler.running)
        return [one.tokens for one in every]

    def step(self) -> None:
        plan = self.scheduler.schedule()
        rows = iter(self.runner.execute(plan).logits.argmax(axis=1).tolist())
        found = [self._walk(span, [next(rows) for _ in range(span.num_logits)]) for span in plan.spans]
        paths = [path for path, _ in found]
        follow(plan, paths)
        self.runner.settle(plan, paths)
        self.scheduler.commit(plan, paths)
        self.accepted += sum(map(len, paths))
        self.steps += 1
        trees = [span for span in plan.spans if span.is_tree]
        self.trees += len(trees)
        self.choosing += sum(span.start > self.first_choosing for span in trees)
        for span, (_, token) in zip(plan.spans, found, strict=True):
            if token is not None:
                span.sequence.tokens.append(token)
                if len(span.sequence.tokens) >= self.limit:
                    self.scheduler.finish(span.sequence, "length")

    @staticmethod
    def _walk(span: Any, best: list[int]) -> tuple[list[int], int | None]:
        return walk(span.drafts, lambda row: best[row]) if best else ([], None)


def guesser(answers: list[list[int]], seed: int, **kind: Any) -> Any:
    """A drafter that knows the plain answers, and mixes in what is wrong."""
    rng = Random(seed)

    def guess(one: Sequence) -> Drafts:
        known = [*answers[one.request_id], 4]
        return make_drafts(rng, one, lambda t: known[min(len(t), len(known) - 1)], vocab=VOCAB, **kind)

    return guess


@pytest.fixture(params=["ref", "cpu"])
def ops(request: pytest.FixtureRequest) -> OpTable:
    return RefOps() if request.param == "ref" else resolve("cpu", threads=2)


LATE = replace(SPARSE, dense_len=87, lse_approx=True, use_nope=True)


@pytest.mark.parametrize("sparse", [None, SPARSE, LATE], ids=["dense", "sparse", "sparse from 87 tokens on"])
@pytest.mark.parametrize("trees", [False, True], ids=["chains", "trees"])
def test_answers_are_those_without_drafts(
    ops: OpTable, weights: ModelWeights, sparse: SparseConfig | None, trees: bool
) -> None:
    plain = Greedy(ops, weights, sparse)
    answers = plain.answer(PROMPTS)
    drafted = Greedy(ops, weights, sparse)
    assert drafted.answer(PROMPTS, guesser(answers, 1, chains=0.0 if trees else 1.0)) == answers
    assert drafted.accepted > 30 and drafted.steps < plain.steps and (drafted.trees > 5) == trees
    assert (drafted.choosing > 5) == (trees and sparse is not None)
    # What drafts left in the prefix cache is as good as what plain steps leave.
    again = Sequence(9, answers[0][:100], LIMIT)
    drafted.scheduler.add(again)
    drafted.step()
    assert again.cached == 96 and again.tokens[100] == answers[0][100]


def test_no_drafts_among_the_tokens_of_a_stored_prefix() -> None:
    for plain in (0, 9):
        scheduler = Scheduler(PageAllocator(PAGES, PAGE), max_rows=64, max_sequences=3, plain=plain)
        one, drafted = Sequence(0, [4, 5], LIMIT), []
        scheduler.add(one)
        for _ in range(12):
            one.drafts = Drafts.chain([6]) if one.num_sampled else None
            plan = scheduler.schedule()
            drafted.append(plan.spans[0].num_drafts)
            scheduler.commit(plan)
            one.tokens.append(7)
        assert drafted == [0] * max(1, plain - 1) + [1] * (12 - max(1, plain - 1))


def test_a_tree_of_drafts_is_what_the_kernels_read() -> None:
    """The token that drafts follow is a row of their tree; a step may want the logits of all."""
    assert MAX_DRAFTS + 1 == Tree.MOST and logit_rows(1) >= LOGIT_ROWS
