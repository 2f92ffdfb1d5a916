"""Where the events of a caller's requests arrive, on whatever thread it waits."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue

from minicpm4.engine.outputs import Event

__all__ = ["Mailbox"]


class Mailbox:
    """Where the events of one caller's requests arrive. ``wake``, if any, is called after each, from the
    thread that delivers it; it may not block or raise."""

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self.closed = False
        self._wake = wake
        # Unlike queue.Queue, this one may be used by finalizers and by whom Ctrl-C interrupts.
        self._mail: SimpleQueue[Event | None] = SimpleQueue()
        self._last: Event | None = None

    def put(self, event: Event | None) -> None:
        """Deliver an event; None only wakes the reader."""
        self._mail.put(event)
        if self._wake is not None:
            self._wake()

    def take(self, timeout: float = 0.0) -> Event | None:
        """The next event; None if there is none within ``timeout`` seconds, or the reader was woken."""
        while True:
            try:
                event = self._mail.get(timeout > 0, timeout)
            except Empty:
                return None
            if event is None or event is not self._last:
                self._last = event or self._last
                return event

    @property
    def empty(self) -> bool:
        return self._mail.empty()
