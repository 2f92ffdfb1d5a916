"""Signals while something has to be put back in order: servers that run, a terminal that shows no keys."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)  # as a shell has it


@contextmanager
def handled(react: Callable[[int, Any], None], *names: str) -> Iterator[None]:
    """Have the signals with these names call ``react``, where nobody else has a way for them (``nohup`` has)
    and the system knows them."""
    before: dict[int, Any] = {}
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with suppress(ValueError):  # not the main thread: whoever runs us there has its own ways
                before[number] = signal.signal(number, react)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ending_signals() -> list[int]:
    """What tells a server to end: Ctrl-C, SIGTERM, and a terminal that closes unless that is of no account
    (``nohup``)."""
    ends: list[int] = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        ends.append(hangup)
    return ends


def ended_in_order(*names: str) -> AbstractContextManager[None]:
    """Signals that would end the process at once raise SystemExit."""
    return handled(_leave, *names)
