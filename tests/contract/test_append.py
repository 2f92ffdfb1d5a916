"""append: what is stored, and the compressed keys that end in the new tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from tests.contract.paged import RELEASED, SMALL, Paged, chunks, config, rounded, unrotated

CASES: list[dict[str, Any]] = [
    {**SMALL},
    {**SMALL, "lse_approx": True},
    {**SMALL, "use_nope": True, "lse_approx": True},
    {**SMALL, "kernel_size": 40},  # longer than a page
    {**SMALL, "kernel_size": 4},
    {**RELEASED, "lse_approx": True},
    {**RELEASED, "block_size": 128, "lse_approx": True},
    {**RELEASED, "block_size": 32, "lse_approx": True},  # two pages for each coarse kernel
]


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_pages_hold_rounded_tokens_and_means(ops: OpTable, case: dict[str, Any], kv: str) -> None:
    world = Paged(1, config(case), [300, 1, 77], heads=(4, 2), d=16)
    layer = world.filled(ops, kv)
    for s, table in enumerate(world.tables):
        k, v = rounded(world.k[s], kv), rounded(world.v[s], kv)
        size = world.sparse.block_size
        for t in range(world.lengths[s]):
            page = table[t // size]
            np.testing.assert_array_equal(_decoded(layer.keys[page, :, :, t % size]), k[t])
            np.testing.assert_array_equal(_decoded(layer.values[page, :, t % size]), v[t])
        check_means(layer.kernels, world, table, k, 1)
        if layer.coarse is not None:
            check_means(layer.coarse, world, table, k, 4)


@pytest.mark.parametrize("case", CASES)
def test_numpy_compresses_to_means(case: dict[str, Any]) -> None:
    world = Paged(6, config(case), [300, 1, 77], heads=(4, 2), d=16)
    layer = world.filled(RefOps())
    for s, table in enumerate(world.tables):
        check_means(layer.kernels, world, table, world.k[s].astype(np.float64), 1)
        if layer.coarse is not None:
            check_means(layer.coarse, world, table, world.k[s].astype(np.float64), 4)


def check_means(store: Any, world: Paged, table: Any, k: Any, times: int) -> None:
    """Every kernel that fits into the tokens is the mean of its keys, in the page of its last token."""
    c, n = world.sparse, len(k)
    if c.use_nope:
        k = unrotated(k, world.cos[:n], world.sin[:n])
    stride, size = c.kernel_stride * times, c.kernel_size * times
    for first in range(0, n - size + 1, stride):
        last = first + size - 1
        found = store[table[last // c.block_size], :, last % c.block_size // stride]
        np.testing.assert_allclose(found, k[first : first + size].mean(axis=0), rtol=1e-6, atol=1e-6)


def _decoded(x: Any) -> Any:
    return x if x.dtype == np.float32 else (x.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_store_the_same_bits(ops: OpTable, size: int) -> None:
    world = Paged(2, config(SMALL, lse_approx=True, use_nope=True), [150], heads=(2, 2), d=16)
    whole, parts = world.filled(ops, "bf16"), world.layer("bf16")
    for part in chunks(150, size):
        world.append(ops, parts, [part])
    for name in ("keys", "values", "kernels", "coarse"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_nothing_but_the_new_tokens_is_written(ops: OpTable) -> None:
    world = Paged(3, config(SMALL, lse_approx=True), [100, 60], heads=(2, 1), d=16)
    layer = world.layer()
    world.append(ops, layer, [(0, 50), (0, 0)])
    before = [x.copy() for x in (layer.keys, layer.values, layer.kernels, layer.coarse)]
    world.append(ops, layer, [(50, 50), (0, 5)])  # one page of sequence 1, and only one kernel fits
    changed = [
        int((old.view(np.uint32) != new.view(np.uint32)).sum())
        for old, new in zip(before, (layer.keys, layer.values, layer.kernels, layer.coarse), strict=True)
    ]
    assert changed == [5 * 16, 5 * 16, 0, 0]


def test_without_sparse_attention_only_pages_are_written(ops: OpTable) -> None:
    world = Paged(4, config(SMALL), [40], heads=(2, 2), d=16)
    layer = world.layer(sparse=False)
    ops.append(world.rows(world.k), world.rows(world.v), layer, world.step(sparse=False))
    page = world.tables[0, 1]
    np.testing.assert_array_equal(layer.keys[page, :, :, 3], world.k[0][19])


def test_not_finite_values_are_kept(ops: OpTable) -> None:
    world = Paged(5, config(SMALL), [20], heads=(1, 1), d=16)
    world.k[0][3], world.v[0][4], world.v[0][5] = np.inf, np.nan, -np.inf
    layer = world.filled(ops, "bf16")
    page = world.tables[0, 0]
    assert np.isposinf(_decoded(layer.keys[page, 0, :, 3])).all()
    assert np.isnan(_decoded(layer.values[page, 0, 4])).all()
    assert np.isneginf(_decoded(layer.values[page, 0, 5])).all()
