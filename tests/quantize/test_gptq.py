"""GPTQ against its own definition, written without blocks or factors; statistics; scales."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.quantize import gptq as module
from minicpm4.quantize.factor import factor_in_place, factored_product, restore
from minicpm4.quantize.gptq import Hessian, gptq, importance, output_error
from minicpm4.quantize.grid import search_scales, to_nearest
from tests.fixtures.normal import normal

INT4 = QuantSpec(kind="int4", group_size=32)


def rows(n: int, width: int, seed: int) -> np.ndarray:
    """Correlated, of very different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((width, width)) * np.exp(rng.standard_normal(width))
    return (rng.standard_normal((n, width)) @ mixed / np.sqrt(width)).astype(np.float32)


def seen(x: np.ndarray, skip: int = 0) -> Hessian:
    hessian = Hessian(x.shape[1], skip)
    hessian.add(x)
    return hessian


def by_definition(weights: np.ndarray, h: np.ndarray, spec: QuantSpec, damping: float) -> np.ndarray:
    """Optimal brain quantisation in column order: after each column the best change of all later ones, by the
    inverse of what is left of the Hessian."""
    w = weights.astype(np.float64).copy()
    h = h + damping * np.diag(h).mean() * np.eye(len(h))
    importance = (np.diag(h) / np.diag(h).mean()).astype(np.float32)
    out = np.empty_like(w)
    for i in range(w.shape[1]):
        if i % spec.group_size == 0:
            part = slice(i, i + spec.group_size)
            scales = search_scales(w[:, None, part].astype(np.float32), importance[None, part], spec.row)[
                :, 0
            ]
        out[:, i] = np.clip(np.round(w[:, i] / scales), -8, 7) * scales
        inverse = np.linalg.inv(h[i:, i:])
        w[:, i:] -= np.outer((w[:, i] - out[:, i]) / inverse[0, 0], inverse[0])
    return out


def test_blocks_and_factors_change_nothing() -> None:
    x, weights = rows(400, 96, 1), rows(24, 96, 2)
    hessian = seen(x)
    found = unpack(gptq(weights, hessian, INT4))
    wanted = by_definition(weights, hessian.sum, INT4, 0.01)
    # A weight halfway between two codes may fall either way, and moves those after it.
    assert (np.abs(found - wanted) < 1e-5).mean() > 0.9
    assert output_error(weights, found, hessian) == pytest.approx(
        output_error(weights, wanted.astype(np.float32), hessian), rel=0.05
    )


@pytest.mark.parametrize("kind", ["int4", "int8", "ternary"])
@pytest.mark.parametrize("group", [32, 64, 192])
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_are_closer_than_rounded_to_nearest(kind: str, group: int, act_order: bool) -> None:
    spec = QuantSpec(kind=kind, group_size=group)
    x, weights = rows(600, 192, 3), normal(40, 192, 4)
    hessian = seen(x)
    packed = gptq(weights, hessian, spec, act_order=act_order)
    nearest = output_error(weights, unpack(pack_from_float(weights, spec)), hessian)
    error = output_error(weights, unpack(packed), hessian)
    assert error < 0.75 * nearest
    direct = ((x @ (unpack(packed) - weights).T) ** 2).sum() / ((x @ weights.T) ** 2).sum()
    assert error == pytest.approx(direct, rel=1e-3)


def test_the_first_positions_are_left_out() -> None:
    x = rows(50, 64, 5)
    x[:4] *= 1000
    np.testing.assert_allclose(seen(x, 4).sum, x[4:].T.astype(np.float64) @ x[4:], rtol=1e-4, atol=1e-3)
    assert seen(x, 4).rows == 46 and seen(x, 4).mean_size.max() < 1e-2 * seen(x).mean_size.max()
    assert seen(x[:3], 4).rows == 0


def test_columns_that_nothing_reaches_are_rounded_to_nearest() -> None:
    x, weights = rows(300, 64, 6), rows(8, 64, 7)
    x[:, 10], x[:, 40] = 0, 0
    found = gptq(weights, seen(x), INT4)
    scales = found.scales.astype(np.float32)
    for column in (10, 40):
        steps = weights[:, column] / scales[:, column // 32]
        got = unpack(found)[:, column] / scales[:, column // 32]
        np.testing.assert_array_equal(np.round(got), np.clip(np.round(steps), -8, 7))


def test_fewer_rows_than_columns() -> None:
    weights = rows(8, 128, 8)
    found = gptq(weights, seen(rows(20, 128, 9)), INT4)
    assert np.isfinite(unpack(found)).all()


def test_what_is_no_hessian_is_refused() -> None:
    hessian = seen(rows(30, 32, 10))
    hessian.sum[3, 4] = np.nan
    with pytest.raises(CheckpointError, match="inverted"):
        gptq(rows(4, 32, 11), hessian, INT4)


def test_scales_weigh_columns() -> None:
    groups = np.random.default_rng(12).standard_normal((6, 3, 32)).astype(np.float32)
    importance = np.ones((3, 32), np.float32)
    importance[:, :4] = 1000
    errors = []
    for weight in (None, importance):
        scales = search_scales(groups, weight, INT4.row)
        numbers = np.clip(np.round(groups / scales[..., None]), -8, 7)
        errors.append((((numbers * scales[..., None] - groups) ** 2) * importance).sum())
    assert errors[1] < 0.7 * errors[0]
    assert (search_scales(groups * 0, None, INT4.row) == 0).all()


def test_scales_too_large_for_float16_are_float32() -> None:
    """And nothing is warned of."""
    groups = np.full((1, 1, 32), 3e7, np.float32)
    with np.errstate(all="raise"):
        found = search_scales(groups, None, INT4.row)
    assert found.dtype == np.float32 and 3e6 < abs(float(found[0, 0])) < 5e6


@pytest.mark.parametrize("width", [1, 96, 256, 257, 700])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_factor_in_place_is_of_the_inverse(width: int, dtype: type, ordered: bool) -> None:
    """And what it is of stays: in the other triangle, and whole when it is asked for again."""
    x = rows(2 * width + 8, width, width).astype(np.float64)
    x[:, 49::50] = 0
    h = (x.T @ x).astype(dtype)
    kept, order = h.copy(), np.arange(width)
    if ordered:
        order = np.random.default_rng(9).permutation(width)
    diagonal = factor_in_place(h, order, 0.01)
    there = kept[np.ix_(order, order)]
    assert np.array_equal(diagonal, np.diag(there)) and np.array_equal(np.tril(h, -1), np.tril(there, -1))
    wanted, dead = there.astype(np.float64), diagonal <= 0
    mean = diagonal[~dead].astype(np.float64).mean()
    wanted[dead, dead] = mean
    u = np.triu(h).astype(np.float64)
    wanted += 0.01 * mean * np.eye(width)
    np.testing.assert_allclose(u.T @ u @ wanted, np.eye(width), atol=1e-9 if dtype is np.float64 else 5e-3)
    some = rows(5, width, 1)
    exact = np.einsum("ri,ij,rj->", some[:, order], there, some[:, order], dtype=np.float64)
    assert factored_product(h, diagonal, some[:, order]) == pytest.approx(exact, rel=1e-4)
    restore(h, order, diagonal)
    assert np.array_equal(h, kept)


def test_more_damping_is_tried_where_there_is_no_factor() -> None:
    whole = np.ones((600, 600)) - 0.05 * np.eye(600)  # the least eigenvalues are below 0 by more than 1%
    h = whole.copy()
    diagonal = factor_in_place(h, np.arange(600), 0.01)
    u = np.triu(h)
    np.testing.assert_allclose(u.T @ u @ (whole + 0.095 * np.eye(600)), np.eye(600), atol=1e-8)
    restore(h, np.arange(600), diagonal)
    assert np.array_equal(h, whole)
    with pytest.raises(CheckpointError, match="cannot be inverted"):
        factor_in_place(np.full((8, 8), 30.0) - 29 * np.eye(8), np.arange(8), 0.01)


def test_the_output_error_is_the_same_before_and_after_the_factor() -> None:
    weights, other, hessian = rows(9, 300, 1), rows(9, 300, 2), seen(rows(700, 300, 3))
    before, diagonal, whole = output_error(weights, other, hessian), hessian.diagonal, hessian.sum.copy()
    for act_order in (False, True):
        hessian.factor(0.01, act_order)
        assert output_error(weights, other, hessian) == pytest.approx(before, rel=1e-5)
        assert np.array_equal(hessian.diagonal, diagonal)
    assert np.array_equal(hessian.sum, whole)


def test_statistics_of_wide_matrices_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = rows(400, 96, 1), rows(24, 96, 2)
    exact = unpack(gptq(weights, seen(x), INT4))
    monkeypatch.setattr(module, "_WIDE", 95)
    wide = seen(x)
    assert wide.sum.dtype == np.float32 == wide.factor(0.01, False).dtype
    assert (np.abs(unpack(gptq(weights, wide, INT4)) - exact) < 1e-5).mean() > 0.9


def test_matrices_of_a_stage_share_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(module, "factor_in_place", lambda *given: made.append(1) or factor_in_place(*given))
    hessian = seen(rows(400, 96, 1))
    for seed in (2, 3):
        gptq(rows(24, 96, seed), hessian, INT4)
    assert len(made) == 1
    before = hessian.factor(0.01, False).copy()
    hessian.add(rows(10, 96, 4))
    assert not np.array_equal(hessian.factor(0.01, False), before)


def test_five_bits_have_the_grid_of_their_file_type_and_a_quarter_of_the_error() -> None:
    int5, weights = QuantSpec(kind="int5", group_size=32), rows(24, 96, 2)
    errors = [np.square(unpack(to_nearest(weights, spec)) - weights).sum() for spec in (INT4, int5)]
    assert 2.5 < errors[0] / errors[1] < 6
    packed = to_nearest(weights, int5)
    assert packed.spec == int5 and packed.scales is not None and packed.scales.dtype == np.float16
    again = unpack(to_nearest(unpack(packed), int5))
    scales = np.abs(unpack(packed)).reshape(24, 3, 32).max(axis=2)
    reached = scales == 16 * np.abs(packed.scales.astype(np.float32))  # by the code that reaches furthest
    np.testing.assert_array_equal(
        again.reshape(24, 3, 32)[reached], unpack(packed).reshape(24, 3, 32)[reached]
    )
    assert reached.mean() > 0.3
    x = rows(400, 96, 1)
    calibrated = output_error(weights, unpack(gptq(weights, seen(x), int5)), seen(x))
    assert calibrated < 0.6 * output_error(weights, unpack(packed), seen(x))


def test_five_bits_refuse_what_is_not_finite() -> None:
    weights = rows(4, 64, 2)
    weights[1, 3] = np.inf
    with pytest.raises(CheckpointError, match="not finite"):
        to_nearest(weights, QuantSpec(kind="int5", group_size=32))


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_columns_that_nothing_reaches_decide_no_scale(size: float) -> None:
    """They counted as 1 beside squares that were far smaller, and took the scales of all."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((64, 64)) * 0.02).astype(np.float32)
    weights[:, ::8] *= 20
    x = rng.standard_normal((512, 64)).astype(np.float32)
    x[:, ::8] = 0
    hessian = Hessian(64)
    hessian.add(x * np.float32(size))
    made = gptq(weights, hessian, QuantSpec(kind="int4", group_size=32))
    assert output_error(weights, unpack(made), hessian) < 0.35  # it was 0.69 below 1
    found = importance(hessian)
    assert found.max() < 2 and (found[::8] < 1e-5).all() and found.mean() == pytest.approx(1)
    assert (importance(Hessian(64)) == 1).all()
