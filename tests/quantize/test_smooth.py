"""Factors before rounding: where they help, what they are folded into, rows that choose them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.model.source import open_model
from minicpm4.quantize.gptq import Hessian, gptq, gptq_on_grids
from minicpm4.quantize.grid import to_nearest
from minicpm4.quantize.layer import Layer, read_layer
from minicpm4.quantize.smooth import Reached, fold, shared, smooth
from minicpm4.quantize.walk import STAGES
from tests.fixtures.normal import normal
from tests.fixtures.random_checkpoint import make_checkpoint

INT4 = QuantSpec(kind="int4", group_size=32)
INT8 = QuantSpec(kind="int8", group_size=32)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    found = open_model(make_checkpoint(tmp_path / "model", head_dim=16, seed=1))
    return read_layer(found.checkpoint, found.config, 0)


def rows(n: int, sizes: np.ndarray, seed: int) -> np.ndarray:
    mixed = np.random.default_rng(seed).standard_normal((n, len(sizes))).astype(np.float32)
    mixed[:, 1:] += 0.7 * mixed[:, :-1]
    return mixed * sizes.astype(np.float32)


def reached(sizes: np.ndarray, texts: int = 8) -> Reached:
    found = Reached(Hessian(len(sizes)), hold=True)
    for seed in range(texts):
        found.add(rows(100, sizes, seed))
    return found


def test_grids_of_several_factors_at_once_are_those_of_one_by_one() -> None:
    sizes = np.exp(np.random.default_rng(1).standard_normal(96))
    x, weights = rows(500, sizes, 2), normal(24, 96, 3)
    factors = [np.ones(96, np.float32), np.sqrt(sizes).astype(np.float32)]
    hessian = Hessian(96)
    hessian.add(x)
    found = gptq_on_grids(weights, hessian, INT4, factors, 1e-7)
    for one, made in zip(factors, found, strict=True):
        alone = Hessian(96)
        alone.add(x / one)
        wanted = unpack(gptq(weights * one, alone, INT4, damping=1e-7)) / one
        # A weight halfway between two codes may fall either way, and moves those after it.
        assert (np.abs(made - wanted) < 1e-4).mean() > 0.9


@pytest.mark.parametrize("damping", [None, 0.01])
def test_columns_of_large_activations_are_made_larger(layer: Layer, damping: float | None) -> None:
    names = STAGES[0]
    sizes = np.ones(layer.config.hidden_size)
    sizes[::17] = 30
    before, norm = layer.weight(names[0]).copy(), layer.floats["input_layernorm.weight"].copy()
    power, factors = smooth(layer, names, reached(sizes), dict.fromkeys(names, INT4), damping)
    assert power > 0 and factors[::17].min() > 1.5 * np.delete(factors, np.s_[::17]).max()
    np.testing.assert_allclose(layer.weight(names[0]), before * factors, rtol=1e-6)
    np.testing.assert_allclose(layer.floats["input_layernorm.weight"], norm / factors, rtol=1e-6)


def test_what_nothing_would_help_stays(layer: Layer) -> None:
    """Of matrices that stay floats, all factors are as good as none."""
    names, before = STAGES[0], {name: layer.weight(name).copy() for name in STAGES[0]}
    power, factors = smooth(layer, names, reached(np.geomspace(1, 30, layer.config.hidden_size)), {}, 0.01)
    assert power == 0 and (factors == 1).all()
    for name, values in before.items():
        assert np.array_equal(layer.weight(name), values)


@pytest.mark.parametrize("stage", [1, 3])
def test_rows_that_are_rounded_already_are_divided(layer: Layer, stage: int) -> None:
    names = STAGES[stage]
    source = {1: "self_attn.v_proj", 3: "mlp.up_proj"}[stage]
    share, width = shared(layer.config, names), layer.weight(names[0]).shape[1]
    factors = np.full(width, 2.0, np.float32)
    factors[: layer.config.head_dim * share] = 0.3
    packed = to_nearest(layer.weight(source), INT8)
    layer.round(source, packed)
    fold(layer, names, factors, share)
    found = layer.packed[source]
    assert np.array_equal(found.codes, packed.codes) and found.scales is not None
    assert found.scales.dtype == np.float16
    rows = np.full(packed.shape[0], 2.0, np.float32)
    rows[: layer.config.head_dim * (1 if stage == 1 else share)] = 0.3
    np.testing.assert_allclose(unpack(found), unpack(packed) / rows[:, None], rtol=2e-3)


def test_factors_that_scales_cannot_take_are_not_tried(layer: Layer) -> None:
    names, sizes = STAGES[3], np.ones(layer.weight("mlp.down_proj").shape[1])
    sizes[::2] = 1e7
    packed = to_nearest(layer.weight("mlp.up_proj"), INT4)
    layer.round("mlp.up_proj", packed)
    smooth(layer, names, reached(sizes), dict.fromkeys(names, INT4), 0.01)
    found = layer.packed["mlp.up_proj"].scale_floats()
    ratios = packed.scale_floats() / np.where(found == 0, 1, found)
    assert np.ptp(ratios, axis=1).max() <= 1e-2 * np.abs(ratios).max()


def test_every_fourth_text_is_held_out_and_counted_in_the_end() -> None:
    found, sizes = reached(np.ones(32), texts=9), np.ones(32)
    assert len(found.held) == 2 and found.hessian.rows == 700 and found.rows == 900
    weights = normal(4, 32, 5)
    wanted = sum(np.square(rows(100, sizes, seed) @ weights.T).sum() for seed in (3, 7))
    assert found.squared(weights) == pytest.approx(wanted, rel=1e-4)
    whole = Hessian(32)
    for seed in range(9):
        whole.add(rows(100, sizes, seed))
    np.testing.assert_allclose(found.release().sum, whole.sum, rtol=1e-4, atol=1e-2)
    assert not found.held and found.rows == 900


def test_statistics_of_divided_columns() -> None:
    x = rows(300, np.ones(64), 1)
    by = np.linspace(0.5, 3, 64).astype(np.float32)
    found, wanted = Hessian(64), Hessian(64)
    found.add(x)
    wanted.add(x / by)
    found.factor(0.01, True)
    found.divide(by)
    np.testing.assert_allclose(found.sum, wanted.sum, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.mean_size, wanted.mean_size, rtol=1e-5)
