"""The states of a model at the tokens of texts, as the engine shows them to a drafter: what a head learns
from is what it will see, in whatever format the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from minicpm4.engine.drafter import Array, Guess, Wish
from minicpm4.engine.drafting import Drafting
from minicpm4.engine.llm import LLM
from minicpm4.engine.outputs import RequestOutput
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.sequence import Sequence

__all__ = ["Watcher"]


class Watcher:
    """A Drafter that guesses nothing, and keeps the states after ``hidden`` layers. ``llm`` must find nothing
    in a prefix cache."""

    is_free = True

    def __init__(self, llm: LLM, hidden: tuple[int, ...]) -> None:
        self._llm, self.hidden = llm, hidden
        self._parts: dict[tuple[int, int], list[tuple[int, dict[int, Any]]]] = {}

    def see(self, sequence: Sequence, start: int, states: Mapping[int, Array]) -> None:
        """See Drafter."""
        copied = {layers: np.array(rows, np.float32) for layers, rows in states.items()}
        self._parts.setdefault(sequence.order, []).append((start, copied))

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        """See Drafter."""
        return [None] * len(wishes)

    def drop(self, sequence: Sequence) -> None:
        """See Drafter: what was seen is taken after a text's end."""

    def start_over(self) -> None:
        """See Drafter."""
        self._parts.clear()

    def answers(
        self, prompts: Items[Items[int]], params: Items[SamplingParams]
    ) -> list[tuple[RequestOutput, dict[int, Any]]]:
        """Have prompts answered; with each answer the states (n, width) at all its text's tokens but the
        last, which the model never reads."""
        self._parts.clear()
        drafting = Drafting(self, tokens=1)
        self._llm.driver.call(lambda engine: setattr(engine, "drafting", drafting))
        outs = self._llm.generate([list(ids) for ids in prompts], list(params))
        assert len(self._parts) == len(outs), "each text was read"
        return [
            (out, _joined(self._parts.pop(order)))
            for out, order in zip(outs, sorted(self._parts), strict=True)
        ]


def _joined(parts: Items[tuple[int, dict[int, Any]]]) -> dict[int, Any]:
    """Rows from the first position on; what was read twice is the same."""
    found: dict[int, Any] = {}
    for layers, rows in parts[0][1].items():
        stop = max(start + len(some[layers]) for start, some in parts)
        found[layers] = np.empty((stop, rows.shape[1]), np.float32)
        for start, some in parts:
            found[layers][start : start + len(some[layers])] = some[layers]
    return found
