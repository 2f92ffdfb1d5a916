"""For callers without an event loop: one on a thread of its own, and questions answered on the caller's."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from minicpm4.agents.mcp.asking import Answer, Ask, Consent, Form, May
from minicpm4.machine.signals import ended_in_order

__all__ = ["Blocking"]

T = TypeVar("T")
LEAVE_SECONDS = 5.0  # for what was given up to end what it has started


class _Work(Generic[T]):
    """A coroutine of a loop on another thread, which can be given up at any moment: also while it is being
    started, when nobody can tell whether the loop knows of it. ``ended`` is called once there is a
    ``result``."""

    def __init__(
        self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, ended: Callable[[], None]
    ) -> None:
        self.result: Future[T] = Future()
        self._work, self._loop, self._ended = work, loop, ended
        self._task: asyncio.Task[T] | None = None  # of the loop's thread alone

    def start(self) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        """End it. It has a result soon, however far it was."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self) -> None:
        if not self.result.done():  # else it was given up before
            self._task = self._loop.create_task(self._work)
            self._task.add_done_callback(self._done)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self.result.done():
            self._work.close()
            self.result.cancel()
            self._ended()

    def _done(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.result.cancel()
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())
        self._ended()


class Blocking:
    """``may`` and ``tell`` answer what ``Ask`` asks, on the thread that called ``run``: a terminal's. To be
    closed (``with``): then whatever still runs is cancelled, and has ended. Meanwhile a signal that would end
    the process at once ends it in order, as Ctrl-C does: servers that hang would outlive it."""

    def __init__(self, may: Callable[[May], Consent], tell: Callable[[Form], Answer]) -> None:
        self._may, self._tell = may, tell
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="mcp")
        self._thread.start()
        self._items: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._orderly = ended_in_order("SIGTERM", "SIGHUP")
        self.ask = Ask(self._later(self._may), self._later(self._tell))

    def __enter__(self) -> Blocking:
        self._orderly.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        leaving = asyncio.run_coroutine_threadsafe(self._give_up(), self._loop)
        while self._thread.is_alive():
            try:
                self._thread.join()
            except (KeyboardInterrupt, SystemExit):  # it is being ended, and soon is
                continue
        leaving.cancel()
        self._loop.close()
        self._orderly.__exit__(None, None, None)

    async def _give_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        if others:
            await asyncio.wait(others, timeout=LEAVE_SECONDS)
        self._loop.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which runs in the loop; Ctrl-C cancels it. Raises what it raises."""
        self._items = queue.SimpleQueue()
        owned = _Work(work, self._loop, partial(self._items.put, None))
        try:
            owned.start()
            while (item := self._items.get()) is not None:
                item()
        except BaseException:
            owned.cancel()
            while not owned.result.done():
                self._items.get()
            raise
        return owned.result.result()

    def _later(self, answer: Callable[[Any], T]) -> Callable[[Any], Awaitable[T]]:
        async def asked(question: Any) -> T:
            reply: Future[T] = Future()

            def now() -> None:
                if reply.set_running_or_notify_cancel():  # else it was taken back before it was asked
                    reply.set_result(answer(question))  # what this raises ends the work, see run

            self._items.put(now)
            return await asyncio.wrap_future(reply)

        return asked
