"""append: what is stored, and the compressed keys that end in the new tokens."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import KVLayer
from tests.contract.paged import RELEASED, SMALL, Paged, chunks, config, rounded, unrotated

CASES: list[dict[str, Any]] = [
    {**SMALL},
    {**SMALL, "lse_approx": True},
    {**SMALL, "use_nope": True, "lse_approx": True},
    {**SMALL, "kernel_size": 40},  # longer than a page
    {**SMALL, "kernel_size": 4},
    {**RELEASED, "lse_approx": True},
    {**RELEASED, "block_size": 128, "lse_approx": True},
    {**RELEASED, "block_size": 32, "lse_approx": True},  # two pages for each coarse compressed key
]


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_pages_hold_rounded_tokens_and_means(ops: OpTable, case: dict[str, Any], kv: str) -> None:
    world = Paged(1, config(case), [300, 1, 77], heads=(4, 2), d=16)
    layer = world.filled(ops, kv)
    for s, table in enumerate(world.tables):
        k, v = rounded(world.k[s], kv), rounded(world.v[s], kv)
        size = world.sparse.block_size
        for t in range(world.lengths[s]):
            key, value = _token(layer, table[t // size], t % size)
            np.testing.assert_allclose(key, k[t], rtol=1e-7)
            np.testing.assert_allclose(value, v[t], rtol=1e-7)
        check_means(layer, world, table, k)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_numpy_compresses_to_means(case: dict[str, Any], kv: str) -> None:
    world = Paged(6, config(case), [300, 1, 77], heads=(4, 2), d=16)
    layer = world.filled(RefOps(), kv)
    for s, table in enumerate(world.tables):
        check_means(layer, world, table, rounded(world.k[s], kv))


def check_means(layer: KVLayer, world: Paged, table: Any, k: Any) -> None:
    """Every one that fits into the tokens is the mean of its keys, in the page of its last token."""
    c, n = world.sparse, len(k)
    if c.use_nope:
        k = unrotated(k, world.cos[:n], world.sin[:n])
    fine, coarse = (layer.compressed, layer.compressed_scales, 1), (layer.coarse, layer.coarse_scales, 4)
    for store, scales, times in (fine, coarse):
        if store is None:
            continue
        stride, size = c.kernel_stride * times, c.kernel_size * times
        for first in range(0, n - size + 1, stride):
            last = first + size - 1
            home = table[last // c.block_size], slice(None), last % c.block_size // stride
            mean = k[first : first + size].mean(axis=0)
            if scales is None:
                np.testing.assert_allclose(store[home], mean, rtol=1e-6, atol=1e-6)
                continue
            norm = np.linalg.norm(mean, axis=-1)
            np.testing.assert_allclose(scales[home], norm / 32766, rtol=1e-6)
            codes = store[home] - mean * 32766 / norm[:, None]
            assert abs(codes).max() < 0.502


def _token(layer: KVLayer, page: int, slot: int) -> tuple[Any, Any]:
    """Key and value (hkv, d) of one token, float64."""
    if layer.key_scales is None or layer.value_scales is None:
        return _decoded(layer.keys[page, :, :, slot]), _decoded(layer.values[page, :, slot])
    hkv, d = layer.num_kv_heads, layer.head_dim
    key = layer.keys[page, :, :, slot].reshape(hkv, d).astype(np.float64)
    value = layer.values[page, :, slot // 2, :, slot % 2].astype(np.float64)
    return key * layer.key_scales[page, :, slot, None], value * layer.value_scales[page, :, slot, None]


def _decoded(x: Any) -> Any:
    return x if x.dtype == np.float32 else (x.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_store_the_same_bits(ops: OpTable, size: int, kv: str) -> None:
    world = Paged(2, config(SMALL, lse_approx=True, use_nope=True), [150], heads=(2, 2), d=16)
    whole, parts = world.filled(ops, kv), world.layer(kv)
    for part in chunks(150, size):
        world.append(ops, parts, [part])
    for field in (one for one in fields(KVLayer) if one.init):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(parts, field.name))


def test_numpy_stores_the_same_codes(ops: OpTable) -> None:
    world = Paged(7, config(SMALL, lse_approx=True), [100], heads=(2, 2), d=16)
    ours, truth = world.filled(ops, "int8"), world.filled(RefOps(), "int8")
    for name in ("keys", "values", "key_scales", "value_scales"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(truth, name))


def test_int8_marks_what_is_not_finite(ops: OpTable) -> None:
    world = Paged(8, config(SMALL), [20], heads=(2, 2), d=16)
    world.k[0][3, 0, 5], world.v[0][4, 1, 6], world.k[0][5, 1] = np.inf, np.nan, 0
    for table in (ops, RefOps()):
        layer, page = world.filled(table, "int8"), world.tables[0, 0]
        assert np.argwhere(np.isnan(layer.key_scales[page])).tolist() == [[0, 3]]
        assert np.argwhere(np.isnan(layer.value_scales[page])).tolist() == [[1, 4]]
        assert not layer.keys[page, 1, :, 5].any() and layer.key_scales[page, 1, 5] == 0
        assert np.isnan(layer.compressed_scales[page, 0]).any()


def test_nothing_but_the_new_tokens_is_written(ops: OpTable) -> None:
    world = Paged(3, config(SMALL, lse_approx=True), [100, 60], heads=(2, 1), d=16)
    layer = world.layer()
    world.append(ops, layer, [(0, 50), (0, 0)])
    before = [x.copy() for x in (layer.keys, layer.values, layer.compressed, layer.coarse)]
    world.append(ops, layer, [(50, 50), (0, 5)])  # one page of sequence 1, and only one compressed key fits
    changed = [
        int((old.view(np.uint32) != new.view(np.uint32)).sum())
        for old, new in zip(before, (layer.keys, layer.values, layer.compressed, layer.coarse), strict=True)
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
