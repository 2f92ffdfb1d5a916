"""How much memory this process may still take, how much it holds, and how much it has held."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from minicpm4.machine import system

__all__ = ["available_memory", "give_back_freed", "peak_memory", "resident_memory"]


def resident_memory() -> int:
    """Bytes that this process holds now; 0 where the system does not tell."""
    try:
        return int(system.read_text(system.PROC / "self" / "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return peak_memory()


def peak_memory() -> int:
    """The most bytes that this process has held; 0 where the system does not tell."""
    # Linux's getrusage begins with what the process held that started this one.
    found = _kilobytes(system.PROC / "self" / "status", "VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not tell.

    On Linux the smallest of MemAvailable and what the process's control groups and its own limits (``ulimit
    -v``, ``-d``) allow; elsewhere what the system calls free, or at worst all of the memory less what this
    process holds.
    """
    limits = [
        _kilobytes(system.PROC / "meminfo", "MemAvailable"),
        *map(_left, system.groups("memory")),
        _left_of("RLIMIT_AS", "VmSize"),
        _left_of("RLIMIT_DATA", "VmData"),
    ]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _elsewhere()


def give_back_freed() -> None:
    """Have the C library give the system what has been freed and it keeps for later, where it can (glibc)."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(file: Path, name: str) -> int | None:
    """What a line ``NAME: 123 kB`` says, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", system.read_text(file), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _left(group: Path) -> int | None:
    """What a control group (version 2 or 1) still allows."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, used = system.read_int(group / limit), system.read_int(group / usage)
        if most is not None and used is not None:
            return max(most - used + _reclaimable(group), 0)
    return None


def _left_of(limit: str, used: str) -> int | None:
    """What a limit of this process still allows, of which ``used`` in /proc/self/status is taken."""
    taken = _kilobytes(system.PROC / "self" / "status", used)
    if taken is None:
        return None
    import resource  # where /proc is, this is

    most = resource.getrlimit(getattr(resource, limit))[0]
    return None if most == resource.RLIM_INFINITY else max(most - taken, 0)


def _reclaimable(group: Path) -> int:
    """File cache that the system lets go under pressure counts as used, yet is available."""
    text = system.read_text(group / "memory.stat")
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


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


def human(size: int) -> str:
    """``"1.5 GB"``: bytes in powers of 1000, three digits or so."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit in ("B", "kB") or value >= 100 else f"{value:.2f} {unit}"
        value /= 1000
    raise AssertionError
