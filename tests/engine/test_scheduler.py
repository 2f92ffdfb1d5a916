"""Every request ends, no step exceeds its rows, decoding sequences never wait."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.pace import Pace, Room
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.scheduler import Scheduler
from minicpm4.engine.sequence import Drafts, Sequence, Status
from minicpm4.engine.steps import StepPlan, logit_rows
from minicpm4.errors import RequestError
from tests.engine.drafting import follow, make_drafts, walk
from tests.engine.model_cache import ModelCache

SIZE = 4


def make(
    num_pages: int = 16,
    max_rows: int = 8,
    max_sequences: int = 4,
    pace: Pace | None = None,
    **options: bool,
) -> Scheduler:
    pages = PageAllocator(num_pages, SIZE, **options)
    return Scheduler(pages, max_rows=max_rows, max_sequences=max_sequences, pace=pace)


class AnyPace(Pace):
    """Rooms as they come."""

    def __init__(self, rooms: Random) -> None:
        super().__init__()
        self._rooms = rooms

    def room(self, decoding: int, rows: int, prompts: Iterable[int] = ()) -> Room:
        return Room(min(rows, self._rooms.choice([0, 1, 2, 5, 100])) if decoding else rows)


def request(number: int, length: int, new: int = 4) -> Sequence:
    return Sequence(number, [number * 1000 + t for t in range(length)], limit=length + new)


def finish_step(scheduler: Scheduler, plan: StepPlan) -> None:
    """Commit, sample a token that depends on the sequence, end those at their limit."""
    scheduler.commit(plan)
    for span in plan.spans:
        one = span.sequence
        if one.pending == 0:
            one.tokens.append(sum(one.tokens) % 7 + one.index)
            if len(one.tokens) >= one.limit:
                scheduler.finish(one, "length")


def step(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    finish_step(scheduler, plan)
    return plan


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    return [(span.sequence.request_id, span.start, span.count) for span in plan.spans]


def test_a_long_prompt_is_cut_into_chunks() -> None:
    scheduler = make()
    scheduler.add(request(1, 20))
    assert [shape(step(scheduler)) for _ in range(4)] == [
        [(1, 0, 8)],
        [(1, 8, 8)],
        [(1, 16, 4)],
        [(1, 20, 1)],
    ]


def test_logits_are_wanted_of_the_last_row_of_the_last_chunk() -> None:
    scheduler = make()
    scheduler.add(request(1, 10))
    first = scheduler.schedule()
    scheduler.commit(first)
    assert [span.logits for span in first.spans + scheduler.schedule().spans] == ["none", "last"]


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
    assert len(scheduler.schedule().spans) == 2


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
    st.none() | st.randoms(use_true_random=False),
    st.none() | st.randoms(use_true_random=False).map(AnyPace),
    st.booleans(),
)
def test_every_request_ends_whatever_happens(
    wanted: list[tuple[int, int, int, int]],
    num_pages: int,
    max_sequences: int,
    more_rows: int,
    prefix_cache: bool,
    accidents: set[int],
    drafter: Random | None,
    pace: Pace | None,
    forced: bool,
) -> None:
    """Requests arrive over time, some fork, some have drafts, some go on by several tokens, some steps fail:
    pages hold what they should, and drafts change no token, to the end."""
    scheduler = make(
        num_pages, max_sequences + more_rows, max_sequences, pace=pace, prefix_cache=prefix_cache
    )
    every = simulate(scheduler, wanted, accidents, drafter, forced)
    assert not scheduler.has_work and scheduler.pages.num_available == num_pages
    assert len(every) == sum(n for _, _, n, _ in wanted)
    for one in every:
        plain = one.tokens[: one.num_prompt]
        while len(plain) < one.limit:
            plain.append(choice(plain, one.index))
        assert one.tokens == plain


def choice(tokens: list[int], index: int) -> int:
    """The token that follows."""
    return sum(tokens) % 7 + index


def draft(scheduler: Scheduler, rng: Random) -> None:
    """Guess what some sequences go on with, whether or not it is their time."""
    for one in scheduler.running + scheduler.waiting:
        if rng.random() < 0.6:
            one.drafts = make_drafts(rng, one, lambda tokens, i=one.index: choice(tokens, i), vocab=9)


def simulate(
    scheduler: Scheduler,
    wanted: list[tuple[int, int, int, int]],
    accidents: set[int],
    drafter: Random | None = None,
    forced: bool = False,
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
            if drafter is not None:
                draft(scheduler, drafter)
            plan = scheduler.schedule()
            assert plan.num_rows <= scheduler.max_rows
            assert sum(span.num_logits for span in plan.spans) <= logit_rows(scheduler.max_sequences)
            assert len(scheduler.running) <= scheduler.max_sequences
            cache.run(plan)
            if time in accidents:
                scheduler.rollback(plan)
            else:
                every += fork_and_finish(scheduler, cache, plan, samples, forced)
            scheduler.pages.check(scheduler.running)
        elif len(samples) == len(wanted):
            break
    return every


def accepted(plan: StepPlan) -> list[list[int]]:
    """Of each span the drafts that are what its sequence goes on with."""
    found = []
    for span in plan.spans:
        texts = [span.sequence.tokens]
        if span.drafts is not None:
            for token, parent in zip(span.drafts.tokens, span.drafts.parents, strict=True):
                texts.append([*texts[parent + 1], token])
        found.append(walk(span.drafts, lambda row, t=texts, s=span: choice(t[row], s.sequence.index))[0])
    return found


def fork_and_finish(
    scheduler: Scheduler, cache: ModelCache, plan: StepPlan, samples: dict[int, int], forced: bool = False
) -> list[Sequence]:
    """``forced``: after some tokens others follow at once, as a grammar has it."""
    paths = accepted(plan)
    cache.settle(plan, paths)
    follow(plan, paths)
    scheduler.commit(plan, paths)
    made = []
    for span, path in zip(plan.spans, paths, strict=True):
        one = span.sequence
        cache.verify(one)
        assert one.drafts is None
        held = [scheduler.pages.pages_for(len(one.tokens))]
        held += [scheduler.pages.pages_for(one.computed)] if forced and one.num_sampled else []
        assert len(one.pages) in held
        if one.pending:
            continue
        assert span.drafts is None or one.computed == span.start + 1 + len(path)
        group = [one]
        if not one.num_sampled and samples[one.request_id] > 1:
            group += scheduler.fork(one, samples[one.request_id] - 1)
            made += group[1:]
        for member in group:
            member.tokens.append(choice(member.tokens, member.index))
            while forced and len(member.tokens) < member.limit and member.tokens[-1] % 3:
                member.tokens.append(choice(member.tokens, member.index))
            if len(member.tokens) >= member.limit:
                scheduler.finish(member, "length")
    return made


def drafted(tokens: tuple[int, ...], parents: tuple[int, ...], **sizes: int) -> tuple[Scheduler, Sequence]:
    """A sequence that has read its prompt of 6 tokens, one of which is to run, with drafts."""
    scheduler = make(**sizes)
    one = request(1, 6, new=10)
    scheduler.add(one)
    while one.pending:
        scheduler.commit(scheduler.schedule())
    one.tokens.append(77)
    one.drafts = Drafts(tokens, parents)
    return scheduler, one


def test_drafts_take_a_row_each_and_rejected_ones_leave_no_trace() -> None:
    scheduler, one = drafted((1, 2, 3, 4), (-1, 0, -1, 2))
    plan = scheduler.schedule()
    span = plan.spans[0]
    assert (span.start, span.count, span.logits, span.ids) == (6, 5, "all", [77, 1, 2, 3, 4])
    assert len(one.pages) == 3 and span.is_tree
    follow(plan, [[2]])
    scheduler.commit(plan, [[2]])
    assert one.tokens[6:] == [77, 3] and one.computed == 8 and one.drafts is None
    assert len(one.pages) == 2 and one.sealed == 2 and scheduler.pages.num_available == 14
    scheduler.finish(one, "length")
    other = Sequence(2, [*range(1000, 1006), 77, 3, 5], limit=12)
    scheduler.add(other)
    scheduler.schedule()
    assert other.cached == 8, "what was accepted is found"


def test_rejected_drafts_are_not_found_by_others() -> None:
    scheduler, one = drafted((1, 2, 3, 4), (-1, 0, 1, 2))
    scheduler.commit(scheduler.schedule())
    other = Sequence(2, [*range(1000, 1006), 77, 1, 2, 3, 4], limit=12)
    scheduler.add(other)
    one.tokens.append(9)
    scheduler.schedule()
    assert other.cached == 4


@pytest.mark.parametrize(
    ("sizes", "left"), [({"max_rows": 6}, 5), ({"num_pages": 4}, 1), ({"max_rows": 4, "max_sequences": 4}, 3)]
)
def test_drafts_without_room_are_left_out(sizes: dict[str, int], left: int) -> None:
    scheduler, _ = drafted((1, 2, 3, 4, 5, 6), (-1, 0, 1, 2, 3, 4), **sizes)
    if "num_pages" in sizes:  # two of the four are somebody else's
        assert scheduler.pages.admit(request(2, 8))
    plan = scheduler.schedule()
    assert plan.spans[0].num_drafts == left and plan.spans[0].ids[1:] == list(range(1, left + 1))
    assert scheduler.num_preemptions == 0


def test_drafts_stop_before_the_limit() -> None:
    scheduler, one = drafted(tuple(range(14)), tuple(range(-1, 13)), max_rows=20)
    plan = scheduler.schedule()
    assert plan.spans[0].stop == one.limit - 1 == 15
    follow(plan, [list(range(8))])
    scheduler.commit(plan, [list(range(8))])
    assert len(one.tokens) == one.limit - 1, "one more is sampled"


def test_preemption_and_rollback_drop_drafts() -> None:
    scheduler, one = drafted((1, 2), (-1, -1))
    scheduler.rollback(scheduler.schedule())
    assert one.drafts is None and one.tokens[-1] == 77 and not one.pages
    assert scheduler.pages.num_available == 16


def test_decoding_never_waits_for_a_prompt() -> None:
    scheduler = make(num_pages=40, max_rows=4, max_sequences=4)
    scheduler.add(request(1, 2, new=12))
    step(scheduler)
    for number in range(2, 5):
        scheduler.add(request(number, 25))
    for _ in range(11):
        assert shape(step(scheduler))[0][0] == 1
