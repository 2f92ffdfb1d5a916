"""Training tests need torch, and one thread of it: their tensors are too small for more."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
