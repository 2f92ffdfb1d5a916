"""A store of pages in memory, for engines over a ModelCache."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm4 import SamplingParams
from minicpm4.engine.kept_pages import KeptPages
from minicpm4.engine.pages import PageKey
from tests.engine.scripted import NumberedEngine, make_engine, run


class Stock:
    """A store in memory, of the slots of a ModelCache; of a room for ``most`` copies between two steps."""

    room_for_pages = 2

    def __init__(self) -> None:
        self.kept: dict[bytes, Any] = {}
        self.engine: NumberedEngine | None = None
        self.filled: list[bytes] = []
        self.busy = self.closed = False
        self.bad: set[bytes] = set()

    @property
    def slots(self) -> Any:
        return self.engine._runner.cache.slots  # type: ignore[union-attr]

    def has(self, key: PageKey) -> bool:
        return key.digest in self.kept

    def fill(self, page: int, key: PageKey) -> bool:
        if key.digest not in self.kept or key.digest in self.bad:
            return False
        self.slots[page] = list(self.kept[key.digest])
        self.filled.append(key.digest)
        return True

    def save(self, page: int, key: PageKey, patience: float = 0.0) -> bool:
        if self.busy:
            return False
        self.kept[key.digest] = list(self.slots[page])
        assert self.kept[key.digest][-1][-4:] == tuple(np.frombuffer(key.tokens, np.uint32))
        return True

    def close(self) -> None:
        self.closed = True


def engine_over(stock: Stock, **sizes: Any) -> NumberedEngine:
    engine, runner = make_engine(kept=KeptPages(stock, 0), **sizes)
    stock.engine = engine
    assert runner.cache is not None
    return engine


def filled_stock(prompt: list[int]) -> Stock:
    """What an engine has saved that read a prompt and wrote three tokens, and is closed."""
    stock = Stock()
    engine = engine_over(stock)
    engine.ask(prompt, SamplingParams(max_tokens=3, temperature=0))
    run(engine)
    engine.close()
    assert stock.closed
    return stock
