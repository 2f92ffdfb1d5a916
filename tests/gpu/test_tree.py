"""Trees of drafts on the GPU's table: see tests/contract/test_tree.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.paged import RELEASED, SMALL, config
from tests.contract.test_settle import PATHS, settled_forest
from tests.contract.test_tree import AROUND, check_paths
from tests.contract.trees import (
    CHOICES,
    Forest,
    check_attention,
    check_decoded,
    check_pages,
    check_selection,
    check_settled,
    random_parents,
)
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.gpu.arrays import DEVICE, OnArrays

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
GPU = DEVICE.type == "cuda"
NORM = 6e-3 if GPU else 2e-2  # see test_attention.py
SIZES = (64, 1, 23) if GPU else (14, 1, 5)  # the interpreter is slow
PARENTS = [random_parents(3 + i, count) for i, count in enumerate(SIZES)]


@pytest.fixture(scope="module")
def ops() -> OnArrays:
    return OnArrays()


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("base", "d", "group"), [(SMALL, 16, 3), *([(RELEASED, 128, 16)] if GPU else [])])
def test_attention_of_a_path(
    ops: OnArrays, base: dict[str, Any], d: int, group: int, sparse: bool, kv: str
) -> None:
    forest = Forest(config(base, window_size=96 if base is SMALL else 128), (2 * group, 2), d, PARENTS)
    check_attention(ops, forest, kv, sparse=sparse, tolerance=1e-5 if kv == "float32" else NORM)


@pytest.mark.parametrize("base", CHOICES)
def test_choice_by_the_text_that_a_path_makes(ops: OnArrays, base: dict[str, Any]) -> None:
    check_selection(ops, Forest(config(base), (4, 2), 16, PARENTS), "float32", 1e-5)


@pytest.mark.parametrize(
    ("around", "kv"),
    [(around, kv) for around in AROUND for kv in ("float32", "bf16")]
    if GPU
    else [("coarse keys", "bf16"), ("pages of 4", "float32")],
)
def test_a_row_is_its_path_decoded_token_by_token(ops: OnArrays, around: str, kv: str) -> None:
    base, starts = AROUND[around]
    forest = Forest(config(base), (6, 2), 32, PARENTS, starts)
    assert check_decoded(ops, forest, kv, 1e-5 if kv == "float32" else NORM) > 13


def test_rows_that_see_more_compressed_keys_than_a_program_takes_at_once(ops: OnArrays) -> None:
    c = config({**SMALL, "kernel_size": 2, "kernel_stride": 1})
    forest = Forest(c, (2, 1), 16, [[-1, 0, 0, 1], [-1], [-1]], [150, 1, 0])
    assert check_decoded(ops, forest, "float32", 1e-5) == 4


def test_a_tree_leaves_compressed_keys_alone(ops: OnArrays) -> None:
    check_pages(ops, Forest(config(SMALL, lse_approx=True), (4, 2), 16), "float32")


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("paths", PATHS)
def test_accepted_drafts_become_text(ops: OnArrays, paths: str, kv: str) -> None:
    for base in CHOICES if GPU else CHOICES[1:2]:
        check_settled(ops, settled_forest(config(base), paths), kv, PATHS[paths])


def test_a_tree_has_the_logits_of_its_paths(ops: OnArrays, tmp_path: Any) -> None:
    weights = load_model(make_checkpoint(tmp_path / "model", num_hidden_layers=2)).weights
    check_paths(ops, weights, 1e-3)
