"""One thread of torch: tensors of these tests are too small for more, which would wait for one another."""

from __future__ import annotations

from contextlib import suppress

import minicpm4.train  # noqa: F401  (says how long waiting threads spin, before torch is loaded)

with suppress(ImportError):
    import torch

    torch.set_num_threads(1)
