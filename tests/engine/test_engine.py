"""Requests in, events out: what is batched, cut, cached, preempted or interrupted changes no token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.outputs import Failed, Prefilled, Sampled
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import CheckpointError, EngineError, RequestError
from tests.engine.scripted import (
    VOCAB,
    greedy,
    logits_of,
    make_engine,
    plain_greedy,
    read_of,
    run,
    tokens_of,
)


def test_greedy_tokens_are_the_best_ones() -> None:
    engine, _ = make_engine()
    number = engine.ask([1, 2, 3], greedy())
    assert tokens_of(run(engine), number) == plain_greedy([1, 2, 3], 6)


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 10), st.booleans()),
    min_size=1,
    max_size=7,
)


@settings(max_examples=100)
@given(prompts, st.integers(8, 40), st.integers(1, 8), st.booleans(), st.integers(1, 3))
def test_batching_changes_nothing(
    wanted: list[tuple[list[int], int, bool]], num_pages: int, max_rows: int, prefix_cache: bool, width: int
) -> None:
    """Few pages force preemption, few rows force chunks; seeded samples come out the same too."""
    sizes = {"num_pages": num_pages, "max_rows": max(max_rows, width), "max_sequences": width}
    together, _ = make_engine(prefix_cache=prefix_cache, **sizes)
    numbers, alone = [], []
    for prompt, new, is_greedy in wanted:
        params = SamplingParams(max_tokens=new, temperature=0.0 if is_greedy else 1.0, seed=new)
        numbers.append(together.ask(prompt, params))
        single, _ = make_engine()
        alone.append(tokens_of(run_one(single, prompt, params), 0))
    events = run(together)
    assert [tokens_of(events, number) for number in numbers] == alone


def run_one(engine: Any, prompt: list[int], params: SamplingParams) -> list[Any]:
    engine.ask(prompt, params)
    return run(engine)


def test_the_prompt_is_reported_as_it_is_read() -> None:
    engine, _ = make_engine()
    number = engine.ask([1] * 20, greedy(2))
    assert read_of(run(engine), number) == [0, 8, 16, 20]


def test_a_cached_prompt_is_reported_from_there_on() -> None:
    engine, _ = make_engine()
    run_one(engine, [1] * 20, greedy(2))
    number = engine.ask([1] * 20, greedy(2))
    events = run(engine)
    assert [e for e in events if isinstance(e, Prefilled)] == [
        Prefilled(number, 16, 20, 16),  # at once, before any is read
        Prefilled(number, 20, 20, 16),
    ]
    assert last_metrics(events).cached_tokens == 16


def last_metrics(events: list[Any]) -> Any:
    return [e.piece.metrics for e in events if isinstance(e, Sampled)][-1]


def test_metrics_count_tokens_and_seconds() -> None:
    engine, _ = make_engine()
    metrics = last_metrics(run_one(engine, [1] * 9, greedy(5)))
    assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.new_tokens) == (9, 0, 5)
    assert metrics.prefill_s > 0 and metrics.decode_s > 0 and metrics.accept_length is None
    assert (metrics.attention, metrics.blocks_read_share) == ("dense", 1.0)


def test_samples_fork_after_the_prompt_and_share_its_pages() -> None:
    engine, runner = make_engine()
    number = engine.ask([1] * 10, SamplingParams(n=3, max_tokens=4, seed=5))
    events = run(engine)
    assert sum(span.count for plan in runner.plans for span in plan.spans) == 10 + 3 * 3
    samples = [tokens_of(events, number, index) for index in range(3)]
    assert all(len(sample) == 4 for sample in samples) and len({tuple(s) for s in samples}) > 1
    assert [len(plan.copies) for plan in runner.plans].count(2) == 1, "two of three copy the partial page"


def test_more_samples_than_sequences_all_end() -> None:
    engine, _ = make_engine(max_sequences=2)
    number = engine.ask([1] * 10, SamplingParams(n=7, max_tokens=3, seed=1))
    events = run(engine)
    assert all(len(tokens_of(events, number, index)) == 3 for index in range(7))
    assert last_metrics(events).new_tokens == 21


def test_first_sample_is_that_of_a_single_one() -> None:
    engine, _ = make_engine()
    one = engine.ask([1, 2], SamplingParams(max_tokens=5, seed=3))
    two = engine.ask([1, 2], SamplingParams(max_tokens=5, seed=3, n=2))
    events = run(engine)
    assert tokens_of(events, one) == tokens_of(events, two)


@pytest.mark.parametrize(("seeds", "same"), [((4, 4), True), ((4, None), False)])
def test_engine_seed_makes_unseeded_requests_repeatable(seeds: tuple[Any, Any], same: bool) -> None:
    params = SamplingParams(max_tokens=20)
    first, second = (tokens_of(run_one(make_engine(seed=seed)[0], [1], params), 0) for seed in seeds)
    assert (first == second) == same


def test_two_unseeded_requests_differ() -> None:
    engine, _ = make_engine()
    numbers = [engine.ask([1], SamplingParams(max_tokens=20)) for _ in range(2)]
    events = run(engine)
    assert tokens_of(events, numbers[0]) != tokens_of(events, numbers[1])


def test_an_end_token_stops_and_is_kept_in_the_ids() -> None:
    end = plain_greedy([1, 2], 3)[2]
    engine, _ = make_engine(ends=(end,))
    events = run_one(engine, [1, 2], greedy(20))
    tokens = tokens_of(events, 0)
    assert tokens[-1] == end and tokens.count(end) == 1
    assert events[-1].piece.finish_reason == "stop"


def test_end_tokens_can_be_ignored_but_stop_ids_count() -> None:
    new = plain_greedy([1, 2], 12)
    engine, _ = make_engine(ends=(new[0],))
    events = run_one(engine, [1, 2], greedy(12, ignore_eos=True))
    assert tokens_of(events, 0) == new and events[-1].piece.finish_reason == "length"
    events = run_one(engine, [1, 2], greedy(12, ignore_eos=True, stop_token_ids=[new[1]]))
    assert tokens_of(events, 1) == new[: new.index(new[1]) + 1]


def test_min_tokens_keeps_the_end_away() -> None:
    end = plain_greedy([1, 2], 1)[0]
    engine, _ = make_engine(ends=(end,))
    tokens = tokens_of(run_one(engine, [1, 2], greedy(12, min_tokens=5)), 0)
    assert end not in tokens[:5]


def test_no_maximum_means_up_to_the_context() -> None:
    engine, _ = make_engine(context=15)
    events = run_one(engine, [1] * 6, SamplingParams(max_tokens=None, temperature=0.0))
    assert len(tokens_of(events, 0)) == 9 and events[-1].piece.finish_reason == "length"


def test_logprobs_come_with_each_token() -> None:
    engine, _ = make_engine()
    events = run_one(engine, [3], greedy(2, logprobs=3, logit_bias={0: 50.0}))
    entry = next(e.piece for e in events if isinstance(e, Sampled)).logprobs[0]
    logits = logits_of([3]).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert entry.token_id == 0 and entry.logprob == pytest.approx(expected[0], abs=1e-5)
    assert list(entry.top) == np.argsort(-logits)[:3].tolist()


def test_abort_ends_with_what_there_is() -> None:
    engine, _ = make_engine()
    number = engine.ask([1, 2], greedy(20))
    engine.step()
    engine.step()
    engine.abort(number)
    last = engine.events_of_step()[-1]
    assert last.piece.finish_reason == "abort" and last.piece.metrics.new_tokens == 2
    assert not engine.has_work and engine.scheduler.pages.num_available == 40


def test_one_sample_is_ended_and_the_others_go_on() -> None:
    engine, _ = make_engine()
    number = engine.ask([1, 2], greedy(6, n=3))
    engine.step()
    engine.events.clear()
    engine.abort(number, 1)
    (ended,) = engine.events
    assert (ended.piece.index, ended.piece.finish_reason, ended.piece.metrics) == (1, "abort", None)
    engine.abort(number, 1)  # again
    engine.abort(number, 7)
    engine.abort(number + 1, 0)
    events = run(engine)
    last = {e.piece.index: e.piece.finish_reason for e in events if e.piece.finish_reason}
    assert last == {0: "length", 1: "abort", 2: "length"} and events[-1].piece.metrics.new_tokens == 13
    assert engine.scheduler.pages.num_available == 40


def test_a_request_ends_with_its_last_sample() -> None:
    engine, _ = make_engine()
    number = engine.ask([1, 2], greedy(20, n=2))
    engine.step()
    for index in (1, 0):
        assert engine.has_work
        engine.abort(number, index)
    assert engine.events[-1].last and engine.events[-1].piece.metrics.new_tokens == 2
    assert not engine.has_work and engine.scheduler.pages.num_available == 40


def test_an_interrupted_step_is_run_again() -> None:
    engine, runner = make_engine()
    number = engine.ask([1] * 10, greedy())
    engine.step()
    runner.fail = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    runner.fail = lambda: None
    assert tokens_of(run(engine), number) == plain_greedy([1] * 10, 6)


def test_an_interrupt_before_the_copies_of_a_fork_loses_none() -> None:
    params = SamplingParams(n=3, max_tokens=6, seed=2)
    expected = run_one(make_engine()[0], [1] * 10, params)
    engine, runner = make_engine()
    engine.ask([1] * 10, params)
    events = engine.events_of_step() + engine.events_of_step()
    runner.fail = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    runner.fail = lambda: None
    events += run(engine)
    assert [tokens_of(events, 0, i) for i in range(3)] == [tokens_of(expected, 0, i) for i in range(3)]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_in_the_bookkeeping_costs_no_request() -> None:
    engine, _ = make_engine()
    number = engine.ask([1] * 10, greedy())
    engine.scheduler.commit = lambda plan, _: interrupt()  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert tokens_of(run(engine), number) == plain_greedy([1] * 10, 6)


def test_an_interrupt_while_a_token_is_taken_fails_its_request_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, _ = make_engine()
    torn, other = engine.ask([1, 2], greedy()), engine.ask([2], greedy())
    monkeypatch.setattr("minicpm4.engine.request.sample", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    events = run(engine)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.request_id == torn and isinstance(failed.error, EngineError)
    assert tokens_of(events, other) == plain_greedy([2], 6)


def test_one_failing_request_leaves_the_others_alone() -> None:
    engine, runner = make_engine()
    engine.ask([7] * 3, greedy(n=2, logprobs=1))
    good = engine.ask([1, 2], greedy())
    nan = np.full(VOCAB, np.nan, np.float32)
    runner.logits = lambda tokens: nan if tokens[0] == 7 and len(tokens) > 3 else logits_of(tokens)
    events = run(engine)
    errors = [e.error for e in events if isinstance(e, Failed)]
    assert len(errors) == 1 and isinstance(errors[0], CheckpointError)
    assert tokens_of(events, good) == plain_greedy([1, 2], 6)
    assert engine.scheduler.pages.num_available == 40


REFUSALS: list[tuple[list[Any], dict[str, Any], str]] = [
    ([], {}, r"the prompt is empty"),
    (
        [1, 12],
        {},
        r"token 12 at position 1 is not in the vocabulary of 12\. token ids are integers from 0 to 11",
    ),
    ([-1], {}, r"token -1 at position 0"),
    ([1.5], {}, r"token 1\.5 at position 0"),
    ([True], {}, r"token True at position 0"),
    ([1] * 40, {}, r"the prompt has 40 tokens, prompt and answer together may have 40 \(context\)\. shorten"),
    ([1], {"stop_token_ids": [12]}, r"stop_token_ids names token 12, the vocabulary has 12"),
    ([1], {"logit_bias": {99: 1.0}}, r"logit_bias names token 99"),
]


@pytest.mark.parametrize(("ids", "options", "message"), REFUSALS)
def test_what_cannot_be_served_is_refused(ids: list[Any], options: dict[str, Any], message: str) -> None:
    engine, _ = make_engine()
    with pytest.raises(RequestError, match=message):
        engine.ask(ids, SamplingParams(**options))
    assert not engine.has_work


def test_a_text_beyond_the_context_or_the_cache_is_refused() -> None:
    engine, _ = make_engine(num_pages=9)
    with pytest.raises(RequestError, match=r"the text has 41 tokens, the context is 40"):
        engine.read(0, [1] * 41, "logits", lambda *_: None)
    with pytest.raises(RequestError, match=r"needs 10 pages of 4 tokens, the cache has 9"):
        engine.read(0, [1] * 40, "logits", lambda *_: None)
    assert not engine.has_work


def test_sampled_tokens_come_with_the_probability_of_their_draw() -> None:
    """RL divides by it: at temperature 1 without filters it is the model's own, with top_k = 1 certainty."""
    engine, _ = make_engine()
    for options, own in (({"temperature": 1.0}, True), ({"top_k": 1}, False)):
        events = run_one(engine, [3], SamplingParams(max_tokens=4, seed=1, logprobs=0, **options))
        for event in events:
            for entry in (event.piece.logprobs or []) if isinstance(event, Sampled) else []:
                expected = entry.logprob if own else 0.0
                assert entry.sampling_logprob == pytest.approx(expected, abs=1e-5)


def test_a_request_that_fails_while_it_is_made_leaves_nothing_behind() -> None:
    """It was queued before its owner was registered: every later step met a sequence of nobody."""
    engine, _ = make_engine()
    engine._samples.make = lambda *_: interrupt()  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(KeyboardInterrupt):
        engine.ask([1, 2], greedy())
    del engine._samples.make
    assert not engine.has_work
    assert tokens_of(run_one(engine, [1, 2], greedy()), 0) == plain_greedy([1, 2], 6)


def test_adding_a_request_again_changes_nothing() -> None:
    engine, _ = make_engine()
    for _ in range(2):
        engine.add(0, [1, 2], greedy())
    assert tokens_of(run(engine), 0) == plain_greedy([1, 2], 6)


def test_requests_go_on_after_the_pages_are_forgotten() -> None:
    engine, _ = make_engine()
    number = engine.ask([1] * 10, greedy(n=2))
    events = engine.events_of_step() + engine.events_of_step() + engine.events_of_step()
    engine.start_over()
    events += run(engine)
    for index in range(2):
        assert tokens_of(events, number, index) == plain_greedy([1] * 10, 6)
