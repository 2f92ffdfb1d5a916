"""Ops without weight matrices, against float64 and the NumPy truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.ref import RefOps

WIDTHS = [1, 3, 8, 15, 16, 33, 64, 576, 1000]


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(ops: CpuOps, width: int) -> None:
    rng = np.random.default_rng(width)
    weight = rng.standard_normal(width, np.float32)
    for shape in ((1, width), (37, width), (5, 3, width)):
        x = rng.standard_normal(shape, np.float32) * np.float32(3)
        x64 = x.astype(np.float64)
        expected = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
        assert_allclose(ops.rms_norm(x, weight, 1e-5), expected, rtol=2e-6, atol=1e-6)
        assert_allclose(ops.rms_norm(x, weight, 1e-5, x), expected, rtol=2e-6, atol=1e-6)
        assert_allclose(x, expected, rtol=2e-6, atol=1e-6)


def test_rms_norm_of_zeros_and_nan(ops: CpuOps) -> None:
    x = np.zeros((3, 40), np.float32)
    x[1, 39] = np.nan
    y = ops.rms_norm(x, np.ones(40, np.float32), 1e-6)
    assert (y[[0, 2]] == 0).all() and np.isnan(y[1]).all()


@pytest.mark.parametrize("d", [2, 6, 64, 96, 128])
def test_rotary(ops: CpuOps, d: int) -> None:
    rng = np.random.default_rng(d)
    angles = rng.uniform(0, 6, (50, d // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    for n, heads in ((1, 1), (7, 3), (300, 9)):
        x = rng.standard_normal((n, heads, d), np.float32)
        positions = rng.integers(0, 50, n).astype(np.int32)
        z = x.astype(np.float64)[..., : d // 2] + 1j * x[..., d // 2 :]
        z *= np.exp(1j * angles[positions])[:, None]
        y = ops.rotary(x.copy(), positions, cos, sin)
        assert_allclose(y, np.concatenate([z.real, z.imag], axis=-1), atol=2e-6)
        assert_allclose(y, RefOps().rotary(x, positions, cos, sin), atol=2e-6)


@pytest.mark.parametrize("bad", [-1, 4])
def test_rotary_refuses_positions_beyond_its_table(ops: CpuOps, bad: int) -> None:
    x, table = np.zeros((1, 1, 8), np.float32), np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match=f"positions holds {bad}"):
        ops.rotary(x, np.array([bad], np.int32), table, table)


@pytest.mark.parametrize("size", [1, 5, 16, 100, 50_001])
def test_silu_mul(ops: CpuOps, size: int) -> None:
    rng = np.random.default_rng(size)
    gate, up = rng.standard_normal((2, 3, size), np.float32) * np.float32(8)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    assert_allclose(ops.silu_mul(gate, up), expected, rtol=1e-6, atol=1e-30)
    assert_allclose(ops.silu_mul(gate, up, gate), expected, rtol=1e-6, atol=1e-30)


def test_silu_mul_over_the_range_of_float32(ops: CpuOps) -> None:
    gate = np.array([[-3e38, -200, -104, -95, -88, -1e-3, 0, 1e-3, 88, 200, 3e38]], np.float32)
    with np.errstate(over="ignore"):
        expected = gate / (1 + np.exp(-gate.astype(np.float64)))
    assert_allclose(ops.silu_mul(gate, np.ones_like(gate)), expected, rtol=1e-6, atol=1e-37)
    assert np.isnan(ops.silu_mul(np.full((1, 20), np.nan, np.float32), np.ones((1, 20), np.float32))).all()


@pytest.mark.parametrize("size", [1, 16, 77, 40_000])
def test_add_scaled(ops: CpuOps, size: int) -> None:
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal((2, 2, size), np.float32)
    expected = x + 0.3 * y.astype(np.float64)
    ops._ctx.add_scaled(x, y, 0.3)
    assert_allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("width", [*WIDTHS, 49_152])
def test_log_sum_exp(ops: CpuOps, width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((5, width), np.float32) * np.float32(20)
    x[1:, : width // 2] = -np.inf
    x[3] += 1e4
    expected = np.logaddexp.reduce(x.astype(np.float64), axis=1)
    assert_allclose(ops.log_sum_exp(x), expected, rtol=1e-6, atol=3e-6)
    assert_allclose(ops.log_sum_exp(x), RefOps().log_sum_exp(x), rtol=1e-6, atol=3e-6)


def test_log_sum_exp_of_bad_rows(ops: CpuOps) -> None:
    x = np.zeros((5, 37), np.float32)
    x[0], x[1, 36], x[2, 3], x[3, 36] = -np.inf, np.inf, np.nan, np.nan
    y = ops.log_sum_exp(x)
    assert y[0] == -np.inf and y[1] == np.inf and np.isnan(y[2:4]).all()
    assert_allclose(y[4], np.log(37), rtol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 16, 129, 5000])
def test_top_k(ops: CpuOps, width: int) -> None:
    rng = np.random.default_rng(width)
    coarse = rng.integers(-3, 4, (9, width)).astype(np.float32)  # many ties
    coarse[4] = -np.inf
    coarse[5] *= -0.0
    for x in (coarse, rng.standard_normal((9, width), np.float32)):
        for k in {1, 2, width // 2 + 1, width}:
            values, columns = ops.top_k(x, min(k, width))
            expected, where = RefOps().top_k(x, min(k, width))
            assert_array_equal(columns, where)
            assert_array_equal(values, expected)


def test_top_k_puts_nan_last(ops: CpuOps) -> None:
    x = np.full((1, 100), np.nan, np.float32)
    x[0, [3, 50, 99]] = 1, -np.inf, 2
    values, columns = ops.top_k(x, 5)
    assert columns[0].tolist() == [99, 3, 50, 0, 1]
    assert values[0, :3].tolist() == [2, 1, -np.inf] and np.isnan(values[0, 3:]).all()


def test_top_k_takes_at_most_all_columns(ops: CpuOps) -> None:
    values, columns = ops.top_k(np.array([[1, 3, 2]], np.float32), 10)
    assert values.tolist() == [[3, 2, 1]] and columns.tolist() == [[1, 2, 0]]


def test_arrays_that_are_not_aligned_are_refused() -> None:
    room = np.zeros(4 * 32 + 1, np.uint8)
    odd = np.ndarray((2, 16), np.float32, room, 1 if room.ctypes.data % 2 == 0 else 0)
    even = np.ones((2, 16), np.float32)
    for gate, up, out in ((odd, even, even), (even, odd, even), (even, even, odd)):
        with pytest.raises(ValueError, match="is not aligned to its type: copy it"):
            CpuOps(1).silu_mul(gate, up, out)
