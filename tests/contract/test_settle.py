"""Accepted drafts of a tree become text: their keys and values move, bit by bit, and are compressed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Accepted
from tests.contract.paged import RELEASED, SMALL, config
from tests.contract.trees import CHOICES, Forest, accepted, check_settled, path, random_parents, tree_of
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.levels import HALVES, level
from tests.model.driver import Driver

CHAIN = [*range(-1, 39)]
PATHS: dict[str, Any] = {
    "none": ([], [], []),
    "the deepest": (path(random_parents(3, 64), 63), [0], path(random_parents(4, 23), 22)),
    "some": (path(random_parents(3, 64), 40)[:3], [], path(random_parents(4, 23), 5)),
    "all of chains": (range(40), [0], range(40)),
    "the start of chains": (range(17), [], range(1)),
    "into places still to be moved": ([0, 2, 3, 5, 6, 7], [0], [1, 2, 3, 4]),
}


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("paths", PATHS)
def test_accepted_drafts_become_text(any_ops: OpTable, paths: str, kv: str) -> None:
    for base in (*CHOICES, {**RELEASED, "block_size": 32, "lse_approx": True}):
        check_settled(any_ops, settled_forest(config(base), paths), kv, PATHS[paths])


def test_without_sparse_attention_only_tokens_are_moved(any_ops: OpTable) -> None:
    forest = settled_forest(config(SMALL), "into places still to be moved")
    step, layer = replace(forest.step, sparse=None), forest.world.layer(sparse=False)
    k, v = (forest.world.rows(x, forest.ranges) for x in (forest.world.k, forest.world.v))
    any_ops.append(k, v, layer, step)
    any_ops.settle(layer, step, accepted(forest, PATHS["into places still to be moved"]))
    page, start = forest.world.tables[2, 0], forest.starts[2]
    np.testing.assert_array_equal(layer.keys[page, :, :, start + 1], forest.world.k[2][start + 2])


def settled_forest(c: SparseConfig, paths: str) -> Forest:
    """Drafts of which these paths can be accepted."""
    parents: Any = (random_parents(3, 64), [-1], random_parents(4, 23))
    if "chains" in paths:
        parents = (CHAIN, [-1], CHAIN)
    elif "places" in paths:
        parents = ([-1, 0, 0, 2, 3, 3, 5, 6], [-1], [-1, -1, 1, 2, 3])
    return Forest(c, (4, 2), 16, parents)


@pytest.mark.parametrize(
    ("rows", "cu_rows"),
    [
        ([1], [0, 1, 1, 1]),  # a child without its parent
        ([0, 0], [0, 2, 2, 2]),
        ([64], [0, 1, 1, 1]),  # of the next sequence
        ([0], [0, 1, 1]),
        ([0], [0, 0, 0, 0]),
        ([-1], [0, 1, 1, 1]),
    ],
)
def test_what_is_no_path_is_refused(any_ops: OpTable, rows: list[int], cu_rows: list[int]) -> None:
    forest = Forest(config(SMALL), (4, 2), 16, ([-1, 0, *range(62)], [-1], [-1]))
    layer = forest.layer(any_ops, "bf16")
    bad = Accepted(rows=np.array(rows, np.int32), cu_rows=np.array(cu_rows, np.int32))
    with pytest.raises(ValueError, match="accepted rows"):
        any_ops.settle(layer, forest.step, bad)


@pytest.mark.parametrize("sparse", [None, config(SMALL, use_nope=True, lse_approx=True, dense_len=131)])
def test_what_follows_accepted_drafts_follows_text(any_ops: OpTable, tmp_path: Any, sparse: Any) -> None:
    """Rows from position 130 on choose blocks, some by keys of what was accepted; the drafts read all."""
    weights = load_model(make_checkpoint(tmp_path / "model", num_hidden_layers=2)).weights
    text, parents = list(range(5, 95)), random_parents(6, 40)
    drafts = np.random.default_rng(7).integers(4, 300, len(parents)).tolist()
    nodes = path(parents, 39)
    driver, plain = (Driver(any_ops, weights, context=256, sparse=sparse) for _ in range(2))
    driver.feed(text)
    driver.feed(drafts, tree_of((len(text), parents)))
    driver.settle(nodes)
    plain.feed([*text, *(drafts[node] for node in nodes)])
    found, wanted = (each.feed(range(50, 90)) for each in (driver, plain))
    tolerance = 2e-2 if level(any_ops) in HALVES else 2e-4
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())
