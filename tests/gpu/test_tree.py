"""Trees of drafts on the GPU's table: see tests/contract/test_tree.py."""

from __future__ import annotations

from typing import Any

import pytest

from minicpm4.model.loader import load_model
from tests.contract.paged import RELEASED, SMALL, config
from tests.contract.test_tree import CHOICES, check_paths
from tests.contract.trees import Forest, check_attention, check_pages, check_selection
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.gpu.arrays import DEVICE, OnArrays

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
GPU = DEVICE.type == "cuda"
NORM = 6e-3 if GPU else 2e-2  # see test_attention.py


@pytest.fixture(scope="module")
def ops() -> OnArrays:
    return OnArrays()


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("base", "d", "group"), [(SMALL, 16, 3), *([(RELEASED, 128, 16)] if GPU else [])])
def test_attention_of_a_path(
    ops: OnArrays, base: dict[str, Any], d: int, group: int, sparse: bool, kv: str
) -> None:
    forest = Forest(config(base, window_size=96 if base is SMALL else 128), (2 * group, 2), d)
    check_attention(ops, forest, kv, sparse=sparse, tolerance=1e-5 if kv == "float32" else NORM)


@pytest.mark.parametrize("base", CHOICES)
def test_choice_by_what_comes_before_the_tree(ops: OnArrays, base: dict[str, Any]) -> None:
    check_selection(ops, Forest(config(base), (4, 2), 16), "float32", 1e-5)


def test_a_tree_leaves_compressed_keys_alone(ops: OnArrays) -> None:
    check_pages(ops, Forest(config(SMALL, lse_approx=True), (4, 2), 16), "float32")


def test_a_tree_has_the_logits_of_its_paths(ops: OnArrays, tmp_path: Any) -> None:
    weights = load_model(make_checkpoint(tmp_path / "model", num_hidden_layers=2)).weights
    check_paths(ops, weights, 1e-3)
