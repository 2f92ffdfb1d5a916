"""Training: the same model as the engine runs, over ops with gradients. Needs the extra ``train``."""

from __future__ import annotations

import os

from minicpm4.errors import UnsupportedError

__all__ = ["need_torch"]

# Read by libgomp when torch loads it. Its threads otherwise spin for 300,000 rounds at the end of every
# product, and where anything else wants the core, a step takes ten times as long (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def need_torch(threads: int | None = None) -> None:
    """Raise UnsupportedError without torch; give it so many ``threads``."""
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            f"training needs torch ({error})", "in the checkout: pip install -e '.[train]'"
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)
