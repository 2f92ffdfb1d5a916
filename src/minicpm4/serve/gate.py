"""How many requests are in hand, for how long, and how the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from minicpm4.serve.errors import ApiError, busy, invalid

_SMOOTH = 0.2  # of the running mean of how long answers take


class Gate:
    """Counts requests, each as the sequences that run for it at a time: prompts or texts, times samples.
    Refuses what is too much. ``room``: how many the engine runs at a time, ``waiting``: how many more may be
    in hand, ``timeout``: seconds for each request."""

    def __init__(self, *, room: int, waiting: int, timeout: float) -> None:
        self._room, self._waiting, self._timeout = room, waiting, timeout
        self._tickets: set[Ticket] = set()
        self._seconds = 1.0  # that an answer takes
        self._empty = asyncio.Event()
        self._empty.set()
        self.closed = False

    @property
    def count(self) -> int:
        return len(self._tickets)

    @property
    def load(self) -> int:
        """Sequences of all requests in hand."""
        return sum(ticket.size for ticket in self._tickets)

    def enter(self, size: int = 1) -> Ticket:
        """Let a request in of which ``size`` sequences run at a time. Raises ApiError: 429 when that is too
        much just now, 400 when it always is, 503 when the server is ending."""
        if self.closed:
            raise ending()
        load, most = self.load, self._room + self._waiting
        if size > most:
            message = (
                f"n asks for {size:,} answers at a time, this server has room for {most:,} (--max-batch and "
                "--max-waiting together)"
            )
            raise invalid("n", message, "invalid_value")
        if load + size > most:
            asked = "" if size == 1 else f", and this request asks for {size:,}"
            message = (
                f"{load} prompts are in hand{asked}: this server takes {self._room} at a time and lets "
                f"{self._waiting} wait. ask again later"
            )
            seconds = min(60.0, self._seconds * max(self._waiting, 1) / self._room)
            raise busy(429, message, seconds, "queue_full")
        ticket = Ticket(self, self._timeout, size)
        self._tickets.add(ticket)
        self._empty.clear()
        return ticket

    def close(self) -> None:
        """Let nobody in any more."""
        self.closed = True

    async def drain(self, seconds: float) -> None:
        """Wait until all requests have ended; end those that have not after so many seconds."""
        self.close()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            self.hurry()
            try:
                async with asyncio.timeout(5.0):
                    await self._empty.wait()
            except TimeoutError:
                return

    def hurry(self) -> None:
        """End all requests now: whoever waits for one is told."""
        for ticket in list(self._tickets):
            ticket.end_now()

    def leave(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self._seconds += _SMOOTH * (monotonic() - ticket.entered - self._seconds)
            if not self._tickets:
                self._empty.set()


class Ticket:
    """One request that was let in; it must leave."""

    def __init__(self, gate: Gate, timeout: float, size: int) -> None:
        self.entered, self.size = monotonic(), size
        self._gate, self._timeout = gate, timeout
        self._scope: asyncio.Timeout | None = None
        self._ended = False

    def leave(self) -> None:
        """Idempotent."""
        self._gate.leave(self)

    def end_now(self) -> None:
        self._ended = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def timed(self) -> AsyncIterator[None]:
        """Within it the request's time runs. Raises ApiError when that is over, or the server ends."""
        if self._ended:
            raise ending()
        left = self._timeout - (monotonic() - self.entered)
        try:
            async with asyncio.timeout(max(left, 0.0)) as self._scope:
                yield
        except TimeoutError as error:
            if self._scope is None or not self._scope.expired():
                raise
            raise (ending() if self._ended else late(self._timeout)) from error
        finally:
            self._scope = None


def ending() -> ApiError:
    return busy(503, "this server is ending", 5, "shutting_down")


def late(seconds: float) -> ApiError:
    """What took longer than this server waits."""
    message = f"the answer took over {seconds:g} s, which is this server's limit (--timeout)"
    return ApiError(504, message, kind="timeout_error", code="timeout")
