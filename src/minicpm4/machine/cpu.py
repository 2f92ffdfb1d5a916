"""The processor: its name, the cores that this process may use, and how much of them others use."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from minicpm4.machine import system

__all__ = [
    "MAX_THREADS",
    "cpu_name",
    "cpu_quota",
    "default_threads",
    "logical_cores",
    "physical_cores",
    "total_cores",
    "watch_others",
]

MAX_THREADS = 1024  # that anybody may ask for


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    # The first of its entries has it; making up all of them takes a while where there are many cores.
    for line in system.read_text(system.PROC / "cpuinfo", 1 << 12).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def default_threads() -> int:
    """How many threads pay, at least 1: the physical cores that this process may use, within its quota."""
    quota, cores = cpu_quota(), physical_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def logical_cores() -> int:
    """Logical processors that this process may run on."""
    return len(_usable_cpus())


def total_cores() -> int:
    """Logical processors of the machine, those that this process may not use included."""
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores that this process may run on (logical ones where that is unknown)."""
    siblings = {
        system.read_text(system.CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or cpu
        for cpu in _usable_cpus()
    }
    return len(siblings)


def cpu_quota() -> float | None:
    """Processors' worth of time that the container allows, None where there is no limit."""
    limits = [limit for folder in system.groups("cpu") if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


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
        return min(1.0, max(0.0, others / (passed * total_cores())))

    return share


def _usable_cpus() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return set(affinity(0)) if affinity else set(range(total_cores()))


def _limit(folder: Path) -> float | None:
    words = system.read_text(folder / "cpu.max").split()
    if not words:
        words = [system.read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:
        return None  # "max", or no such file
    return quota / period if quota > 0 and period > 0 else None


def _busy_seconds() -> float | None:
    """Seconds that all processors together were busy, or taken from this virtual machine, since the start."""
    try:
        line = system.read_text(system.PROC / "stat", 1 << 10).partition("\n")[0]
        ticks = [int(word) for word in line.split()[1:9]]
        idle = ticks[3] + ticks[4]
        return float(sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError, AttributeError):
        return None
