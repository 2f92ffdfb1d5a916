"""What a program in the sandbox may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minicpm4.errors import ConfigError

_MB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """``seconds`` of wall time; ``memory``: bytes of address space (Python alone takes some 20 MB of it);
    ``disk``: bytes that it may write into its folder, which are the machine's memory, too, or 0: it can write
    no file at all (where it can, it makes as many empty ones as its time allows, each a kilobyte of the
    kernel's);
    ``output``: bytes written to stdout and stderr together; ``files`` open at once."""

    seconds: float = 10.0
    memory: int = 512 * _MB
    disk: int = 0
    output: int = 1 * _MB
    files: int = 64

    def __post_init__(self) -> None:
        low = {"seconds": 0.1, "memory": 64 * _MB, "disk": 0, "output": 0, "files": 8}
        high = {"seconds": 86_400, "memory": 1 << 40, "disk": 1 << 40, "output": 1 << 32, "files": 1 << 20}
        for name, least in low.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= high[name]):
                raise ConfigError(f"{name} = {value} of a sandbox", f"give {least:,} to {high[name]:,}")
