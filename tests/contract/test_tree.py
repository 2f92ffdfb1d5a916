"""Rows that are a tree of drafts: each reads the text before and its own path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.model.loader import load_model
from tests.contract.paged import SMALL, config
from tests.contract.trees import (
    Forest,
    check_attention,
    check_pages,
    check_selection,
    path,
    random_parents,
    tree_of,
)
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.driver import Driver

CHOICES: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "lse_approx": True, "use_nope": True, "init_blocks": 0},
    {**SMALL, "kernel_size": 40, "topk": 4},
]


@pytest.fixture(scope="module")
def forest() -> Forest:
    return Forest(config(SMALL, window_size=96), (6, 2), 16)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
def test_attention_of_a_path(forest: Forest, kv: str, sparse: bool) -> None:
    check_attention(RefOps(), forest, kv, sparse=sparse, tolerance=1e-5)


@pytest.mark.parametrize("base", CHOICES)
def test_choice_by_what_comes_before_the_tree(base: dict[str, Any]) -> None:
    check_selection(RefOps(), Forest(config(base), (4, 2), 16), "float32", 1e-5)


@pytest.mark.parametrize("kv", ["float32", "bf16"])
def test_a_tree_leaves_compressed_keys_alone(kv: str) -> None:
    check_pages(RefOps(), Forest(config(SMALL, lse_approx=True), (4, 2), 16), kv)


def test_a_tree_has_the_logits_of_its_paths(tmp_path: Any) -> None:
    weights = load_model(make_checkpoint(tmp_path / "model", num_hidden_layers=2)).weights
    check_paths(RefOps(), weights, 2e-4)


def check_paths(ops: OpTable, weights: Any, tolerance: float) -> None:
    """Text, then a tree, against text and each path, one after another."""
    text, parents = list(range(5, 42)), random_parents(6, 20)
    drafts = np.random.default_rng(7).integers(4, 300, len(parents)).tolist()
    driver = Driver(ops, weights, context=128)
    driver.feed(text)
    found = driver.feed(drafts, tree_of((len(text), parents)))
    for node in {len(parents) - 1, 0, 7, 11, 15}:
        plain = Driver(ops, weights, context=128, seed=node)
        nodes = path(parents, node)
        wanted = plain.feed([*text, *(drafts[i] for i in nodes)])[-1]
        np.testing.assert_allclose(found[node], wanted, atol=tolerance * np.abs(wanted).max())


def test_kernels_of_the_cpu_say_that_they_read_none(forest: Forest, ops: OpTable) -> None:
    with pytest.raises(UnsupportedError, match="no trees"):
        ops.attend(forest.q, forest.world.layer(), forest.step, None)
