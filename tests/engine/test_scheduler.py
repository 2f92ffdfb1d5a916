"""Every request ends, no step exceeds its rows, decoding sequences never wait."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.scheduler import Scheduler, StepPlan
from minicpm4.engine.sequence import Sequence, Status
from minicpm4.errors import RequestError
from tests.engine.model_cache import ModelCache

SIZE = 4


def make(num_pages: int = 16, max_rows: int = 8, max_sequences: int = 4, **options: bool) -> Scheduler:
    pages = PageAllocator(num_pages, SIZE, **options)
    return Scheduler(pages, max_rows=max_rows, max_sequences=max_sequences)


def request(number: int, length: int, new: int = 4) -> Sequence:
    return Sequence(number, [number * 1000 + t for t in range(length)], limit=length + new)


def finish_step(scheduler: Scheduler, plan: StepPlan) -> None:
    """Commit, sample a token that depends on the sequence, end those at their limit."""
    scheduler.commit(plan)
    for rows in plan.rows:
        one = rows.sequence
        if one.pending == 0:
            one.tokens.append(sum(one.tokens) % 7 + one.index)
            if len(one.tokens) >= one.limit:
                scheduler.finish(one, "length")


def step(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    finish_step(scheduler, plan)
    return plan


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    return [(rows.sequence.request_id, rows.start, rows.count) for rows in plan.rows]


def test_a_long_prompt_is_cut_into_chunks() -> None:
    scheduler = make()
    scheduler.add(request(1, 20))
    assert [shape(step(scheduler)) for _ in range(4)] == [
        [(1, 0, 8)],
        [(1, 8, 8)],
        [(1, 16, 4)],
        [(1, 20, 1)],
    ]


def test_only_the_last_chunk_is_sampled() -> None:
    scheduler = make()
    scheduler.add(request(1, 10))
    first = scheduler.schedule()
    scheduler.commit(first)
    assert [rows.sample for rows in first.rows + scheduler.schedule().rows] == [False, True]


def test_decoding_goes_before_prompts() -> None:
    scheduler = make()
    scheduler.add(request(1, 3))
    step(scheduler)
    scheduler.add(request(2, 30))
    assert shape(step(scheduler)) == [(1, 3, 1), (2, 0, 7)]


def test_requests_are_let_in_by_arrival_even_if_a_later_one_would_fit() -> None:
    scheduler = make(num_pages=5)
    scheduler.add(request(1, 12))
    scheduler.add(request(2, 12))
    scheduler.add(request(3, 1))
    step(scheduler)
    assert [s.request_id for s in scheduler.running] == [1]


def test_a_newcomer_leaves_a_page_to_each_running_sequence() -> None:
    scheduler = make(num_pages=4)
    scheduler.add(request(1, 7))
    step(scheduler)
    scheduler.add(request(2, 7))
    step(scheduler)
    assert [s.request_id for s in scheduler.waiting] == [2], "two pages are free, one is reserved"


def test_no_more_sequences_than_allowed() -> None:
    scheduler = make(max_sequences=2)
    for number in range(3):
        scheduler.add(request(number, 1))
    assert len(scheduler.schedule().rows) == 2


def test_a_request_beyond_the_whole_pool_is_refused_with_figures() -> None:
    scheduler = make(num_pages=4)
    with pytest.raises(RequestError, match=r"up to 18 tokens needs 5 pages of 4 tokens, the cache has 4"):
        scheduler.add(request(1, 10, new=8))
    assert not scheduler.has_work


def test_a_request_that_just_fits_the_pool_ends() -> None:
    scheduler = make(num_pages=4)
    scheduler.add(request(1, 10, new=7))
    while scheduler.has_work:
        step(scheduler)
    scheduler.pages.check([])


def test_the_youngest_is_preempted_and_found_in_the_cache_later() -> None:
    scheduler = make(num_pages=5)
    old, young = request(1, 7, new=9), request(2, 8, new=4)
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.num_preemptions == 0:
        step(scheduler)
    assert young.status is Status.WAITING and old.status is Status.RUNNING
    while scheduler.has_work:
        step(scheduler)
    assert len(old.tokens) == 16 and len(young.tokens) == 12


def test_abort_frees_pages_of_running_and_waiting_samples() -> None:
    scheduler = make()
    scheduler.add(request(1, 5))
    step(scheduler)
    scheduler.add(request(1, 5))
    assert len(scheduler.abort(1)) == 2
    assert not scheduler.has_work and scheduler.pages.num_available == 16


def test_abort_of_an_unknown_request_is_harmless() -> None:
    assert make().abort(7) == []


def test_fork_beyond_the_room_waits() -> None:
    scheduler = make(max_sequences=2)
    parent = request(1, 6)
    scheduler.add(parent)
    scheduler.commit(scheduler.schedule())
    children = scheduler.fork(parent, 3)
    assert [child.status for child in children] == [Status.RUNNING, Status.WAITING, Status.WAITING]
    assert children[0].pages == parent.pages


def test_rollback_runs_the_same_tokens_again() -> None:
    scheduler = make()
    scheduler.add(request(1, 12))
    step(scheduler)
    scheduler.rollback(scheduler.schedule())
    scheduler.pages.check(scheduler.running)
    assert shape(scheduler.schedule()) == [(1, 8, 4)]


requests = st.lists(
    st.tuples(st.integers(1, 20), st.integers(1, 10), st.integers(1, 3), st.integers(0, 6)), max_size=8
)


@settings(max_examples=300)
@given(
    requests,
    st.integers(8, 14),
    st.integers(1, 4),
    st.integers(0, 8),
    st.booleans(),
    st.sets(st.integers(0, 40)),
)
def test_every_request_ends_whatever_happens(
    wanted: list[tuple[int, int, int, int]],
    num_pages: int,
    max_sequences: int,
    more_rows: int,
    prefix_cache: bool,
    accidents: set[int],
) -> None:
    """Requests arrive over time, some fork, some steps fail: pages hold what they should, to the end."""
    scheduler = make(num_pages, max_sequences + more_rows, max_sequences, prefix_cache=prefix_cache)
    every = simulate(scheduler, wanted, accidents)
    assert not scheduler.has_work and scheduler.pages.num_available == num_pages
    assert all(len(one.tokens) == one.limit for one in every)
    assert len(every) == sum(n for _, _, n, _ in wanted)


def simulate(
    scheduler: Scheduler, wanted: list[tuple[int, int, int, int]], accidents: set[int]
) -> list[Sequence]:
    """Run requests (prompt length, new tokens, samples, arrival) to the end; return all sequences."""
    cache = ModelCache(scheduler.pages)
    samples, every = {}, []
    for time in range(2000):
        for number, (length, new, n, arrival) in enumerate(wanted):
            if arrival == time:
                samples[number] = n
                every.append(Sequence(number, [t // 3 for t in range(length)], length + new))
                scheduler.add(every[-1])
        if scheduler.has_work:
            plan = scheduler.schedule()
            assert plan.num_rows <= scheduler.max_rows
            assert len(scheduler.running) <= scheduler.max_sequences
            cache.run(plan)
            if time in accidents:
                scheduler.rollback(plan)
            else:
                every += fork_and_finish(scheduler, plan, samples)
            scheduler.pages.check(scheduler.running)
        elif len(samples) == len(wanted):
            break
    return every


def fork_and_finish(scheduler: Scheduler, plan: StepPlan, samples: dict[int, int]) -> list[Sequence]:
    scheduler.commit(plan)
    made = []
    for rows in plan.rows:
        one = rows.sequence
        if one.pending:
            continue
        group = [one]
        if not one.output and samples[one.request_id] > 1:
            group += scheduler.fork(one, samples[one.request_id] - 1)
            made += group[1:]
        for member in group:
            member.tokens.append(sum(member.tokens) % 7 + member.index)
            if len(member.tokens) >= member.limit:
                scheduler.finish(member, "length")
    return made


def test_decoding_never_waits_for_a_prompt() -> None:
    scheduler = make(num_pages=40, max_rows=4, max_sequences=4)
    scheduler.add(request(1, 2, new=12))
    step(scheduler)
    for number in range(2, 5):
        scheduler.add(request(number, 25))
    for _ in range(11):
        assert shape(step(scheduler))[0][0] == 1
