"""What this machine is called, and how much of it others use."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

CPUINFO, STAT = Path("/proc/cpuinfo"), Path("/proc/stat")


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def watch_others() -> Callable[[], float | None]:
    """Start watching; the result says which share of all processors others have used since then, 0 to 1.

    None where the system does not tell, or no time has passed.
    """
    began, before, own = time.perf_counter(), _busy_seconds(), sum(os.times()[:2])

    def share() -> float | None:
        now, passed = _busy_seconds(), time.perf_counter() - began
        if before is None or now is None or passed <= 0:
            return None
        others = (now - before) - (sum(os.times()[:2]) - own)
        return min(1.0, max(0.0, others / (passed * (os.cpu_count() or 1))))

    return share


def _busy_seconds() -> float | None:
    """Seconds that all processors together were busy, or taken from this virtual machine, since the start."""
    try:
        with STAT.open(encoding="ascii") as lines:
            ticks = [int(word) for word in lines.readline().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return float(sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
