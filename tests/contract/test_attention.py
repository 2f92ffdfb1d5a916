"""attend: dense and sparse attention over scattered pages against a brute-force float64 truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Selection
from tests.contract.paged import (
    RELEASED,
    SMALL,
    Paged,
    beside_truth,
    chunks,
    config,
)
from tests.levels import PAIRS, level


def rounds_weights(ops: OpTable, c: SparseConfig) -> bool:
    """Whether ``ops`` reads bf16 pages by dot products of bf16 pairs."""
    return level(ops) in PAIRS and c.block_size == 64


SHAPES = [
    (SMALL, 16, 1),
    (SMALL, 80, 2),
    ({**SMALL, "block_size": 32}, 256, 3),
    (RELEASED, 64, 16),
    (RELEASED, 64, 3),
    ({**RELEASED, "block_size": 128, "window_size": 256, "topk": 2}, 128, 8),
    (RELEASED, 128, 32),
]


def run(ops: OpTable, world: Paged, kv: str, *, sparse: bool) -> tuple[Any, Selection | None]:
    layer, step, q = world.filled(ops, kv), world.step(), world.rows(world.q)
    selection = ops.select(q, layer, step) if sparse else None
    return ops.attend(q, layer, step, selection), selection


def check(
    world: Paged, out: Any, selection: Selection | None, kv: str, every: int, exact: bool = True
) -> None:
    """Not ``exact``: weights are rounded to bf16, which errs by up to 2^-8 of each."""
    for found, truth in beside_truth(world, out, selection, kv, every):
        if exact:
            np.testing.assert_allclose(found, truth, rtol=1e-4, atol=2e-6)
        else:
            assert np.linalg.norm(found - truth) < 2e-3 * np.linalg.norm(truth)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("base", "d", "group"), SHAPES)
def test_matches_the_truth(
    ops: OpTable, base: dict[str, Any], d: int, group: int, sparse: bool, kv: str
) -> None:
    c = config(base)
    pages = 7 if group * d < 1024 else 4
    world = Paged(21, c, [pages * c.block_size + 3, 1, c.block_size], (2 * group, 2), d)
    out, selection = run(ops, world, kv, sparse=sparse)
    check(world, out, selection, kv, every=31, exact=kv == "float32" or not rounds_weights(ops, c))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
def test_numpy_matches_the_truth(sparse: bool, kv: str) -> None:
    world = Paged(20, config(SMALL, lse_approx=True), [90, 1, 40], (6, 2), 16)
    out, selection = run(RefOps(), world, kv, sparse=sparse)
    check(world, out, selection, kv, every=3)


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group_size(ops: OpTable, group: int) -> None:
    world = Paged(group, config(SMALL), [90, 40], (2 * group, 2), 16)
    out, selection = run(ops, world, "bf16", sparse=True)
    check(world, out, selection, "bf16", every=13)


@pytest.mark.parametrize("base", [SMALL, RELEASED])
def test_covering_budget_is_dense_attention(ops: OpTable, base: dict[str, Any]) -> None:
    world = Paged(22, config(base, topk=40), [500, 130], (4, 2), 64)
    sparse, _ = run(ops, world, "float32", sparse=True)
    dense, _ = run(ops, world, "float32", sparse=False)
    np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_prefill_in_chunks_is_prefill_in_one_piece(ops: OpTable, size: int, sparse: bool) -> None:
    world = Paged(23, config(SMALL, lse_approx=True), [170], (6, 2), 16)
    whole, selection = run(ops, world, "bf16", sparse=sparse)
    layer = world.layer("bf16")
    for a, b in chunks(170, size):
        step, q = world.step([(a, b)]), world.rows(world.q, [(a, b)])
        world.append(ops, layer, [(a, b)])
        part = ops.select(q, layer, step) if sparse else None
        if part and selection:
            np.testing.assert_array_equal(part.blocks, selection.blocks[a:b])
        np.testing.assert_array_equal(ops.attend(q, layer, step, part), whole[a:b])


@pytest.mark.parametrize("sparse", [False, True])
def test_one_row_of_a_long_context(ops: OpTable, sparse: bool) -> None:
    """Decoding splits one row's pages among threads."""
    world = Paged(24, config(SMALL, topk=60), [16 * 150 + 5, 40], (4, 1), 16)
    layer, rows = world.filled(ops), [(16 * 150 + 4, 16 * 150 + 5), (39, 40)]
    step, q = world.step(rows), world.rows(world.q, rows)
    selection = ops.select(q, layer, step) if sparse else None
    out = ops.attend(q, layer, step, selection)
    for found, truth in beside_truth(world, out, selection, "float32", 1, rows):
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=2e-6)


def test_a_few_rows_of_a_long_context(ops: OpTable) -> None:
    """Draft tokens: rows of one tile with different lists of pages, split among threads."""
    world = Paged(25, config(SMALL, topk=40, dense_len=16 * 100 + 3), [16 * 100 + 6], (4, 2), 16)
    layer, rows = world.filled(ops), [(16 * 100, 16 * 100 + 6)]
    step, q = world.step(rows), world.rows(world.q, rows)
    selection = ops.select(q, layer, step)
    assert (selection.counts[:2] == -1).all() and (selection.counts[2:] > 0).all()
    out = ops.attend(q, layer, step, selection)
    for found, truth in beside_truth(world, out, selection, "float32", 1, rows):
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
def test_tokens_behind_a_row_never_leak(ops: OpTable, sparse: bool, kv: str) -> None:
    """Later tokens of the same chunk hold NaN and infinity; earlier rows stay what they were."""
    check_no_leak(ops, kv, sparse=sparse)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
def test_no_leak_in_numpy(kv: str) -> None:
    check_no_leak(RefOps(), kv, sparse=True)


def check_no_leak(ops: OpTable, kv: str, *, sparse: bool) -> None:
    world = Paged(26, config(SMALL), [120], (6, 2), 16)
    clean, _ = run(ops, world, kv, sparse=sparse)
    world.k[0][101], world.v[0][103], world.v[0][110] = np.nan, np.nan, np.inf
    with np.errstate(invalid="ignore"):
        dirty, _ = run(ops, world, kv, sparse=sparse)
    np.testing.assert_allclose(dirty[:101], clean[:101], rtol=1e-5, atol=1e-6)
    assert np.isnan(dirty[103:105]).all()


def test_large_scores_do_not_overflow(ops: OpTable) -> None:
    world = Paged(27, config(SMALL), [100], (2, 1), 16)
    world.q[0] *= 1e3
    world.k[0] *= 1e2
    out, _ = run(ops, world, "float32", sparse=False)
    check(world, out, None, "float32", every=9)


def test_no_rows(ops: OpTable) -> None:
    world = Paged(28, config(SMALL), [20, 20], (2, 1), 16)
    ranges = [(0, 0), (5, 5)]
    q, step = world.rows(world.q, ranges), world.step(ranges)
    layer = world.filled(ops)
    assert ops.attend(q, layer, step, ops.select(q, layer, step)).shape == (0, 32)
