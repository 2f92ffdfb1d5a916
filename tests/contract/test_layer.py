"""The coarse ops of the extension against the contract's compositions of its own primitives."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm4.kernels.contract import KVLayer, OpTable
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from tests.contract.packed import random_weight
from tests.contract.paged import SMALL, Paged, config

WIDTH, FEATURES = 64, 96
INT4 = ("int4", 32, WIDTH, True)


def linear(ops: CpuOps, rng: np.random.Generator, rows: int, *, bias: bool = False) -> Linear:
    weight = ops.prepare(random_weight(rng, rows, INT4)[0])
    return Linear(weight=weight, bias=rng.standard_normal(rows, np.float32) if bias else None)


def attention_weights(
    ops: CpuOps, rng: np.random.Generator, world: Paged, *, extras: bool
) -> AttentionWeights:
    d = world.d
    norms = (rng.uniform(0.5, 2, d).astype(np.float32) for _ in range(2)) if extras else (None, None)
    q_norm, k_norm = norms
    return AttentionWeights(
        norm=rng.uniform(0.5, 2, WIDTH).astype(np.float32),
        q=linear(ops, rng, world.hq * d, bias=extras),
        k=linear(ops, rng, world.hkv * d, bias=extras),
        v=linear(ops, rng, world.hkv * d, bias=extras),
        o=linear(ops, rng, WIDTH),
        eps=1e-5,
        q_norm=q_norm,
        k_norm=k_norm,
    )


def arrays(layer: KVLayer) -> list[np.ndarray]:
    return [part for part in (layer.keys, layer.values, layer.compressed) if part is not None]


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("lengths", [[1], [100, 50]])
def test_qkv_is_its_composition(ops: CpuOps, lengths: list[int], extras: bool) -> None:
    rng, world = np.random.default_rng(3), Paged(3, config(SMALL), lengths, (4, 2), 16)
    w = attention_weights(ops, rng, world, extras=extras)
    x = rng.standard_normal((sum(lengths), WIDTH), np.float32)
    fused, composed = world.layer(), world.layer()
    q = ops.qkv(x, w, fused, world.step())
    np.testing.assert_array_equal(q, OpTable.qkv(ops, x, w, composed, world.step()))
    for got, expected in zip(arrays(fused), arrays(composed), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
def test_attention_is_its_composition(ops: CpuOps, kv: str, sparse: bool) -> None:
    world = Paged(4, config(SMALL), [150, 40], (4, 2), 16)
    layer, step, q = world.filled(ops, kv), world.step(sparse=sparse), world.rows(world.q)
    expected = OpTable.attention(ops, q, layer, step)
    np.testing.assert_array_equal(ops.attention(q, layer, step), expected)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_gate_up_is_its_composition(ops: CpuOps, n: int) -> None:
    rng = np.random.default_rng(5)
    w = FeedForwardWeights(
        norm=rng.uniform(0.5, 2, WIDTH).astype(np.float32),
        gate=linear(ops, rng, FEATURES),
        up=linear(ops, rng, FEATURES, bias=True),
        down=linear(ops, rng, WIDTH),
        eps=1e-5,
    )
    x = rng.standard_normal((n, WIDTH), np.float32)
    np.testing.assert_array_equal(ops.gate_up(x, w), OpTable.gate_up(ops, x, w))


def test_projections_that_do_not_fit_are_refused(ops: CpuOps) -> None:
    rng, world = np.random.default_rng(6), Paged(6, config(SMALL), [20], (4, 2), 16)
    w = attention_weights(ops, rng, world, extras=False)
    x, step = rng.standard_normal((20, WIDTH), np.float32), world.step()
    wide = Paged(6, config(SMALL), [20], (8, 4), 16)
    with pytest.raises(ValueError, match="projections do not fit pages of 4 heads"):
        ops.qkv(x, w, wide.layer(), step)
    with pytest.raises(ValueError, match="columns for 63"):
        ops.gate_up(
            x[:, :63],
            FeedForwardWeights(norm=w.norm[:63], gate=w.q, up=w.q, down=w.o, eps=1e-5),
        )
    with pytest.raises(ValueError, match="x has shape"):
        ops.qkv(x[:19], w, world.layer(), step)
