"""Watches the loss: numbers that are not finite, and spikes. Says which step and which batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Guard", "Verdict"]

WINDOW = 64  # steps that a spike is judged by
LEAST = 16  # of them before any judgement
DEVIATIONS = 6.0
RISE = 0.15  # of the mean: a flat curve's deviations are too small to judge by alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """``skip``: the step must not reach the weights. ``text`` says why; empty: nothing is wrong."""

    skip: bool = False
    text: str = ""


@dataclass(slots=True)
class Guard:
    """Judges each step before the optimiser takes it; its state is small, and kept in checkpoints."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    bad: int = 0  # steps in a row that were skipped

    def judge(self, step: int, loss: float, gradient_norm: float) -> Verdict:
        """Look at a step's mean loss and the norm of its gradient."""
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                self.bad += 1
                return Verdict(skip=True, text=f"step {step}: {name} is {value}; its batch is skipped")
        self.bad = 0
        text = ""
        if len(self.recent) >= LEAST:
            mean = sum(self.recent) / len(self.recent)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in self.recent) / len(self.recent))
            if loss > mean + max(DEVIATIONS * deviation, RISE * abs(mean)):
                text = (
                    f"step {step}: loss {loss:.4f} is a spike above {mean:.4f} ± {deviation:.4f} "
                    f"of the last {len(self.recent)} steps"
                )
        self.recent.append(loss)
        return Verdict(text=text)

    def table(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"recent": list(self.recent), "bad": self.bad}

    @classmethod
    def restored(cls, table: Any) -> Guard:
        """The guard that gave ``table``. Raises ValueError for what none gives."""
        kept: Mapping[str, Any] = table if isinstance(table, Mapping) else {"recent": None}
        recent, bad = kept.get("recent", []), kept.get("bad", 0)
        numbers = isinstance(recent, list) and all(type(x) in (int, float) for x in recent)
        if not numbers or not all(map(math.isfinite, recent)) or type(bad) is not int or bad < 0:
            raise ValueError("its guard holds no losses and no count of skipped steps")
        found = cls(bad=bad)
        found.recent.extend(map(float, recent))
        return found
