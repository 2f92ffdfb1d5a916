"""Products, embedding and what is done element by element, on the GPU or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.layer_weights import FeedForwardWeights, Linear
from minicpm4.kernels.ref import RefOps
from tests.contract.packed import COMMON as FORMATS
from tests.contract.packed import format_id, random_weight
from tests.gpu.arrays import OnArrays

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
REF = RefOps()


@pytest.fixture(scope="module")
def ops() -> OnArrays:
    return OnArrays()


@pytest.mark.parametrize("case", FORMATS, ids=format_id)
def test_one_row_is_exact(ops: OnArrays, case: tuple[str, int, int, bool]) -> None:
    """Codes are turned into floats without a rounding, whatever their place in a word."""
    rng = np.random.default_rng(1)
    for rows in (1, 5, 37):
        weight, values = random_weight(rng, rows, case, np.float16 if rows % 2 else np.float32)
        x, bias = rng.standard_normal((1, case[2]), np.float32), rng.standard_normal(rows, np.float32)
        y = ops.linear(x, Linear(weight=weight, bias=bias))
        most = np.abs(x).astype(np.float64) @ np.abs(values).T
        assert (np.abs(y - (x.astype(np.float64) @ values.T + bias)) <= 1e-6 * most + 1e-6).all()


@pytest.mark.parametrize("case", FORMATS, ids=format_id)
def test_rows_are_within_bf16(ops: OnArrays, case: tuple[str, int, int, bool]) -> None:
    """Both sides are rounded to bf16, float32 weights are not."""
    rng = np.random.default_rng(2)
    for n, rows in ((2, 5), (17, 70), (130, 3)):
        weight, values = random_weight(rng, rows, case)
        x = rng.standard_normal((n, case[2]), np.float32)
        y = ops.linear(x, Linear(weight=weight))
        most = np.abs(x).astype(np.float64) @ np.abs(values).T
        least = 1e-6 if case[0] == "f32" else 2.0**-6
        assert (np.abs(y - x.astype(np.float64) @ values.T) <= least * most + 1e-6).all()
        if case[0] != "f32":
            expected = x.astype(np.float64) @ values.T
            assert np.linalg.norm(y - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("n", [1, 3])
def test_a_branch_is_added(ops: OnArrays, n: int) -> None:
    rng = np.random.default_rng(3)
    weight, values = random_weight(rng, 30, ("int4", 32, 64, True))
    x, a = rng.standard_normal((n, 30), np.float32), rng.standard_normal((n, 64), np.float32)
    bias = rng.standard_normal(30, np.float32)
    expected = x + 0.25 * (a.astype(np.float64) @ values.T + bias)
    y = ops.add_linear(x.copy(), a, Linear(weight=weight, bias=bias), 0.25)
    assert np.linalg.norm(y - expected) < (1e-6 if n == 1 else 1e-2) * np.linalg.norm(expected)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("n", [1, 4])
def test_norm_and_gate_are_folded_in(ops: OnArrays, n: int, alike: bool) -> None:
    rng = np.random.default_rng(4)
    kinds = [("int4", 32, 96, False), ("int4", 32, 96, False) if alike else ("int8", 32, 96, True)]
    gate, up = (
        Linear(weight=random_weight(rng, 21, kind)[0], bias=rng.standard_normal(21, np.float32))
        for kind in kinds
    )
    w = FeedForwardWeights(
        norm=rng.standard_normal(96).astype(np.float32), gate=gate, up=up, down=gate, eps=1e-5
    )
    x = 3 * rng.standard_normal((n, 96), np.float32)
    expected = REF.gate_up(x, w)
    found = ops.gate_up(x, w)
    assert np.linalg.norm(found - expected) < (1e-5 if n == 1 else 2e-2) * np.linalg.norm(expected)


@pytest.mark.parametrize("case", FORMATS, ids=format_id)
def test_embedding(ops: OnArrays, case: tuple[str, int, int, bool]) -> None:
    table, values = random_weight(np.random.default_rng(5), 17, case)
    ids = np.array([0, 16, 3, 3], np.int32)
    np.testing.assert_allclose(ops.embed(table, ids, 12.0), 12 * values[ids], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("width", [1, 64, 576, 5000])
def test_norm(ops: OnArrays, width: int) -> None:
    rng = np.random.default_rng(width)
    x, weight = rng.standard_normal((3, width), np.float32), rng.standard_normal(width).astype(np.float32)
    np.testing.assert_allclose(ops.rms_norm(x, weight, 1e-5), REF.rms_norm(x, weight, 1e-5), rtol=1e-5)
    heads = rng.standard_normal((2, 3, width), np.float32)
    np.testing.assert_allclose(
        ops.rms_norm(heads, weight, 1e-5), REF.rms_norm(heads, weight, 1e-5), rtol=1e-5
    )


def test_element_by_element(ops: OnArrays) -> None:
    rng = np.random.default_rng(6)
    gate, up = (20 * rng.standard_normal((3, 70), np.float32) for _ in range(2))
    np.testing.assert_allclose(ops.silu_mul(gate, up), REF.silu_mul(gate, up), rtol=1e-5, atol=1e-6)
    angles = rng.uniform(0, 6, (9, 40))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x, positions = rng.standard_normal((4, 3, 80), np.float32), np.array([8, 0, 3, 3], np.int32)
    expected = REF.rotary(x, positions, cos, sin)
    np.testing.assert_allclose(ops.rotary(x.copy(), positions, cos, sin), expected, rtol=1e-5, atol=1e-6)


def test_logits(ops: OnArrays) -> None:
    rng = np.random.default_rng(7)
    x = 30 * rng.standard_normal((3, 5000), np.float32)
    x[1, 10:] = -np.inf
    x[2] = -np.inf
    np.testing.assert_allclose(ops.log_sum_exp(x)[:2], REF.log_sum_exp(x)[:2], rtol=1e-6)
    assert ops.log_sum_exp(x)[2] == -np.inf
    x[0, [7, 9]] = 200
    values, columns = ops.top_k(x[:1], 3)
    assert columns[0, :2].tolist() == [7, 9] and values[0, 0] == 200


def test_nothing_to_do(ops: OnArrays) -> None:
    weight, _ = random_weight(np.random.default_rng(8), 12, ("int4", 32, 64, False))
    assert ops.linear(np.empty((0, 64), np.float32), Linear(weight=weight)).shape == (0, 12)
    assert ops.embed(weight, np.empty(0, np.int32), 1.0).shape == (0, 64)


def test_weights_of_a_cpu_table_are_refused(ops: OnArrays) -> None:
    spec, shape = random_weight(np.random.default_rng(9), 16, ("int4", 32, 64, False))[0].spec, (16, 64)
    codes, scales = np.zeros((1, 8, 64), np.uint8), np.ones((1, 2, 16), np.float16)
    weight: Any = PackedTensor(spec=spec, shape=shape, codes=codes, scales=scales, layout="panels")
    with pytest.raises(UnsupportedError, match="layout 'panels'"):
        ops.linear(np.ones((1, 64), np.float32), Linear(weight=weight))
