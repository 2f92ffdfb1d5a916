"""The draft layer on the GPU's table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.kernels.gpu.device import gpu_table
from minicpm4.kernels.ref import RefOps
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.drafts import Drafter, make_draft

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SPARSE = SparseConfig(kernel_size=8, kernel_stride=4, block_size=16, window_size=32, topk=2, dense_len=-1)


def test_the_draft_layer_is_the_truth_s(tmp_path: Path) -> None:
    weights = load_model(make_checkpoint(tmp_path / "model", num_hidden_layers=1)).weights
    folder = make_draft(tmp_path / "draft", weights.config)
    ids = np.random.default_rng(0).integers(0, 300, 50).tolist()
    _, *want = Drafter(RefOps(), weights, folder, SPARSE).feed(ids, [49])
    _, *found = Drafter(gpu_table(), weights, folder, SPARSE).feed(ids, [48, 1])
    for got, one in zip(found, want, strict=True):
        assert np.linalg.norm(got - one) < 2e-2 * np.linalg.norm(one)
