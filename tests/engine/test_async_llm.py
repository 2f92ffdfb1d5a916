"""The asyncio facade: answers as LLM's; cancelled tasks end their requests; failures hang nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, AsyncLLM, SamplingParams
from minicpm4.engine.outputs import Piece
from minicpm4.errors import EngineError, RequestError
from minicpm4.testing import ScriptedEngine
from tests.waiting import PATIENCE, PAUSE

TALK = [{"role": "user", "content": "hi"}]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


def scripted(*answers: Any, **sizes: Any) -> tuple[AsyncLLM, ScriptedEngine]:
    engine = ScriptedEngine(answers or ("ok",), **sizes)
    return AsyncLLM.over(engine, engine.text, name="scripted"), engine


def test_answers_are_those_of_an_llm(checkpoint: Path) -> None:
    greedy = SamplingParams(max_tokens=10, temperature=0.0)
    with LLM(checkpoint, threads=1) as llm:
        expected = [llm.generate(text, greedy).text for text in ("one", "two")], llm.chat(TALK, greedy).text

    async def main() -> Any:
        async with await AsyncLLM.load(checkpoint, threads=1) as llm:
            batch, talk, *streams = await asyncio.gather(
                llm.generate(["one", "two"], greedy),
                llm.chat(TALK, greedy),
                joined(llm.stream("one", greedy)),
                joined(llm.stream_chat(TALK, greedy)),
            )
            return [out.text for out in batch], talk.text, streams

    texts, talk, streams = run(main())
    assert (texts, talk) == expected and streams == [texts[0], talk]


def test_several_talks_are_answered_with_a_list() -> None:
    other = [{"role": "user", "content": "and you?"}]
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]

    async def main() -> Any:
        llm, _ = scripted("first", "second")
        async with llm:
            with pytest.raises(RequestError, match="2 prompts came with 1 params"):
                await llm.chat([TALK, other], params[:1])
            return await llm.chat([TALK, other], params), await llm.chat([TALK], params[:1])

    both, one = run(main())
    assert [len(out.token_ids) for out in both] == [1, 2] and len(one) == 1
    assert both[1].outputs[0].reply is not None
    for wrong in (3, "f", [3]):
        with pytest.raises(RequestError, match="tools"):
            scripted()[0].llm.parse_reply(one[0], wrong)


@pytest.mark.parametrize("wanted_for", [0.0, 0.02, 0.1])
def test_a_cancelled_load_leaves_no_engine(checkpoint: Path, wanted_for: float) -> None:
    def engines() -> int:
        return sum(thread.name == "minicpm4 engine" for thread in threading.enumerate())

    before = engines()

    async def main() -> None:
        load = asyncio.create_task(AsyncLLM.load(checkpoint, threads=1))
        await asyncio.sleep(wanted_for)
        if load.cancel():
            with pytest.raises(asyncio.CancelledError):
                await load
        else:  # it was faster
            await load.result().close()

    run(main())  # waits for its threads
    assert engines() == before


async def joined(pieces: Any) -> str:
    return "".join([piece.text async for piece in pieces])


async def idle(llm: AsyncLLM) -> bool:
    """The engine comes to hold no page."""
    while True:
        pages = await asyncio.to_thread(llm.llm.driver.call, lambda engine: engine.scheduler.pages)
        if pages.num_available == pages.num_pages:
            return True
        await asyncio.sleep(PAUSE)


def test_a_cancelled_task_ends_its_request_and_no_other() -> None:
    stalled = threading.Event()

    async def main() -> None:
        llm, _ = scripted(["a" * 20, stalled, "b" * 3000], "whole")
        async with llm:
            task = asyncio.create_task(llm.generate("x", SamplingParams(max_tokens=None)))
            await asyncio.sleep(0.1)
            other = asyncio.create_task(llm.generate("y"))
            task.cancel()
            stalled.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await other).text == "whole"
            assert await idle(llm)

    run(main())


def test_whole_texts_are_read_beside_answers_and_given_up_with_their_task(checkpoint: Path) -> None:
    """One call of the engine read a text from end to end, and nobody could stop it."""

    async def main() -> None:
        async with AsyncLLM(checkpoint, chunk=8, max_batch=4, threads=1) as llm:
            ids = [i % 250 for i in range(500)]
            alone = llm.llm.prompt_logprobs(ids, 1)
            long = asyncio.create_task(llm.prompt_logprobs(ids, 1))
            pieces = [piece async for piece in llm.stream("a", SamplingParams(max_tokens=5, ignore_eos=True))]
            assert len(pieces) == 5 and not long.done()
            np.testing.assert_allclose(logprobs_of(await long), logprobs_of(alone), atol=1e-4)
            vectors = await llm.embed(["one", "two"])
            np.testing.assert_allclose(vectors, llm.llm.embed(["one", "two"]), atol=1e-6)
            assert (await llm.embed([])).shape == (0, vectors.shape[1])
            unwanted = asyncio.create_task(llm.prompt_logprobs(ids))
            while not llm.llm.load.running:
                await asyncio.sleep(0.001)
            unwanted.cancel()
            assert await idle(llm) and not llm.llm.load.running

    run(main())


def logprobs_of(entries: Any) -> list[float]:
    return [entry.logprob for entry in entries[1:]]


def test_a_stream_that_is_left_early_ends_its_request() -> None:
    async def main() -> None:
        llm, _ = scripted("z" * 3000)
        async with llm:
            async with aclosing(llm.stream("x", SamplingParams(max_tokens=None))) as pieces:
                async for _ in pieces:
                    break
            assert await idle(llm)

    run(main())


def test_a_sample_ends_where_its_reader_says() -> None:
    llm, _ = scripted("ab" * 1500)

    async def main() -> None:
        read = ["", ""]

        def until(piece: Piece) -> bool:
            return len(read[piece.index]) >= 5 * (piece.index + 1)

        pieces = []
        async for piece in llm.stream("x", SamplingParams(n=2, max_tokens=3000, temperature=0), until=until):
            read[piece.index] += piece.text
            pieces.append(piece)
        ends = [(piece.index, piece.finish_reason) for piece in pieces if piece.finish_reason]
        assert sorted(ends) == [(0, "abort"), (1, "abort")]
        assert pieces[-1].metrics is not None and pieces[-1].metrics.new_tokens < 3000
        assert all("ababab".startswith(text[:5]) for text in read)
        await idle(llm)

    run(main())
    llm.llm.close()


def test_the_loop_goes_on_while_the_engine_stalls() -> None:
    event = threading.Event()

    async def main() -> str:
        llm, _ = scripted(["be", event, "fore"])
        async with llm:
            task = asyncio.create_task(llm.generate("x"))
            await asyncio.sleep(0.1)  # the loop runs, or the event would never be set
            event.set()
            return (await task).text

    assert run(main()) == "before"


def test_errors_reach_the_task() -> None:
    async def main() -> None:
        llm, _ = scripted(["half", MemoryError("full")], ["half", RequestError("not this")], "whole")
        async with llm:
            with pytest.raises(EngineError, match="memory ran out in the engine: full"):
                await llm.generate("a")
            with pytest.raises(RequestError, match="not this"):
                await joined(llm.stream("b"))
            with pytest.raises(RequestError, match="the prompt is empty"):
                await llm.generate("")
            assert (await llm.generate("c")).text == "whole"
            assert await llm.generate([]) == []

    run(main())


def test_several_event_loops_may_use_one() -> None:
    llm, _ = scripted("same")
    texts: list[str] = []

    def loop() -> None:
        texts.extend(out.text for out in run(llm.generate(["a"] * 5)))

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert texts == ["same"] * 20
    run(llm.close())


def test_closing_ends_tasks_that_wait() -> None:
    event = threading.Event()

    async def main() -> None:
        llm, _ = scripted(["a", event, "b" * 3000])
        task = asyncio.create_task(llm.generate("x", SamplingParams(max_tokens=None)))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(llm.close())
        await asyncio.sleep(0.05)
        event.set()
        await closing
        with pytest.raises(RequestError, match="this LLM is closed"):
            await task
        with pytest.raises(RequestError, match="this LLM is closed"):
            await llm.generate("x")

    run(main())


def test_a_dead_thread_fails_tasks_with_its_cause() -> None:
    async def main() -> None:
        llm, _ = scripted(["a", SystemExit("struck down")])
        with pytest.raises(EngineError, match="struck down"):
            await llm.generate("x")
        with pytest.raises(EngineError, match="struck down"):
            await llm.generate("x")
        await llm.close()

    run(main())


def test_progress_is_told_in_the_loop() -> None:
    async def main() -> None:
        llm, _ = scripted(max_rows=16)
        seen: list[tuple[int, int]] = []
        async with llm:
            await llm.generate("p" * 39, progress=lambda *done: seen.append(done))
        assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]

    run(main())
