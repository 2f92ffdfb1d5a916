"""What a server's process holds under load, and whether that grows (Linux)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Facts = Mapping[str, float]

# Between the second and the last quarter, of a process that is warm by then: the allocator's noise.
MOST = {"MB": 16.0, "threads": 2.0, "files": 4.0}

HELD = ("pages held afterwards", "requests held afterwards")


def facts(pid: int) -> Facts:
    """A process's memory in MB, its threads and its open files. Raises OSError."""
    folder = Path("/proc") / str(pid)
    status = (folder / "status").read_text(encoding="ascii")
    found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.M))
    files = len(list((folder / "fd").iterdir()))
    return {"MB": int(found["VmRSS"]) / 1e3, "threads": int(found["Threads"]), "files": files}


def quarters(seen: Sequence[Facts]) -> dict[str, list[float]]:
    """Medians of the second and of the last quarter, by fact."""
    quarter = max(len(seen) // 4, 1)
    parts = seen[quarter : 2 * quarter] or seen, seen[-quarter:]
    return {name: [median(one[name] for one in part) for part in parts] for name in MOST}


def growth(second: Facts, last: Facts) -> list[str]:
    """What has grown by more than noise, in words."""
    return [
        f"{name} grew from {second[name]:g} to {last[name]:g}"
        for name, most in MOST.items()
        if last[name] > second[name] + most
    ]


def faults(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with a soak, in words; ``found`` is as serving.soak returns it."""
    told = [f"{found['errors']} errors: {found['first errors']}"] if found["errors"] else []
    told += [
        f"{found[name]:g} {name}"
        for name in ("pages held afterwards", "requests held afterwards")
        if found[name]
    ]
    if not 0 < found["told to leave early"] < found["requests"]:
        told.append("no client left early, or every one did")
    second, last = ({name: pair[i] for name, pair in found["quarters"].items()} for i in range(2))
    return told + growth(second, last)
