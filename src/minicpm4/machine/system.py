"""Reading what Linux tells: short files of /proc and /sys, and the control groups of this process."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CPUS", "PROC", "groups", "read_int", "read_text"]

PROC, GROUPS, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")
MAX_TEXT = 1 << 20  # bytes of a file
MAX_DEPTH = 32  # of groups


def read_text(file: Path, limit: int = MAX_TEXT) -> str:
    """The stripped text of a file, up to ``limit`` characters; empty where there is none."""
    try:
        with file.open(encoding="ascii", errors="replace") as lines:
            return lines.read(limit).strip()
    except OSError:
        return ""


def read_int(file: Path) -> int | None:
    """The number in a file; None where there is none ("max")."""
    try:
        return int(read_text(file))
    except ValueError:
        return None


def groups(controller: str) -> list[Path]:
    """Folders of the control groups, of version 2 and 1, that ``controller`` ("cpu", "memory") limits this
    process by: those at the top, its own, and all between them."""
    folders = [GROUPS, GROUPS / controller]
    for line in read_text(PROC / "self" / "cgroup").splitlines()[:64]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        parts = [part for part in path.split("/") if part not in ("", "..")][:MAX_DEPTH]
        folders += [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders
