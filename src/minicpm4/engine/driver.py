"""Who runs an engine: mailboxes for its events, and the pump that steps it.

Callers on any thread open a mailbox, add requests to it and read events from it. With ``Driver`` the
callers who wait take turns at the pump; ``ThreadedDriver`` has a thread of its own, for servers.

Nothing here needs cleaning up after an exception. What callers want is one table (``_wanted``), what the
engine was given another (``_given``); before each step the second is made to follow the first. Events are
taken from the engine only after they were delivered, and readers drop what they get twice.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue
from threading import Lock, Thread, get_ident
from typing import Any, TypeVar
from weakref import WeakSet, ref

from minicpm4.engine.api import EngineAPI, Shown, Visit
from minicpm4.engine.mailbox import Mailbox
from minicpm4.engine.outputs import Event, Failed
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import EngineError, Minicpm4Error, RequestError

T = TypeVar("T")

PATIENCE = 0.05  # seconds after which a waiting caller looks whether the pump is free


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A request that a caller wants served, for as long as its mailbox is open and not forgotten."""

    give: Callable[[EngineAPI, int], None] = field(repr=False)
    """Puts it into the engine, under its number."""
    box: ref[Mailbox] = field(repr=False)
    ended: set[int] = field(default_factory=set)
    """Samples of which nobody wants more."""

    @property
    def reader(self) -> Mailbox | None:
        box = self.box()
        return None if box is None or box.closed else box


_DRIVERS: WeakSet[Driver] = WeakSet()


def _after_fork() -> None:
    """In a forked process no other thread is there to give the pump back. The engine mends what it left."""
    for driver in list(_DRIVERS):
        driver._pump, driver._pumping = Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Driver:
    """An engine that any number of threads may use; whoever waits for an event runs it, for all.

    ``Ctrl-C`` ends the request of the caller that it hits, and no other.
    """

    def __init__(self, engine: EngineAPI) -> None:
        self.limits = engine.limits
        self._engine: EngineAPI | None = engine
        self._shut = False  # nobody starts another turn: who closes need not win the pump from those who do
        self._numbers = count()
        self._wanted: dict[int, _Wanted] = {}
        self._given: set[int] = set()
        self._pump = Lock()  # held by whoever touches the engine
        self._pumping: int | None = None  # the thread that holds it
        _DRIVERS.add(self)

    @property
    def engine(self) -> EngineAPI:
        """Raises RequestError when closed."""
        if self._engine is None or self._shut:
            raise _closed()
        return self._engine

    def check(self, ids: Sequence[int], params: SamplingParams) -> None:
        """Raise RequestError or TextError unless a prompt and its parameters can be served."""
        self.engine.check(ids, params)

    def add(self, box: Mailbox, ids: Sequence[int], params: SamplingParams) -> int:
        """Ask for an answer to be sent to ``box``; return the number that its events carry."""
        return self._want(box, lambda engine, number: engine.add(number, ids, params))

    def check_read(self, ids: Sequence[int], shown: Shown) -> None:
        """Raise RequestError or UnsupportedError unless a text can be read."""
        self.engine.check_read(ids, shown)

    def read(self, box: Mailbox, ids: Sequence[int], shown: Shown, visit: Visit) -> int:
        """Ask for a text to be read (``EngineAPI.read``), its events for ``box``; return their number.
        ``visit`` is called by whoever runs the engine."""
        return self._want(box, lambda engine, number: engine.read(number, ids, shown, visit))

    def _want(self, box: Mailbox, give: Callable[[EngineAPI, int], None]) -> int:
        self._refuse_nested()
        number = next(self._numbers)
        self._wanted[number] = _Wanted(give, ref(box))
        return number

    def receive(self, box: Mailbox) -> Event:
        """Wait for the next event. Raises what the engine raises in this thread (EngineError where memory ran
        out), RequestError when closed.

        There must be one to come: its last was not received yet.
        """
        while True:
            event = box.take()
            if event is not None:
                return event
            self.expect(box)
            if self._pump.locked():
                self._refuse_nested()
                event = box.take(PATIENCE)
                if event is not None:
                    return event
                continue
            with self._pump:
                if box.empty:
                    self._turn()

    def expect(self, box: Mailbox) -> None:
        """Raise unless something can still arrive. Raises RequestError when closed."""
        self.engine  # noqa: B018  (raises)
        # In this order: the last event is put into the box before its request is forgotten.
        if not any(wanted.box() is box for wanted in list(self._wanted.values())) and box.empty:
            raise EngineError("the engine has lost this request", "ask again")

    def drop(self, box: Mailbox) -> None:
        """Nothing more of a mailbox is wanted, or will arrive. The engine is told before it does anything
        else: finalizers call this too, which swallow the Ctrl-C that hits them, so it must be short."""
        box.closed = True
        self._wake_others()

    def end(self, number: int, index: int) -> None:
        """No more is wanted of one sample: its last event comes soon."""
        if (wanted := self._wanted.get(number)) is not None:
            wanted.ended.add(index)

    def call(self, work: Callable[[EngineAPI], T]) -> T:
        """Do something else with the engine, between steps. ``work`` may not come back here."""
        self._refuse_nested()
        with self._pump:
            return self._alone(lambda engine: self._do(engine, work))

    def _do(self, engine: EngineAPI, work: Callable[[EngineAPI], T]) -> T:
        self._follow()  # what nobody wants any more holds pages
        return work(engine)

    def close(self) -> None:
        """End all requests and the engine: whoever waits gets a RequestError."""
        self._refuse_nested()
        self._shut = True
        with self._pump:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()
        self._wake_others()

    def _alone(self, work: Callable[[EngineAPI], T]) -> T:
        self._pumping = get_ident()
        try:
            return work(self.engine)
        finally:
            self._pumping = None

    def _turn(self) -> None:
        try:
            self._alone(self._work)
        except MemoryError as error:
            raise _failure(error) from error

    def _work(self, engine: EngineAPI) -> None:
        self._follow()
        if engine.has_work and not engine.events:
            engine.step()
        self._deliver()
        if not engine.has_work:  # nor events: what was given and had no last event will have none
            for number in list(self._given):
                self._fail(number, EngineError("the engine has lost this request", "ask again"))

    def _follow(self) -> None:
        """Give the engine what is wanted, and take from it what no longer is."""
        engine = self.engine
        for number, wanted in list(self._wanted.items()):
            if wanted.reader is None:
                engine.abort(number)  # known or not: adding it may have been interrupted
                self._forget(number)
            elif number not in self._given:
                try:
                    wanted.give(engine, number)
                    self._given.add(number)
                except Exception as error:
                    engine.abort(number)
                    self._fail(number, error)
            for index in list(wanted.ended):
                engine.abort(number, index)
                wanted.ended.discard(index)

    def _deliver(self) -> None:
        events = self.engine.events
        while events:
            event = events[0]
            wanted = self._wanted.get(event.request_id)
            reader = wanted.reader if wanted is not None else None
            if reader is not None:
                reader.put(event)
            if event.last:
                self._forget(event.request_id)
            events.popleft()

    def _fail(self, number: int, error: BaseException) -> None:
        """Tell a request's reader that it has failed."""
        if not isinstance(error, Minicpm4Error):
            error = _failure(error)
        wanted = self._wanted.get(number)
        reader = wanted.reader if wanted is not None else None
        if reader is not None:
            reader.put(Failed(number, error))
        self._forget(number)

    def _forget(self, number: int) -> None:
        self._wanted.pop(number, None)
        self._given.discard(number)

    def _wake_others(self) -> None:
        """The pump is free, or gone: those who wait look again."""
        for wanted in list(self._wanted.values()):
            box = wanted.box()
            if box is not None:
                box.put(None)

    def _refuse_nested(self) -> None:
        if self._pumping == get_ident() and self._pump.locked():
            raise RequestError("an LLM was used from within its own work", "wait until that has ended")


def _failure(cause: BaseException) -> EngineError:
    """What callers are told of an exception beneath their requests."""
    said = f": {cause}" if str(cause) else ""
    if isinstance(cause, MemoryError):
        error = EngineError(
            f"memory ran out in the engine{said}", "ask for less at a time, or for the same again"
        )
    else:
        error = EngineError(f"the engine failed: {type(cause).__name__}{said}", "ask again")
    error.__cause__ = cause
    return error


def _closed() -> RequestError:
    return RequestError("this LLM is closed", "make a new one")


class ThreadedDriver(Driver):
    """A driver with a thread of its own, which ends with ``close`` or with the process.

    An exception that a step raises fails the requests under way, with the cause, and no later ones. Should
    the thread itself end, all who wait and all who come later get an EngineError.
    """

    def __init__(self, engine: EngineAPI) -> None:
        super().__init__(engine)
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._calls: deque[tuple[Callable[[EngineAPI], Any], Future[Any]]] = deque()
        self._closing = self._ended = False
        self._cause: BaseException | None = None
        self._thread = Thread(target=self._run, name="minicpm4 engine", daemon=True)
        self._thread.start()
        # A daemon thread must not be in the extension when the interpreter goes.
        atexit.register(self.close)

    @property
    def engine(self) -> EngineAPI:
        """Raises RequestError when closed, EngineError when the thread has died."""
        if (self._ended or not self._thread.is_alive()) and not self._closing:
            raise self._gone() from self._cause
        return super().engine

    def _want(self, box: Mailbox, give: Callable[[EngineAPI, int], None]) -> int:
        self.engine  # noqa: B018  (raises: closed, or the thread has died)
        number = super()._want(box, give)
        self._bell.put(None)
        if self._ended:  # meanwhile; nobody will look at the table again
            self._fail(number, self._cause or RuntimeError("closed"))
        return number

    def receive(self, box: Mailbox) -> Event:
        """Wait for the next event. Raises RequestError when closed, EngineError when the thread has died."""
        while True:
            event = box.take(1.0)
            if event is not None:
                return event
            self.expect(box)

    def drop(self, box: Mailbox) -> None:
        """As ``Driver.drop``; the thread does it."""
        box.closed = True
        self._bell.put(None)

    def call(self, work: Callable[[EngineAPI], T]) -> T:
        """As ``Driver.call``, in the driver's thread."""
        self._refuse_nested()
        self.engine  # noqa: B018  (raises)
        future: Future[T] = Future()
        self._calls.append((work, future))
        self._bell.put(None)
        while not wait([future], 1.0).done:
            self.engine  # noqa: B018  (raises)
        return future.result()

    def close(self) -> None:
        """End all requests, the thread and the engine: whoever waits gets a RequestError."""
        self._refuse_nested()
        self._closing = True
        self._bell.put(None)
        self._thread.join()
        super().close()
        atexit.unregister(self.close)

    def _run(self) -> None:
        try:
            while not self._closing:
                with self._pump:
                    busy = self._alone(self._round)
                if not busy and not self._closing:
                    self._bell.get()
        except BaseException as error:
            self._cause = error
        finally:
            self._ended = True
            self._end_calls()
            if self._cause is not None:
                for number in list(self._wanted):
                    self._fail(number, self._cause)
            self._wake_others()

    def _round(self, engine: EngineAPI) -> bool:
        """One step and the calls that wait; whether there is more to do."""
        try:
            self._work(engine)
        except Exception as error:
            for number in list(self._wanted):
                self._fail(number, error)
                engine.abort(number)
        while self._calls:
            work, future = self._calls[0]
            try:
                future.set_result(work(engine))
            except BaseException as error:
                future.set_exception(error)
            self._calls.popleft()
        return engine.has_work or bool(engine.events)

    def _end_calls(self) -> None:
        for _, future in list(self._calls):
            if not future.done():
                future.set_exception(_closed() if self._closing else self._gone())

    def _gone(self) -> EngineError:
        why = "it was lost (a fork?)" if self._cause is None else repr(self._cause)
        return EngineError(f"the engine's thread has ended: {why}", "make a new one")
