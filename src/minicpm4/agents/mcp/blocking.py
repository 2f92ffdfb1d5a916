"""For callers without an event loop: one on a thread of its own, and questions answered on the caller's."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from minicpm4.agents.mcp.asking import Answer, Ask, Consent, Form, May

__all__ = ["Blocking"]

T = TypeVar("T")


class Blocking:
    """``may`` and ``tell`` answer what ``Ask`` asks, on the thread that called ``run``: a terminal's. To be
    closed (``with``)."""

    def __init__(self, may: Callable[[May], Consent], tell: Callable[[Form], Answer]) -> None:
        self._may, self._tell = may, tell
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="mcp")
        self._thread.start()
        self._items: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.ask = Ask(self._later(self._may), self._later(self._tell))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which runs in the loop; Ctrl-C cancels it. Raises what it raises."""
        self._items = queue.SimpleQueue()
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        ended = threading.Event()

        def done(_: Future[T]) -> None:
            ended.set()
            self._items.put(None)

        running.add_done_callback(done)
        try:
            while (item := self._items.get()) is not None:
                item()
        except BaseException:
            running.cancel()
            while not ended.is_set():
                self._items.get()
            raise
        return running.result()

    def _later(self, answer: Callable[[Any], T]) -> Callable[[Any], Awaitable[T]]:
        async def asked(question: Any) -> T:
            reply: Future[T] = Future()

            def now() -> None:
                if reply.set_running_or_notify_cancel():  # else it was taken back before it was asked
                    reply.set_result(answer(question))  # what this raises ends the work, see run

            self._items.put(now)
            return await asyncio.wrap_future(reply)

        return asked
