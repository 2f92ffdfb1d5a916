"""What a device computes at most, measured: the share of it that training reaches is logged as ``mfu``.

Data sheets promise what a device with these clocks, this power limit and this library does not give. So the
peak is that of one product of large square matrices, in the run's precision, by the same torch: the best of
several. It is measured once and kept in the run's folder (``peak.json``), so that shares of one run are of
one peak.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minicpm4.errors import TrainingError
from minicpm4.files import read_json, write_json
from minicpm4.machine import available_memory
from minicpm4.train.saved import PEAK
from minicpm4.train.world import World

__all__ = ["Peak", "measured_here", "peak_of"]

MAX_FILE = 1 << 16
SIZES = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices, by device
SECONDS, LEAST = 0.3, 5  # as many products as fit in, and no fewer
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """``flops_per_s`` of one process; ``device``, ``precision``, ``threads`` and ``size``: what it was
    measured with."""

    device: str
    precision: str
    threads: int
    size: int
    flops_per_s: float

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return (
            f"peak of a process {self.flops_per_s / 1e12:.4g} TFLOP/s: measured, product of {self.size} x "
            f"{self.size} matrices in {self.precision} on {self.device}{threads}"
        )


def peak_of(run: Path, device: torch.device, precision: str) -> Peak:
    """The peak of ``device``: what the run's folder says of the same device, precision and threads, else
    measured now (under a second) and kept there."""
    about = _about(device, precision)
    known = _read(run / PEAK)
    value = known.get("flops_per_s")
    same = all(known.get(name) == wanted for name, wanted in about.items())
    if same and isinstance(value, float) and 0 < value < 1e24:
        return Peak(**about, flops_per_s=value)
    found = _measured(device, precision)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / PEAK, asdict(found))
    return found


def measured_here(precision: str) -> tuple[Peak, int | None]:
    """The peak of the device that a run here takes, measured now and kept nowhere; and the memory that it has
    left, None where that is not known."""
    device = World().device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return _measured(device, precision), free


def _about(device: torch.device, precision: str) -> dict[str, Any]:
    cpu = device.type == "cpu"
    return {
        "device": (platform.processor() or platform.machine() if cpu else torch.cuda.get_device_name(device)),
        "precision": precision,
        "threads": torch.get_num_threads() if cpu else 0,
        "size": SIZES["cpu" if cpu else "cuda"],
    }


def _measured(device: torch.device, precision: str) -> Peak:
    about = _about(device, precision)
    return Peak(**about, flops_per_s=_measure(device, TYPES[precision], about["size"]))


def _read(file: Path) -> dict[str, Any]:
    """The table in ``file``; empty where it cannot be read: then it is measured again."""
    try:
        return read_json(file, MAX_FILE, TrainingError)
    except TrainingError:
        return {}


@torch.no_grad()
def _measure(device: torch.device, dtype: torch.dtype, size: int) -> float:
    # A generator of its own: nothing else may come out differently for this.
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=random, device=device).to(dtype) for _ in range(2))
    best, began, count = float("inf"), time.perf_counter(), 0
    while count < LEAST or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, count = min(best, time.perf_counter() - start), count + 1
    return 2.0 * size**3 / best
