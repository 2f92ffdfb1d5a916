"""Waiting for what may take for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["within"]


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What ``ask`` returns or raises; TimeoutError where it takes longer. It is waited for no more then."""
    found: list[Any] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no whole answer in {seconds:g} s")
    return found[0]
