"""How long a client may take to send a request: uvicorn, which reads it, has no such limit."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient(seconds: float) -> type[H11Protocol]:
    """The protocol of connections that are closed where the head of a request, or the rest of a body to which
    the answer was given already, takes longer than so many seconds. Bodies that are wanted have the limit of
    ``read_body``, idle connections between requests that of uvicorn."""

    class Patient(H11Protocol):
        """One connection."""

        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """From here on a head is waited for."""
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Begin or end to wait, by what has come: half a head, or all that is wanted."""
            super().data_received(data)
            if self.conn.their_state is h11.IDLE or self._is_left_over():
                self._wait()
            else:
                self._wait_no_more()

        def on_response_complete(self) -> None:
            """The rest of a body need not come, and must not come for ever."""
            super().on_response_complete()
            if self._is_left_over():
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Nothing is waited for any more."""
            self._wait_no_more()
            super().connection_lost(exc)

        def _is_left_over(self) -> bool:
            return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

        def _wait(self) -> None:
            """Each piece that comes is no reason to begin anew."""
            if self.late is None:
                self.late = asyncio.get_running_loop().call_later(seconds, self.transport.close)

        def _wait_no_more(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return Patient
