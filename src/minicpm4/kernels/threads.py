"""How many threads pay: the physical cores that this process may use, within its CPU quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_MAX_TEXT = 4096


def default_threads() -> int:
    """Return the number of threads to compute with, at least 1."""
    quota = cpu_quota()
    cores = physical_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def physical_cores(topology: Path = _TOPOLOGY) -> int:
    """Return how many physical cores this process may run on (logical ones where that is unknown)."""
    cpus = _usable_cpus()
    if cpus is None:
        return os.cpu_count() or 1
    siblings = {_read(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list") or cpu for cpu in cpus}
    return max(1, len(siblings))


def cpu_quota(root: Path = _CGROUP, own: Path = _OWN_CGROUP) -> float | None:
    """Return the CPUs' worth of time that the container allows, or None where there is no limit."""
    limits = [limit for folder in _cgroups(root, own) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _usable_cpus() -> set[int] | None:
    # Not on macOS and Windows.
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else None


def _cgroups(root: Path, own: Path) -> Iterator[Path]:
    """The process's control group and all above it; also those of version 1."""
    yield root
    yield root / "cpu"
    for line in (_read(own) or "").splitlines()[:64]:
        _, _, path = line.partition("::")
        parts = [part for part in path.split("/") if part not in ("", "..")][:32]
        for depth in range(1, len(parts) + 1):
            yield root.joinpath(*parts[:depth])


def _limit(folder: Path) -> float | None:
    words = (_read(folder / "cpu.max") or "").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:
        return None  # "max", or no such file
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(_MAX_TEXT).strip()
    except OSError:
        return None
