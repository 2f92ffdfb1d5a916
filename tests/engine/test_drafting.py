"""Whatever a drafter says, no token of any answer changes, and nothing of a sequence outlives it."""

from __future__ import annotations

from collections.abc import Sequence as Items
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.drafting import Drafting
from minicpm4.engine.outputs import Failed
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.sequence import Drafts, Sequence
from minicpm4.engine.suffix import SuffixDrafter
from minicpm4.errors import RequestError
from tests.engine.drafting import make_drafts
from tests.engine.scripted import (
    VOCAB,
    NumberedEngine,
    greedy,
    logits_of,
    make_engine,
    plain_greedy,
    run,
    tokens_of,
)
from tests.engine.test_engine import last_metrics, prompts


class Guesser:
    """A drafter whose trees are right now and then."""

    is_free = False
    hidden: tuple[int, ...] = ()

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.known, self.asked = Random(seed), set[Any](), 0

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        self.known |= {wish.sequence.order for wish in wishes}
        self.asked += len(wishes)
        return [self._guess(wish) for wish in wishes]

    def _guess(self, wish: Wish) -> Guess | None:
        drafts = make_drafts(self.rng, wish.sequence, lambda t: int(logits_of(t).argmax()), vocab=VOCAB)
        drafts = drafts.first(wish.most)
        return None if self.rng.random() < 0.2 else Guess(drafts, (0.7,) * len(drafts))

    def see(self, sequence: Sequence, start: int, states: Any) -> None: ...

    def drop(self, sequence: Sequence) -> None:
        self.known.discard(sequence.order)

    def start_over(self) -> None:
        self.known.clear()


def drafted(tokens: int | None = 12, drafter: Any = None, **sizes: Any) -> tuple[NumberedEngine, Any]:
    drafting = Drafting(drafter or Guesser(), tokens=tokens)
    return make_engine(drafting=drafting, **sizes)


@settings(max_examples=80)
@given(
    prompts,
    st.integers(10, 40),
    st.integers(1, 20),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([None, 1, 12]),
)
def test_drafts_change_nothing(
    wanted: list[tuple[list[int], int, bool]],
    num_pages: int,
    max_rows: int,
    prefix_cache: bool,
    width: int,
    tokens: int | None,
) -> None:
    """Greedy or drawn with a seed, in any batch, cut anyhow, sent away and back."""
    drafter = Guesser()
    sizes = {"num_pages": num_pages, "max_rows": max(max_rows, width), "max_sequences": width}
    engine, _ = drafted(tokens, drafter, prefix_cache=prefix_cache, **sizes)
    plain, _ = make_engine()
    for prompt, new, is_greedy in wanted:
        params = SamplingParams(max_tokens=new, temperature=0.0 if is_greedy else 1.0, seed=new)
        for one in (engine, plain):
            one.ask(prompt, params)
    found, alone = run(engine), run(plain)
    for number in range(len(wanted)):
        assert tokens_of(found, number) == tokens_of(alone, number)
    assert not drafter.known and not engine.drafting._records  # type: ignore[union-attr]
    assert engine.scheduler.pages.num_available == num_pages


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(n=3, max_tokens=9, temperature=1.0),
        SamplingParams(n=2, max_tokens=9, temperature=1.0, top_k=4, seed=3),
        SamplingParams(max_tokens=12, temperature=0.9, top_p=0.8, repetition_penalty=1.3, min_tokens=4),
        SamplingParams(max_tokens=9, temperature=1.0, logprobs=2, frequency_penalty=0.5),
        SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=(5, 6)),
    ],
    ids=["unseeded", "top_k", "penalties", "logprobs", "stops"],
)
def test_every_way_to_draw_is_as_without(params: SamplingParams) -> None:
    plain, _ = make_engine(ends=(7,))
    engine, runner = drafted(ends=(7,))
    passes = 0
    for prompt in ([1, 2, 3], [4] * 9, [0, 1] * 5):
        numbers = [one.ask(prompt, params) for one in (engine, plain)]
        found, alone = run(engine), run(plain)
        for index in range(params.n):
            assert tokens_of(found, numbers[0], index) == tokens_of(alone, numbers[1], index)
        pieces = [[e.piece for e in events if hasattr(e, "piece")] for events in (found, alone)]
        told = [[(p.index, p.token_ids, p.logprobs, p.finish_reason) for p in some] for some in pieces]
        assert sorted(told[0], key=lambda t: t[0]) == sorted(told[1], key=lambda t: t[0])
        passes += len(runner.plans)
    assert any(span.num_drafts for plan in runner.plans for span in plan.spans)


def test_figures_count_passes_and_drafts() -> None:
    class Right(Guesser):
        def _guess(self, wish: Wish) -> Guess | None:
            tokens = wish.sequence.tokens
            return Guess(Drafts.chain(plain_greedy(tokens, wish.most)), (0.9,) * wish.most)

    engine, runner = drafted(4, Right())
    number = engine.ask([1, 2, 3], greedy(12))
    events = run(engine)
    assert tokens_of(events, number) == plain_greedy([1, 2, 3], 12)
    metrics = last_metrics(events)
    # One token out of the prompt; then 5, 5, and 1: the last token is never run, so it has no draft.
    assert (metrics.draft_tokens, metrics.accepted_tokens) == (8, 8)
    assert metrics.accept_length == pytest.approx(11 / 3) and len(runner.plans) == 4


def test_an_error_behind_accepted_drafts_ends_the_request_alone() -> None:
    engine, runner = drafted(12)
    plain = plain_greedy([1, 2, 3], 6)

    def logits(tokens: list[int]) -> Any:
        return logits_of(tokens) * (float("nan") if tokens == [1, 2, 3, *plain[:4]] else 1.0)

    runner.logits = logits
    bad, good = engine.ask([1, 2, 3], greedy(9)), engine.ask([4, 4], greedy(9))
    events = run(engine)
    assert tokens_of(events, bad) == plain[:4] and tokens_of(events, good) == plain_greedy([4, 4], 9)
    assert [e.request_id for e in events if isinstance(e, Failed)] == [bad]
    engine.scheduler.pages.check([])


def test_what_ends_early_is_forgotten() -> None:
    drafter = Guesser()
    engine, _ = drafted(8, drafter)
    number = engine.ask([1, 2, 3], greedy(20))
    while not drafter.known:
        engine.step()
    engine.abort(number)
    assert not drafter.known and not engine.has_work
    with pytest.raises(RequestError):
        engine.ask([VOCAB], greedy())


def test_the_suffix_drafter_in_an_engine_reads_what_repeats_in_few_passes() -> None:
    engine, runner = drafted(8, SuffixDrafter())
    runner.logits = lambda tokens: logits_of([len(tokens) % 5])  # a text that goes round
    number = engine.ask([3], greedy(36))
    again, other = make_engine()
    other.logits = runner.logits
    again.ask([3], greedy(36))
    assert tokens_of(run(engine), number) == tokens_of(run(again), 0)
    assert len(runner.plans) < 16 and len(other.plans) == 36
