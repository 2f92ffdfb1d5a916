"""Pages that go to a store and come from it: prompts wait for theirs outside of the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.outputs import Sampled
from minicpm4.engine.pages import PageAllocator, PageKey
from minicpm4.engine.sequence import Sequence
from minicpm4.errors import ConfigError
from tests.engine.scripted import greedy, make_engine, plain_greedy, read_of, run, tokens_of
from tests.engine.stock import Stock, engine_over, filled_stock

PROMPT = [1 + i % 7 for i in range(22)]  # five full pages of 4 tokens, and two more


def test_another_engine_reads_only_what_was_not_kept() -> None:
    stock = filled_stock(PROMPT)
    assert len(stock.kept) == 6  # a page of the answer's too
    engine = engine_over(stock)
    number = engine.ask(PROMPT, greedy(3))
    assert engine.has_work and engine.load.waiting == 1
    events = run(engine)
    assert tokens_of(events, number) == plain_greedy(PROMPT, 3)
    assert read_of(events, number) == [0, 22] and len(stock.filled) == 5
    (last,) = [e.piece.metrics for e in events if isinstance(e, Sampled) and e.piece.metrics]
    assert last.cached_tokens == 20 and last.prompt_tokens == 22
    engine.scheduler.pages.check([])


def test_running_answers_go_on_while_pages_come() -> None:
    stock = filled_stock(PROMPT)
    engine = engine_over(stock)
    other = engine.ask([9, 8], greedy(20))
    engine.step()
    engine.events.clear()
    engine.ask(PROMPT, greedy(1))
    for come in (2, 4, 5):
        events = engine.events_of_step()
        assert len(stock.filled) == come and len(tokens_of(events, other)) == 1


def test_one_that_is_ended_while_its_pages_come() -> None:
    stock = filled_stock(PROMPT)
    engine = engine_over(stock)
    number = engine.ask(PROMPT, greedy(3))
    engine.step()
    assert len(stock.filled) == 2
    engine.abort(number)
    *_, event = engine.events
    assert event.last and not engine.has_work and engine.load.waiting == 0
    engine.scheduler.pages.check([])


def test_a_hole_ends_what_comes() -> None:
    stock = filled_stock(PROMPT)
    stock.bad = {list(stock.kept)[3]}
    engine = engine_over(stock)
    number = engine.ask(PROMPT, greedy(3))
    events = run(engine)
    assert tokens_of(events, number) == plain_greedy(PROMPT, 3)
    assert len(stock.filled) == 3
    engine.scheduler.pages.check([])


def test_they_take_no_page_that_is_owned_and_not_their_own_prefix() -> None:
    stock = filled_stock(PROMPT)
    pages = PageAllocator(4, 4, salt=b"weights 0")
    held = Sequence(0, [9] * 5, limit=40)
    assert pages.admit(held)
    waiting = Sequence(1, PROMPT, limit=40)
    stock.engine, _ = make_engine()
    assert pages.bring(waiting, stock.fill, 9) == (2, False)
    pages.check([held])
    assert pages.num_available == 2 and len(pages._lookup(waiting)) == 2


def test_a_page_that_outlived_the_one_before_it_is_not_brought_again() -> None:
    """One prompt seals its first page, a longer one that begins so its second; then the first is given up."""
    pages, stock = PageAllocator(4, 4, salt=b"weights 0"), filled_stock(PROMPT)
    stock.engine, _ = make_engine()
    long = Sequence(0, PROMPT[:8], limit=40)
    assert pages.admit(long)
    long.computed = 8
    pages.seal(long)
    kept = long.pages[1]
    pages.release(long)
    first = next(page for page in pages._cached if page != kept)
    pages._cached.pop(first)  # as if it alone had been the oldest
    pages._forget(first)
    pages._free.append(first)
    waiting = Sequence(1, PROMPT, limit=40)
    assert pages.bring(waiting, stock.fill, 3)[0] == 3
    pages.check([])
    assert pages._lookup(waiting)[1] == kept
    others = Sequence(2, [7] * 16, limit=40)
    assert pages.admit(others)  # every page is given up, once
    pages.check([others])


def test_only_those_come_that_can_be_let_in() -> None:
    stock = filled_stock(PROMPT)
    engine = engine_over(stock, max_sequences=1)
    first = engine.ask([9, 8], greedy(4))
    engine.step()
    engine.ask(PROMPT, greedy(1))
    while tokens_of(list(engine.events), first) != plain_greedy([9, 8], 4):
        assert stock.filled == []
        engine.step()
    run(engine)
    assert len(stock.filled) == 5


def test_those_who_come_later_do_not_overtake_for_ever() -> None:
    engine = engine_over(filled_stock(PROMPT), max_sequences=2)
    for _ in range(2):
        engine.ask([9, 8], greedy(6))
    number, later = engine.ask(PROMPT, greedy(2)), 0
    while later < 20:
        for event in engine.events_of_step():
            if isinstance(event, Sampled) and event.last:
                if event.request_id == number:
                    return
                later += event.request_id > number
                engine.ask([9, 8], greedy(6))
    pytest.fail("twenty that came later have ended")


def test_what_has_no_room_now_is_saved_later_if_it_is_still_there() -> None:
    stock = Stock()
    stock.busy = True
    engine = engine_over(stock, num_pages=10)
    number = engine.ask(PROMPT, greedy(1))
    while not any(event.last for event in engine.events):
        engine.step()
    assert stock.kept == {} and engine.has_work
    stock.busy = False
    engine.step()
    assert len(stock.kept) == 5 and not engine.has_work
    stock.busy = True
    engine.ask([11 - token for token in PROMPT], greedy(1))
    while sum(event.last for event in engine.events) < 2:
        engine.step()
    engine.ask([5] * 39, greedy(1))  # takes all pages
    while sum(event.last for event in engine.events) < 3:
        engine.step()
    stock.busy = False
    engine.step()  # save checks that a page holds what its key says
    assert number == 0 and len(stock.kept) < 5 + 5 + 9


def test_pages_of_other_weights_are_neither_kept_nor_found() -> None:
    stock = filled_stock(PROMPT)
    engine = engine_over(stock)
    engine._runner.version = 1  # type: ignore[misc]
    engine.step()
    kept = dict(stock.kept)
    number = engine.ask(PROMPT, greedy(3))
    events = run(engine)
    assert read_of(events, number)[:2] == [0, 8] and stock.filled == [] and stock.kept == kept


def test_an_exception_while_pages_come_costs_nothing() -> None:
    stock = filled_stock(PROMPT)
    engine = engine_over(stock)
    fill: Callable[[int, PageKey], bool] = stock.fill
    number = engine.ask(PROMPT, greedy(3))

    def torn(page: int, key: PageKey) -> bool:
        fill(page, key)
        raise KeyboardInterrupt

    stock.fill = torn  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    stock.fill = fill  # type: ignore[method-assign]
    events = run(engine)
    assert tokens_of(events, number) == plain_greedy(PROMPT, 3)
    engine.scheduler.pages.check([])


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("backend", ["cpu", "ref"])
def test_answers_from_files_are_those_from_memory(
    make_llm: Callable[..., LLM], tmp_path: Path, kv: str, backend: str
) -> None:
    prompt = [(7 * i) % 300 for i in range(150)]
    wanted = SamplingParams(max_tokens=20, temperature=0, logprobs=0, ignore_eos=True)
    sparse = {"kernel_size": 8, "kernel_stride": 4, "block_size": 16, "window_size": 32, "topk": 2}
    options = {"kv": kv, "backend": backend, "sparse": sparse, "attention": "sparse", "max_batch": 2}
    with make_llm(cache_dir=tmp_path, **options) as llm:
        computed, from_memory = (llm.generate(prompt, wanted) for _ in range(2))
    with make_llm(cache_dir=tmp_path, **options) as llm:
        from_files = llm.generate(prompt, wanted)
    found = (computed, from_memory, from_files)
    assert [one.metrics.cached_tokens for one in found] == [0, 144, 144]
    assert computed.token_ids == from_files.token_ids
    # Bit by bit that of the cache in memory: the same rows were computed from the same pages.
    assert from_memory.logprobs is not None and from_memory.logprobs == from_files.logprobs


def test_other_settings_find_nothing(make_llm: Callable[..., LLM], tmp_path: Path) -> None:
    prompt = [(7 * i) % 300 for i in range(150)]

    def cached(**options: Any) -> int:
        llm = make_llm(cache_dir=tmp_path, **options)
        out = llm.generate(prompt, SamplingParams(max_tokens=1))
        llm.close()
        return out.metrics.cached_tokens

    assert cached() == 0 and cached() == 128
    assert [cached(kv="bf16"), cached(weights="int8"), cached(backend="ref")] == [0, 0, 0]
    assert cached(attention="sparse") == 0 and cached() == 128


def test_weights_that_were_put_in_their_place_are_not_kept(
    make_llm: Callable[..., LLM], checkpoint: Path, tmp_path: Path
) -> None:
    prompt = [(7 * i) % 300 for i in range(150)]
    llm = make_llm(cache_dir=tmp_path)
    llm.refill(checkpoint)
    llm.generate(prompt, SamplingParams(max_tokens=1))
    llm.close()
    assert list(tmp_path.rglob("*.page")) == []


def test_a_cache_without_a_cache_is_refused(make_llm: Callable[..., LLM], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prefix_cache = False"):
        make_llm(cache_dir=tmp_path, prefix_cache=False)
    with pytest.raises(ConfigError, match="cache_size"):
        make_llm(cache_dir=tmp_path, cache_size=0)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot keep pages"):
        make_llm(cache_dir=tmp_path / "file")
