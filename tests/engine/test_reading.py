"""Texts that are read for their logits, in steps beside answers."""

from __future__ import annotations

import numpy as np

from minicpm4.engine.outputs import Failed, Read
from minicpm4.errors import RequestError
from tests.engine.scripted import (
    VOCAB,
    NumberedEngine,
    greedy,
    logits_of,
    make_engine,
    plain_greedy,
    read_of,
    run,
    tokens_of,
)


def reading(engine: NumberedEngine, ids: list[int], found: dict[int, np.ndarray]) -> int:
    """Have a text read; its rows come into ``found``, by position."""

    def visit(first: int, logits: np.ndarray) -> None:
        if first == 0:
            found.clear()
        found.update({first + i: row.copy() for i, row in enumerate(logits)})

    engine.read(engine.asked, ids, "logits", visit)
    engine.asked += 1
    return engine.asked - 1


def test_a_text_that_is_read_shows_every_row_in_order() -> None:
    engine, _ = make_engine()
    ids, seen = [i % VOCAB for i in range(21)], {}
    number = reading(engine, ids, seen)
    events = run(engine)
    assert list(seen) == list(range(21)) and read_of(events, number) == [8, 16, 21]
    assert events[-1] == Read(number) and engine.scheduler.pages.num_available == 40
    np.testing.assert_array_equal(list(seen.values()), [logits_of(ids[: i + 1]) for i in range(21)])


def test_a_text_is_read_beside_answers_that_go_on() -> None:
    """It was one call, for which all answers stopped. Now no step has more rows than any other."""
    engine, runner = make_engine()
    asked = [engine.ask([i], greedy(12)) for i in (1, 2)]
    events, seen, ids = engine.events_of_step(), {}, [i % VOCAB for i in range(21)]
    reading(engine, ids, seen)
    late = engine.ask(ids[:9], greedy())  # finds two pages of what was read, and has a token to run
    events += run(engine)
    np.testing.assert_array_equal(list(seen.values()), [logits_of(ids[: i + 1]) for i in range(21)])
    assert [tokens_of(events, one) for one in asked] == [plain_greedy([i], 12) for i in (1, 2)]
    assert tokens_of(events, late) == plain_greedy(ids[:9], 6)
    beside = [plan for plan in runner.plans if plan.spans[-1].sequence.is_read]
    assert [plan.num_rows for plan in beside] == [8, 8, 8, 6] and all(p.decoding == 2 for p in beside)


def test_a_text_is_begun_anew_where_pages_run_out_or_are_forgotten() -> None:
    engine, _ = make_engine(num_pages=11)
    first = engine.ask([1] * 20, greedy(16))
    seen: dict[int, np.ndarray] = {}
    ids = [i % VOCAB for i in range(18)]
    events = engine.events_of_step() + engine.events_of_step() + engine.events_of_step()
    number = reading(engine, ids, seen)
    events += engine.events_of_step()
    engine.start_over()
    events += run(engine)
    assert read_of(events, number).count(18) == 1 and engine.scheduler.pages.num_available == 11
    np.testing.assert_array_equal(list(seen.values()), [logits_of(ids[: i + 1]) for i in range(18)])
    assert tokens_of(events, first) == plain_greedy([1] * 20, 16)


def test_a_text_that_nobody_wants_holds_nothing_after_the_next_step() -> None:
    engine, _ = make_engine()
    seen: dict[int, np.ndarray] = {}
    number = reading(engine, [1] * 30, seen)
    engine.step()
    engine.abort(number)
    assert list(engine.events)[-1] == Read(number, whole=False) and len(seen) == 8
    assert engine.scheduler.pages.num_available == 40 and not engine.has_work


def test_what_a_visitor_raises_ends_its_own_text_alone() -> None:
    engine, _ = make_engine()

    def refuse(first: int, logits: np.ndarray) -> None:
        raise RequestError("no room for this")

    engine.read(0, [1] * 20, "logits", refuse)
    engine.asked = 1
    other = engine.ask([2], greedy())
    events = run(engine)
    assert [e.request_id for e in events if isinstance(e, Failed)] == [0]
    assert tokens_of(events, other) == plain_greedy([2], 6) and engine.scheduler.pages.num_available == 40
