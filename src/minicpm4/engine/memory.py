"""How much memory this process may still take, and how much it holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def resident_memory() -> int:
    """Bytes that this process holds now; 0 where the system does not tell."""
    try:
        pages = int((PROC / "self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        from minicpm4.engine.metrics import peak_memory

        return peak_memory()


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not tell.

    On Linux the smaller of MemAvailable and what the process's control groups allow; elsewhere what
    the system calls free, or at worst all of the memory less what this process holds.
    """
    limits = [_proc_available(), *_cgroup_available()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _elsewhere()


def _proc_available() -> int | None:
    try:
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_available() -> list[int | None]:
    """What each control group above this process still allows (versions 2 and 1)."""
    found = []
    for folder in _cgroup_folders():
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, used = _read_int(folder / limit), _read_int(folder / usage)
            if most is not None and used is not None:
                found.append(max(most - used + _reclaimable(folder), 0))
    return [*found]


def _cgroup_folders() -> list[Path]:
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = [CGROUPS, CGROUPS / "memory"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        root = CGROUPS if not controllers else CGROUPS / "memory"
        if controllers and "memory" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        folders += [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders


def _reclaimable(folder: Path) -> int:
    """File cache that the system lets go under pressure counts as used, yet is available."""
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def _read_int(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _elsewhere() -> int | None:
    if sys.platform == "win32":
        return _windows_available()
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return max(total - resident_memory(), 0)


def _windows_available() -> int | None:
    import ctypes

    names = ("total_phys", "avail_phys", "total_page", "avail_page", "total_virtual", "avail_virtual", "ext")

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64) for name in names
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  # absent elsewhere
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.avail_phys)
