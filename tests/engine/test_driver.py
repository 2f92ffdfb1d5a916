"""Requests are added, read and dropped from any thread; nobody hangs, or pays for another's exception."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from minicpm4.engine.driver import Driver, ThreadedDriver
from minicpm4.engine.mailbox import Mailbox
from minicpm4.engine.outputs import Failed, Sampled
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import EngineError, RequestError
from tests.engine.scripted import ScriptedRunner, greedy, make_engine, plain_greedy
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("restless")
PROMPTS = [[i, i + 1, i % 3] * (i + 1) for i in range(4)]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads are switched every 20 microseconds, not every 5 milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=[Driver, ThreadedDriver])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[Any, ScriptedRunner]]]:
    """Make drivers of one kind over a scripted engine."""
    made: list[Driver] = []

    def build() -> tuple[Driver, ScriptedRunner]:
        engine, runner = make_engine()
        made.append(request.param(engine))
        return made[-1], runner

    yield build
    for driver in made:
        driver.close()


def answer(driver: Driver, ids: list[int], params: SamplingParams) -> list[int]:
    """As LLM does: ask, read to the end, drop."""
    box, tokens = Mailbox(), []
    try:
        driver.add(box, ids, params)
        while True:
            event = driver.receive(box)
            if isinstance(event, Failed):
                raise event.error
            tokens += event.piece.token_ids if isinstance(event, Sampled) else []
            if event.last:
                return tokens
    finally:
        driver.drop(box)


def idle(driver: Driver) -> bool:
    """The engine comes to have nothing to do and to hold no page."""

    def is_so() -> bool:
        work, pages = driver.call(lambda engine: (engine.has_work, engine.scheduler.pages))
        return not work and pages.num_available == pages.num_pages

    until(is_so)
    return True


def test_many_threads_get_each_its_own_answer(make: Any) -> None:
    driver, _ = make()
    expected = [plain_greedy(ids, 6) for ids in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: answer(driver, PROMPTS[i % 4], greedy()), range(40)))
    assert answers == expected * 10
    assert idle(driver)


def test_threads_that_come_and_go_disturb_nobody(make: Any) -> None:
    driver, _ = make()

    def leave_early(i: int) -> None:
        box = Mailbox()
        driver.add(box, PROMPTS[i % 4], greedy(20))
        for _ in range(i % 5):
            driver.receive(box)
        driver.drop(box)

    with ThreadPoolExecutor(8) as pool:
        leaving = [pool.submit(leave_early, i) for i in range(30)]
        answers = list(pool.map(lambda i: answer(driver, PROMPTS[i % 4], greedy()), range(20)))
        for future in leaving:
            future.result()
    assert answers == [plain_greedy(ids, 6) for ids in PROMPTS] * 5
    assert idle(driver)


def test_a_mailbox_that_nobody_holds_any_more_is_dropped(make: Any) -> None:
    driver, _ = make()
    driver.add(Mailbox(), [1, 2], greedy(30))
    assert answer(driver, [2], greedy()) == plain_greedy([2], 6)
    assert idle(driver)


def test_closing_ends_all_who_wait(make: Any) -> None:
    driver, runner = make()
    held = threading.Event()

    def hold() -> None:
        held.wait(PATIENCE)

    runner.fail = hold
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(answer, driver, ids, greedy()) for ids in PROMPTS]
        time.sleep(0.1)
        closing = threading.Thread(target=driver.close)
        closing.start()
        held.set()
        closing.join()
        for future in waiting:
            error = future.exception(timeout=PATIENCE)
            assert error is None or "this LLM is closed" in str(error)
    assert any(future.exception() for future in waiting)
    with pytest.raises(RequestError, match="this LLM is closed"):
        answer(driver, [1], greedy())


def test_a_failing_step_fails_with_its_cause_and_the_next_request_is_served(make: Any) -> None:
    driver, runner = make()
    causes = iter([MemoryError("no room")])

    def fail() -> None:
        for error in causes:
            raise error

    runner.fail = fail
    with pytest.raises((MemoryError, EngineError), match="no room"):
        answer(driver, [1, 2], greedy())
    assert answer(driver, [1, 2], greedy()) == plain_greedy([1, 2], 6)
    assert idle(driver)


def test_memory_that_runs_out_is_told_alike_wherever_it_does(make: Any, monkeypatch: Any) -> None:
    driver, runner = make()

    def fail(*args: Any) -> None:
        raise MemoryError

    runner.fail, told = fail, []
    for _ in ("in a step", "as a request is added"):
        with pytest.raises(EngineError) as caught:
            answer(driver, [1, 2], greedy())
        assert isinstance(caught.value.__cause__, MemoryError)
        told.append(str(caught.value))
        monkeypatch.setattr(driver.engine, "add", fail)
    assert told == 2 * ["memory ran out in the engine. ask for less at a time, or for the same again"]


def test_work_between_steps_is_alone_with_the_engine(make: Any) -> None:
    driver, _ = make()
    inside, most = [0], [0]

    def work(engine: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        worked = [pool.submit(driver.call, work) for _ in range(3)]
        answers = list(pool.map(lambda ids: answer(driver, ids, greedy()), PROMPTS))
        for future in worked:
            future.result()
    assert most == [1], "no two at a time"
    assert answers == [plain_greedy(ids, 6) for ids in PROMPTS]


def test_work_that_comes_back_is_refused_and_does_not_hang(make: Any) -> None:
    driver, _ = make()
    with pytest.raises(RequestError, match="from within its own work"):
        driver.call(lambda engine: answer(driver, [1], greedy()))
    assert answer(driver, [1], greedy()) == plain_greedy([1], 6)


def test_ctrl_c_ends_the_request_it_hits_and_no_other() -> None:
    engine, runner = make_engine()
    driver, struck = Driver(engine), threading.Event()
    other = threading.Thread(target=lambda: answers.append(answer(driver, [2], greedy(20))))
    answers: list[list[int]] = []

    def fail() -> None:
        if threading.current_thread() is threading.main_thread() and not struck.is_set():
            struck.set()
            other.start()
            raise KeyboardInterrupt

    runner.fail = fail
    with pytest.raises(KeyboardInterrupt):
        answer(driver, [1, 2], greedy())
    other.join(PATIENCE)
    assert answers == [plain_greedy([2], 20)]
    assert idle(driver)


def test_a_dead_thread_fails_who_waits_and_who_comes_later_with_the_cause() -> None:
    engine, runner = make_engine()
    driver = ThreadedDriver(engine)

    def die() -> None:
        time.sleep(0.05)
        raise SystemExit("struck down")

    runner.fail = die
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(answer, driver, ids, greedy()) for ids in PROMPTS]
        for future in waiting:
            assert isinstance(future.exception(timeout=PATIENCE), EngineError)
            assert "struck down" in str(future.exception())
    with pytest.raises(EngineError, match="struck down"):
        answer(driver, [1], greedy())
    with pytest.raises(EngineError, match="the engine's thread has ended"):
        driver.call(lambda engine: None)
    driver.close()


def test_an_event_that_was_delivered_twice_is_read_once() -> None:
    engine, _ = make_engine()
    driver, box = Driver(engine), Mailbox()
    put = box.put

    def put_and_fail(event: Any) -> None:
        put(event)
        box.put = put  # type: ignore[method-assign]
        raise KeyboardInterrupt

    box.put = put_and_fail  # type: ignore[method-assign]
    driver.add(box, [1, 2], greedy())
    with pytest.raises(KeyboardInterrupt):
        driver.receive(box)
    tokens: list[int] = []
    while True:
        event = driver.receive(box)
        tokens += event.piece.token_ids if isinstance(event, Sampled) else []
        if event.last:
            break
    assert tokens == plain_greedy([1, 2], 6)


def exit_code(child: int) -> int:
    """Of a forked process, which ends in time."""
    for _ in range(60_000):  # ten minutes
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the forked process hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_steps_leaves_both_usable() -> None:
    engine, runner = make_engine()
    driver, inside, go = Driver(engine), threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        go.wait(PATIENCE)

    runner.fail = hold
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(answer, driver, [1, 2], greedy())
        inside.wait(PATIENCE)
        child = os.fork()
        if child == 0:
            runner.fail = lambda: None
            right = answer(driver, [2], greedy()) == plain_greedy([2], 6)
            os._exit(0 if right else 1)
        go.set()
        assert here.result(PATIENCE) == plain_greedy([1, 2], 6)
    assert exit_code(child) == 0
