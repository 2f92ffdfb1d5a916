"""Rows that are a tree of drafts: each reads the text before and its own path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Step, Tree
from tests.contract.paged import RELEASED, SMALL, config
from tests.contract.test_attention import rounds_weights
from tests.contract.trees import (
    CHOICES,
    Forest,
    check_attention,
    check_decoded,
    check_pages,
    check_selection,
    path,
    random_parents,
    tree_of,
)
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.levels import HALVES, level
from tests.model.driver import Driver

KV = ["float32", "bf16", "int8"]
SHAPES = {
    "pages of 16": ({**SMALL, "window_size": 96}, (6, 2), 16),
    "pages of 64": (RELEASED, (8, 2), 64),
    "pages of 64, few heads": ({**RELEASED, "window_size": 192}, (2, 2), 32),
    "pages of 64, heads of 80": (RELEASED, (5, 1), 80),
    "pages of 128": ({**RELEASED, "block_size": 128, "window_size": 256, "topk": 2}, (4, 1), 32),
}


@lru_cache(maxsize=8)
def forest_of(shape: str) -> Forest:
    base, heads, d = SHAPES[shape]
    return Forest(config(base), heads, d)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_of_a_path(any_ops: OpTable, shape: str, kv: str, sparse: bool) -> None:
    forest = forest_of(shape)
    rough = kv != "float32" and rounds_weights(any_ops, forest.world.sparse)
    check_attention(any_ops, forest, kv, sparse=sparse, tolerance=3e-3 if rough else 1e-5)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("base", [*CHOICES, {**RELEASED, "lse_approx": True}])
def test_choice_by_the_text_that_a_path_makes(any_ops: OpTable, base: dict[str, Any], kv: str) -> None:
    check_selection(any_ops, Forest(config(base), (4, 2), 16), kv, 1e-5 if kv == "float32" else 5e-4)


# Of three sequences: trees reach over where blocks and windows begin and end, and one over dense_len.
AROUND: dict[str, tuple[dict[str, Any], list[int]]] = {
    "pages of 16": ({**SMALL, "dense_len": 131}, [16 * 8 - 3, 16 * 5 - 1, 0]),
    "coarse keys": ({**SMALL, "lse_approx": True, "use_nope": True, "kernel_size": 16}, [100, 63, 129]),
    "pages of 4": ({**SMALL, "block_size": 4, "window_size": 8, "kernel_size": 12}, [61, 30, 2]),
    "one key each": ({**SMALL, "kernel_size": 1, "kernel_stride": 1, "lse_approx": True}, [130, 95, 81]),
    "pages of 64": ({**RELEASED, "lse_approx": True, "window_size": 64}, [64 * 5 - 9, 64 * 4 - 20, 250]),
    "long keys": ({**RELEASED, "kernel_size": 128, "kernel_stride": 64}, [64 * 5 - 30, 64 * 5, 64 * 6 + 1]),
    "many keys": ({**SMALL, "kernel_size": 2, "kernel_stride": 1}, [500, 510, 460]),
}


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("around", AROUND)
def test_a_row_is_its_path_decoded_token_by_token(any_ops: OpTable, around: str, kv: str) -> None:
    base, starts = AROUND[around]
    trees = [random_parents(seed, count) for seed, count in ((8, 64), (9, 17), (10, 40))]
    forest = Forest(config(base), (6, 2), 32, trees, starts)
    assert check_decoded(any_ops, forest, kv) > 30


@pytest.mark.parametrize("kv", KV)
def test_a_tree_leaves_compressed_keys_alone(any_ops: OpTable, kv: str) -> None:
    check_pages(any_ops, Forest(config(SMALL, lse_approx=True), (4, 2), 16), kv)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("base", [SMALL, RELEASED])
def test_what_a_row_does_not_read_does_not_reach_it(any_ops: OpTable, base: dict[str, Any], kv: str) -> None:
    """Drafts 3 and 6 are not finite; nor is what comes of those that follow one of them, and of no others."""
    parents = [-1, 0, 0, 1, 2, 4, 1, 3, 6, 5]
    dirty = Forest(config(base), (4, 2), 16, (parents, [-1], parents))
    clean = any_ops.attend(dirty.q, dirty.layer(any_ops, kv), dirty.step, None)
    for s, start in ((0, dirty.starts[0]), (2, 0)):
        dirty.world.k[s][start + 3, :, 5], dirty.world.v[s][start + 6] = np.nan, np.inf
    found = any_ops.attend(dirty.q, dirty.layer(any_ops, kv), dirty.step, None)
    bad = [node for node in range(10) if {3, 6} & {*path(parents, node)}]
    rows = [*bad, *(11 + node for node in bad)]
    assert not np.isfinite(found[rows]).all(axis=1).any()
    good = np.setdiff1d(np.arange(len(found)), rows)
    np.testing.assert_allclose(found[good], clean[good], rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_chain_has_the_bits_of_plain_rows(any_ops: OpTable, shape: str, kv: str) -> None:
    """Of attention, over everything and over the same blocks."""
    base, heads, d = SHAPES[shape]
    forest = Forest(config(base), heads, d, ([*range(-1, 63)], [-1], [*range(-1, 22)]))
    plain, layer = forest.world.step(forest.ranges), forest.layer(any_ops, kv)
    chosen = any_ops.select(forest.q, layer, forest.step)
    for selection in (None, chosen):
        one, other = (any_ops.attend(forest.q, layer, step, selection) for step in (forest.step, plain))
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(make_checkpoint(tmp_path_factory.mktemp("model"), num_hidden_layers=2)).weights


def test_a_tree_has_the_logits_of_its_paths(any_ops: OpTable, weights: Any) -> None:
    check_paths(any_ops, weights, 2e-2 if level(any_ops) in HALVES else 2e-4)


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


BAD_TREES: dict[str, Callable[[Step], Tree]] = {
    "a row without itself": lambda step: _ancestors(step, 5, 0b1111),
    "a later row": lambda step: _ancestors(step, 5, 0b11100001),
    "ancestors of too few rows": lambda step: Tree(
        ancestors=_tree(step).ancestors[:-1], positions=_tree(step).positions
    ),
    "an angle beyond the table": lambda step: Tree(
        ancestors=_tree(step).ancestors, positions=_tree(step).positions + 4096
    ),
}


@pytest.mark.parametrize("fault", BAD_TREES)
def test_what_is_no_tree_is_refused(ops: OpTable, fault: str) -> None:
    forest = Forest(config(SMALL, use_nope=True), (4, 2), 16)
    layer = forest.layer(ops, "bf16")
    with pytest.raises(ValueError, match=r"ancestors|positions"):
        ops.select(forest.q, layer, replace(forest.step, tree=BAD_TREES[fault](forest.step)))


def test_a_tree_of_more_rows_than_bits_is_refused(ops: OpTable) -> None:
    forest = Forest(config(SMALL), (4, 2), 16, ([-1] * 64, [-1], [-1]))
    start, world = forest.starts[0] - 1, forest.world
    step = world.step([(start, start + 65), (0, 0), (0, 0)])
    tree = Tree(
        ancestors=np.uint64(1) << np.minimum(np.arange(65, dtype=np.uint64), 63), positions=step.positions
    )
    with pytest.raises(ValueError, match="more than 64 rows"):
        ops.attend(world.q[0][start:], world.layer(), replace(step, tree=tree), None)


def _ancestors(step: Step, row: int, bits: int) -> Tree:
    ancestors = _tree(step).ancestors.copy()
    ancestors[row] = bits
    return replace(_tree(step), ancestors=ancestors)


def _tree(step: Step) -> Tree:
    assert step.tree is not None
    return step.tree
