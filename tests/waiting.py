"""Waiting for what comes true. Without a limit: other work on this machine is no fault of what is tested, and
pytest ends a test that takes ten minutes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PAUSE = 0.005  # seconds
PATIENCE = 600.0  # seconds, where a limit has to be named: only what hangs takes so long


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(PAUSE)


async def until_true(true: Callable[[], bool]) -> None:
    """The same, for what runs on this loop."""
    while not true():
        await asyncio.sleep(PAUSE)
