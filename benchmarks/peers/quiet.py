"""How much of the machine somebody else used during a run: what makes a result worthless."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
LOUD = 0.15  # cores: with more, peers that spin at barriers (OpenMP) lose far more than their share


class Watch:
    """Counts processor time from its making on; Linux only, elsewhere everything is None."""

    def __init__(self) -> None:
        self._start = (time.monotonic(), _machine(), _ours())

    def others(self) -> dict[str, float] | None:
        """Cores used on average by processes that are neither this one nor its ended children, and
        cores withheld by the host (stolen)."""
        began, before, ours = self._start
        now = _machine()
        if before is None or now is None:
            return None
        seconds = time.monotonic() - began
        busy = now[0] - before[0] - (_ours() - ours)
        return {"others": max(busy, 0.0) / seconds, "stolen": (now[1] - before[1]) / seconds}


def is_loud(found: dict[str, float] | None) -> bool:
    """Whether figures taken meanwhile should not be quoted."""
    return found is not None and sum(found.values()) > LOUD


def _machine() -> tuple[float, float] | None:
    """Seconds of all processors at work, and stolen, since the start of the system."""
    try:
        fields = [int(word) for word in STAT.read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _wait, irq, soft, stolen = fields
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft) / tick, stolen / tick


def _ours() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
