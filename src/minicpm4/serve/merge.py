"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def merged(sources: Sequence[AsyncGenerator[T]], most: int) -> AsyncGenerator[tuple[int, T]]:
    """What several sources give, ``most`` of them at a time, each with the number of its source, as it comes.
    The first error of any is raised; closing this closes all."""
    room = asyncio.Semaphore(most)
    queue: asyncio.Queue[tuple[int, Any, BaseException | None]] = asyncio.Queue()
    ended = object()

    async def fill(number: int, source: AsyncGenerator[T]) -> None:
        error: BaseException | None = None
        try:
            async with room, aclosing(source) as items:
                async for item in items:
                    queue.put_nowait((number, item, None))
        except Exception as raised:
            error = raised
        queue.put_nowait((number, ended, error))

    filling = [asyncio.ensure_future(fill(i, source)) for i, source in enumerate(sources)]
    left = len(filling)
    try:
        while left:
            number, item, error = await queue.get()
            if error is not None:
                raise error
            if item is ended:
                left -= 1
            else:
                yield number, item
    finally:
        for task in filling:
            task.cancel()
        if filling:
            await asyncio.wait(filling)
