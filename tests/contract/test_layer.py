"""The coarse ops of the extension against the contract's compositions of its own primitives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from minicpm4.kernels.step import KVLayer
from minicpm4.model.forward import decoder_layer
from minicpm4.model.weights import LayerWeights
from tests.contract.packed import random_weight
from tests.contract.paged import SMALL, Paged, config

WIDTH, FEATURES = 64, 96
NO_BUFFERS = (None, None, None)


def linear(
    ops: CpuOps, rng: np.random.Generator, rows: int, *, cols: int = WIDTH, bias: bool = False
) -> Linear:
    weight = ops.prepare(random_weight(rng, rows, ("int4", 32, cols, True))[0])
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


def test_more_blocks_than_there_are_take_no_memory() -> None:
    most = (1 << 24) - 1
    every = config(SMALL, topk=most, init_blocks=most, window_size=SMALL["block_size"] * 4096)
    ops, world = CpuOps(1), Paged(4, every, [150, 40], (4, 2), 16)
    layer, q = world.filled(ops, "float32"), world.rows(world.q)
    dense = ops.attention(q, layer, world.step(sparse=False))
    np.testing.assert_array_equal(ops.attention(q, layer, world.step(sparse=True)), dense)
    assert 0 < ops.reserved < 1 << 20


def feed_forward_weights(ops: CpuOps, rng: np.random.Generator) -> FeedForwardWeights:
    return FeedForwardWeights(
        norm=rng.uniform(0.5, 2, WIDTH).astype(np.float32),
        gate=linear(ops, rng, FEATURES),
        up=linear(ops, rng, FEATURES, bias=True),
        down=linear(ops, rng, WIDTH, cols=FEATURES, bias=True),
        eps=1e-5,
    )


@pytest.mark.parametrize("n", [1, 5, 40])
def test_gate_up_is_its_composition(ops: CpuOps, n: int) -> None:
    rng = np.random.default_rng(5)
    w = feed_forward_weights(ops, rng)
    x = rng.standard_normal((n, WIDTH), np.float32)
    np.testing.assert_array_equal(ops.gate_up(x, w), OpTable.gate_up(ops, x, w))


def two_layers(
    ops: CpuOps, rng: np.random.Generator, world: Paged, kv: str
) -> list[tuple[AttentionWeights, FeedForwardWeights, KVLayer]]:
    """One with norms of heads and biases, and one with a window and without."""
    first, second = world.layer(kv), replace(world.layer(kv), window=30)
    return [
        (attention_weights(ops, rng, world, extras=extras), feed_forward_weights(ops, rng), pages)
        for extras, pages in ((True, first), (False, second))
    ]


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("lengths", [[1, 3], [100, 50]])  # in one call, and a call for each
@pytest.mark.parametrize("sparse", [False, True])
def test_layers_in_one_call_are_the_forwards_own(
    ops: CpuOps, lengths: list[int], kv: str, sparse: bool
) -> None:
    world, n = Paged(7, config(SMALL), lengths, (4, 2), 16), sum(lengths)
    x, step = np.random.default_rng(8).standard_normal((n, WIDTH), np.float32), world.step(sparse=sparse)
    together, apart = (two_layers(ops, np.random.default_rng(9), world, kv) for _ in range(2))
    expected = x.copy()
    for attention, feed_forward, pages in apart:
        layer = LayerWeights(attention=attention, feed_forward=feed_forward)
        expected = decoder_layer(ops, step, pages, 0.7, NO_BUFFERS, layer, expected)
    np.testing.assert_array_equal(ops.layers(x.copy(), together, step, 0.7, NO_BUFFERS), expected)
    for (_, _, got), (_, _, wanted) in zip(together, apart, strict=True):
        for one, other in zip(arrays(got), arrays(wanted), strict=True):
            np.testing.assert_array_equal(one, other)


def test_layers_that_do_not_fit_are_refused(ops: CpuOps) -> None:
    rng, world = np.random.default_rng(6), Paged(6, config(SMALL), [20], (4, 2), 16)
    (first, second, pages), _ = two_layers(ops, rng, world, "float32")
    x, step = rng.standard_normal((20, WIDTH), np.float32), world.step()
    for wrong, told in (
        (replace(first, o=linear(ops, rng, WIDTH + 16)), "80 rows for 64 columns of x"),
        (replace(first, o=second.gate), "96 rows for 64 columns of x"),
        (replace(first, q=linear(ops, rng, 128)), "64 columns for 128 of x"),
    ):
        with pytest.raises(ValueError, match=told):
            ops.layers(x, [(wrong, second, pages)], step, 1.0, NO_BUFFERS)
    with pytest.raises(ValueError, match="h has shape"):
        ops.layers(x, [(first, second, pages)], step, 1.0, (None, None, np.empty((20, 95), np.float32)))
    with pytest.raises(ValueError, match="x has shape"):
        ops.layers(x[:19], [(first, second, pages)], step, 1.0, NO_BUFFERS)


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
