"""Training: the same model as the engine runs, over ops with gradients. Needs the extra ``train``."""

from __future__ import annotations

import os

from minicpm4.config.strict import require
from minicpm4.errors import UnsupportedError

__all__ = ["need_torch"]

# Read by libgomp when torch loads it. Its threads otherwise spin for 300,000 rounds at the end of every
# product, and where anything else wants the core, a step takes ten times as long (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def need_torch(threads: int | None = None) -> None:
    """Raise UnsupportedError without torch, ConfigError for an odd number of ``threads``; else set it."""
    require(threads is None or 1 <= threads <= 1024, f"--threads {threads} is not from 1 to 1024")
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(f"training needs torch ({error})", "pip install 'minicpm4[train]'") from error
    if threads is not None:
        torch.set_num_threads(threads)
