"""Where strangers' code runs: bubblewrap's command line, and whether this machine can make such a place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from minicpm4.errors import UnsupportedError
from minicpm4.sandbox import filter as calls
from minicpm4.sandbox.limits import Limits

__all__ = ["FOLDER", "PYTHON", "command", "require_sandbox"]

FOLDER = "/box"  # the program's own, empty but for the files it is given
# Not the virtual environment's: its packages, and what lies beside it, are none of the program's business.
PYTHON = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
_PAGE = 4096
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")


@cache
def require_sandbox() -> None:
    """Raises UnsupportedError, with what to install or allow, unless programs can be locked in here."""
    if not sys.platform.startswith("linux"):
        raise UnsupportedError(
            f"no sandbox on {sys.platform}", "run this on Linux, with bubblewrap installed"
        )
    for tool, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux")):
        if shutil.which(tool) is None:
            raise UnsupportedError(f"the sandbox needs {tool}, which is not here", f"apt install {package}")
    calls.program()
    tried = subprocess.run(
        [*_bubblewrap(Limits(), {}), "--", "/usr/bin/true"], capture_output=True, timeout=60, check=False
    )
    if tried.returncode:
        said = tried.stderr.decode(errors="replace").strip()[:200]
        raise UnsupportedError(
            f"bubblewrap cannot make namespaces here: {said}",
            "allow them (sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0; a container needs the right to make them)",
        )


def command(argv: Sequence[str], limits: Limits, files: Mapping[str, int], filtered: int) -> list[str]:
    """``argv`` in the sandbox. ``files``: open descriptors by name in FOLDER; ``filtered``: the filter's."""
    bounds = [
        shutil.which("prlimit") or "prlimit",
        f"--as={limits.memory}",
        f"--cpu={int(limits.seconds) + 1}",
        f"--fsize={limits.disk}",
        f"--nofile={limits.files}",
        "--core=0",
        "--memlock=0",
        "--msgqueue=0",
    ]
    return [*_bubblewrap(limits, files), "--seccomp", str(filtered), "--", *bounds, "--", *argv]


def _bubblewrap(limits: Limits, files: Mapping[str, int]) -> list[str]:
    return [
        *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox"),
        *(part for place in _readable() for part in ("--ro-bind-try", place, place)),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(limits.disk + sum(_pages(fd) for fd in files.values()) or _PAGE)),
        *("--tmpfs", FOLDER, "--symlink", FOLDER, "/tmp"),
        *(part for name, fd in files.items() for part in ("--file", str(fd), f"{FOLDER}/{name}")),
        *(() if limits.disk else ("--remount-ro", FOLDER)),
        *("--remount-ro", "/", "--chdir", FOLDER),
        *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", FOLDER, "--setenv", "LANG", "C.UTF-8"),
    ]


def _pages(fd: int) -> int:
    """Bytes that the file takes there."""
    return -(-os.fstat(fd).st_size // _PAGE) * _PAGE


def _readable() -> list[str]:
    """Folders that hold Python and the libraries of the system; no home, no configuration."""
    prefix = os.path.realpath(sys.base_prefix)
    inside = any(prefix == one or prefix.startswith(one + "/") for one in _SYSTEM)
    return [*_SYSTEM] if inside else [*_SYSTEM, sys.base_prefix]
