"""The facade for asyncio: a model that answers tasks."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.api import EngineAPI, Text
from minicpm4.engine.collect import Collector, piece_of
from minicpm4.engine.llm import ThreadedLLM
from minicpm4.engine.load import Inspection
from minicpm4.engine.mailbox import Mailbox
from minicpm4.engine.outputs import Event, Piece, Prefilled, RequestOutput, TokenLogprobs
from minicpm4.engine.params import SamplingParams, nearest_or_sampling
from minicpm4.engine.prompts import Messages, Params, Prompt, Prompts, one_each, split_chats, split_prompts
from minicpm4.engine.scoring import Direction, Readings, Score
from minicpm4.formats import Checkpoint
from minicpm4.progress import Progress, check_progress

Ids = Callable[[], list[list[int]]]
T = TypeVar("T")


@nearest_or_sampling
class AsyncLLM:
    """As LLM, for asyncio: what tasks ask at the same time is answered together, on a thread of its own.

    A task that is cancelled ends its request, a stream that is closed too. Requests belong to the event
    loop that awaits them; several loops may use one AsyncLLM. ``progress`` functions are called in the loop.
    It takes the options of LLM, and must be closed (``async with``). ``AsyncLLM(...)`` loads the model while
    the loop waits, ``await AsyncLLM.load(...)`` beside it.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        self.llm = ThreadedLLM(model, **options)

    @classmethod
    async def load(cls, model: str | Path, **options: Any) -> Self:
        """Load a model without stopping the event loop. Raises as LLM does. A cancelled load stops after the
        layer that it is at, and leaves nothing behind."""
        unwanted = threading.Event()
        made: deque[Self] = deque()
        progress: Progress | None = options.pop("progress", None)
        check_progress(progress)

        def report(done: int, total: int) -> None:
            if unwanted.is_set():
                raise asyncio.CancelledError
            if progress is not None:
                progress(done, total)

        def close_unwanted() -> None:
            with suppress(IndexError):  # one of the two threads takes it
                made.pop().llm.close()

        def make() -> None:
            made.append(cls(model, progress=report, **options))
            if unwanted.is_set():
                close_unwanted()

        try:
            await asyncio.to_thread(make)
        except asyncio.CancelledError:
            unwanted.set()
            close_unwanted()
            raise
        return made.pop()

    @classmethod
    def from_inspection(cls, found: Inspection, progress: Progress | None = None) -> Self:
        """As ``LLM.from_inspection``."""
        made = cls.__new__(cls)
        made.llm = ThreadedLLM.from_inspection(found, progress)
        return made

    @classmethod
    def over(cls, engine: EngineAPI, text: Text, *, name: str, description: str = "") -> Self:
        """As ``LLM.over``."""
        made = cls.__new__(cls)
        made.llm = ThreadedLLM.over(engine, text, name=name, description=description)
        return made

    @overload
    async def generate(
        self, prompts: Prompt, params: SamplingParams | None = None, *, progress: Progress | None = None
    ) -> RequestOutput: ...

    @overload
    async def generate(
        self, prompts: Prompts, params: Params = None, *, progress: Progress | None = None
    ) -> list[RequestOutput]: ...

    async def generate(
        self, prompts: Prompt | Prompts, params: Params = None, *, progress: Progress | None = None
    ) -> RequestOutput | list[RequestOutput]:
        """As ``LLM.generate``."""
        each, is_batch = split_prompts(prompts)
        outputs = await self._complete(lambda: [self.llm.prompt_ids(one) for one in each], params, progress)
        return outputs if is_batch else outputs[0]

    @overload
    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> RequestOutput: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Messages],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> list[RequestOutput]: ...

    async def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """As ``LLM.chat``."""
        each, is_batch = split_chats(messages)
        wanted = one_each(params, len(each))
        answers = await self._complete(self._chats(each, tools, enable_thinking), wanted, progress)
        outputs = [self.llm.with_replies(a, tools, p) for a, p in zip(answers, wanted, strict=True)]
        return outputs if is_batch else outputs[0]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        progress: Progress | None = None,
        read: Callable[[Prefilled], None] | None = None,
        until: Callable[[Piece], bool] | None = None,
    ) -> AsyncGenerator[Piece]:
        """As ``LLM.stream``, for ``async for``; what is wrong is raised by the first piece. ``read`` is told
        as ``progress`` is, and what the cache had of the prompt. ``until``: asked of each piece when the next
        is wanted; where it says yes the sample ends ("abort"), after what was written meanwhile. A loop that
        is left early should close it: ``async with contextlib.aclosing(llm.stream(...)) as pieces``."""
        return self._pieces(lambda: [self.llm.prompt_ids(prompt)], params, progress, read, until)

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> AsyncGenerator[Piece]:
        """``chat``, piece by piece as ``stream``."""
        return self._pieces(self._chats([messages], tools, enable_thinking), params, progress)

    async def embed(self, prompts: Prompt | Prompts) -> NDArray[np.float32]:
        """As ``LLM.embed``; a task that is cancelled ends it."""
        each, is_batch = split_prompts(prompts)
        found = await self._scored(lambda: [Direction(self.llm.prompt_ids(one)) for one in each])
        return self.llm.directions(found, is_batch)

    async def prompt_logprobs(self, ids: Sequence[int], top: int = 0) -> list[TokenLogprobs | None]:
        """As ``LLM.prompt_logprobs``; a task that is cancelled ends it."""
        return (await self._scored(lambda: [self.llm.likelihoods(ids, top)]))[0]

    async def refill(self, model: str | Path | Checkpoint) -> None:
        """As ``LLM.refill``; the loop goes on meanwhile, answers wait."""
        await asyncio.to_thread(self.llm.refill, model)

    async def close(self) -> None:
        """Give the memory back, and end what is under way. The AsyncLLM cannot be used afterwards."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _chats(
        self, each: Sequence[Messages], tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
    ) -> Ids:
        return lambda: [self.llm.chat_ids(one, tools=tools, enable_thinking=thinking) for one in each]

    async def _complete(self, ids_of: Ids, params: Params, progress: Progress | None) -> list[RequestOutput]:
        check_progress(progress)
        collector, box = Collector(progress), _Box()
        try:
            for ids, wanted in await self._checked(ids_of, params):
                collector.expect(self.llm.driver.add(box, ids, wanted), ids, wanted)
            while not collector.complete:
                collector.take(await self._receive(box))
        finally:
            self.llm.driver.drop(box)
        return collector.outputs()

    async def _pieces(
        self,
        ids_of: Ids,
        params: SamplingParams | None,
        progress: Progress | None,
        read: Callable[[Prefilled], None] | None = None,
        until: Callable[[Piece], bool] | None = None,
    ) -> AsyncGenerator[Piece]:
        check_progress(progress)
        box = _Box()
        try:
            ((ids, wanted),) = await self._checked(ids_of, params)
            number = self.llm.driver.add(box, ids, wanted)
            last = False
            while not last:
                event = await self._receive(box)
                last = event.last
                if read is not None and isinstance(event, Prefilled):
                    read(event)
                if (piece := piece_of(event, progress)) is not None:
                    yield piece
                    if until is not None and until(piece):
                        self.llm.driver.end(number, piece.index)
        finally:
            self.llm.driver.drop(box)

    async def _scored(self, scores_of: Callable[[], list[Score[T]]]) -> list[T]:
        box = _Box()
        readings = Readings(self.llm.driver, box, None)
        try:
            scores = await asyncio.to_thread(scores_of)
            readings.ask(scores)
            while not readings.complete:
                readings.take(await self._receive(box))
        finally:
            self.llm.driver.drop(box)
        return [one.result() for one in scores]

    async def _checked(self, ids_of: Ids, params: Params) -> list[tuple[list[int], SamplingParams]]:
        # Long prompts take their time to encode: the loop goes on meanwhile.
        return await asyncio.to_thread(lambda: self.llm.checked(ids_of(), params))

    async def _receive(self, box: _Box) -> Event:
        while True:
            box.arrived.clear()
            while not box.empty:
                event = box.take()
                if event is not None:
                    return event
            self.llm.driver.expect(box)
            # The driver's thread wakes the box even as it dies; should it be gone without a word, we look.
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await box.arrived.wait()


class _Box(Mailbox):
    """A mailbox that wakes a task of the running loop."""

    def __init__(self) -> None:
        self._loop, self.arrived = asyncio.get_running_loop(), asyncio.Event()
        super().__init__(self._call)

    def _call(self) -> None:
        with suppress(RuntimeError):  # the loop is closed; its requests go with the mailbox
            self._loop.call_soon_threadsafe(self.arrived.set)
