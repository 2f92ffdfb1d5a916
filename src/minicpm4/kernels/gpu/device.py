"""Which device the kernels run on."""

from __future__ import annotations

import torch

from minicpm4.errors import UnsupportedError
from minicpm4.kernels.gpu.products import INTERPRETED
from minicpm4.kernels.gpu.table import GpuOps

__all__ = ["gpu_table", "is_usable"]


def is_usable() -> bool:
    """Whether torch reaches an NVIDIA GPU."""
    return torch.cuda.is_available()


def gpu_table() -> GpuOps:
    """The table of the current GPU; where kernels are interpreted, for tests, of the CPU. Raises
    UnsupportedError."""
    if INTERPRETED.value:
        return GpuOps(torch.device("cpu"))
    if not is_usable():
        raise UnsupportedError(
            "backend 'gpu' finds no NVIDIA GPU that torch can use",
            "install a torch built for CUDA and a driver, or use backend='cpu'",
        )
    return GpuOps(torch.device("cuda", torch.cuda.current_device()))
