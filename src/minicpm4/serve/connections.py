"""How long a client may take to send a request, and to read its answer, and how much it may send ahead:
uvicorn has no such limits."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger("minicpm4.serve")

SEND_BUFFER = 1 << 16  # bytes; what the system takes by itself would be megabytes that nobody reads
MAX_AHEAD = 1 << 16  # bytes behind a whole request; then no more is read until it has its answer
_TELL_AGAIN = 60.0  # seconds
_LOOKS = 4  # at a client that does not read, before it is cut


class Flow(FlowControl):
    """When bytes are read: uvicorn reads more for each request that it begins to answer, so that what a
    client sends ahead would grow for ever."""

    def __init__(self, transport: Any, conn: h11.Connection) -> None:
        super().__init__(transport)
        self._conn = conn

    def resume_reading(self) -> None:
        """Unless enough is here already."""
        if self._conn.their_state is not h11.DONE or len(self._conn.trailing_data[0]) < MAX_AHEAD:
            super().resume_reading()


class Patient(H11Protocol):
    """One connection: ``seconds`` and ``stalled`` are what ``patient`` is given."""

    seconds: float
    stalled: float
    late: asyncio.TimerHandle | None = None
    look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """From here on a head is waited for."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.conn)
        transport.set_write_buffer_limits(high=1, low=0)  # so that all that waits is told of
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._wait()

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        self._look(self.transport.get_write_buffer_size(), _LOOKS)

    def resume_writing(self) -> None:
        """The client has all, or is gone."""
        self._look_no_more()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Begin or end to wait, by what has come: half a head, or all that is wanted. What comes behind the
        last request of a connection is nobody's."""
        if self.conn.their_state is h11.MUST_CLOSE:
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._is_left_over():
            self._wait()
        else:
            self._wait_no_more()

    def on_response_complete(self) -> None:
        """The rest of a body need not come, and must not come for ever."""
        super().on_response_complete()
        self.flow.resume_reading()  # for a request whose beginning was read ahead
        if self._is_left_over():
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """A body that is broken is told of unless the answer has begun: then there is no place for it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._wait_no_more()
        self._look_no_more()
        super().connection_lost(exc)

    def _is_left_over(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

    def _wait(self) -> None:
        """Each piece that comes is no reason to begin anew."""
        if self.late is None:
            self.late = asyncio.get_running_loop().call_later(self.seconds, self.transport.close)

    def _look(self, before: int, left: int) -> None:
        """Look again after a while whether less waits than ``before``; after ``left`` looks at which
        nothing was taken the client is cut."""
        self._look_no_more()

        def again() -> None:
            waits = self.transport.get_write_buffer_size()
            if waits < before:
                self._look(waits, _LOOKS)
            elif left > 1:
                self._look(waits, left - 1)
            else:
                logger.info("a client read nothing for %g s: its connection is cut", self.stalled)
                self.transport.abort()

        self.look = asyncio.get_running_loop().call_later(self.stalled / _LOOKS, again)

    def _look_no_more(self) -> None:
        if self.look is not None:
            self.look.cancel()
            self.look = None

    def _wait_no_more(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None


def patient(seconds: float, stalled: float) -> type[H11Protocol]:
    """The protocol of connections that are closed where the head of a request, or the rest of a body to which
    the answer was given already, takes longer than so many seconds; or where nothing of what waits for the
    client is taken in ``stalled`` seconds. Bodies that are wanted have the limit of ``read_body``, idle
    connections between requests that of uvicorn."""

    class Limited(Patient):
        """Of one server."""

    Limited.seconds, Limited.stalled = seconds, stalled
    return Limited


def watch_the_door(loop: asyncio.AbstractEventLoop) -> None:
    """Where no descriptor is left for another connection, asyncio lets it wait and tries again every second,
    and logs thousands of tracebacks at each try, and as many where the door is closed by then: a line a
    minute says it."""
    told = float("-inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        error, message = context.get("exception"), str(context.get("message"))
        if "accept() out of system resource" in message and isinstance(error, OSError):
            if loop.time() - told > _TELL_AGAIN:
                told = loop.time()
                why = (
                    f"{error.strerror}. They come in as others go; a higher ulimit -n lets more in at a time"
                )
                logger.warning("clients wait to be let in: %s", why)
        elif not ("_start_serving" in message and isinstance(error, ValueError)):
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
