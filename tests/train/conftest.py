"""One thread of torch: tensors of these tests are too small for more, which would wait for one another."""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError):
    import torch

    torch.set_num_threads(1)
