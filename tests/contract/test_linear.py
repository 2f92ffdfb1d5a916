"""Ops that read packed weights, against float64 products of the unpacked values."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from minicpm4 import _cpu
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.cpu import CpuOps, emulated_levels, isa_levels
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.ref import RefOps
from tests.contract.packed import FORMATS, format_id, random_weight
from tests.levels import HALVES, TILES

# Every way through the kernels: 1, 2, 3, 4, 5-8, 9-16 rows at once; one panel, several, a second packing.
ROWS = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 65, 530]


def tolerance(x: NDArray, w: NDArray) -> NDArray[np.float64]:
    """What float32 may lose: a few units in the last place of the sum of magnitudes."""
    return 3e-6 * (np.abs(x).astype(np.float64) @ np.abs(w).T) + 1e-6


def bound(ops: CpuOps, weight: PackedTensor, x: NDArray, w: NDArray) -> NDArray[np.float64]:
    """What the instruction set may lose on this product, beyond float32 only where it says so.

    Grouped weights at levels above scalar but avx512: x is rounded to 1/65024 of the largest value among
    at most 128 columns. bf16 and f16 weights at levels of HALVES: x and weight are rounded to bf16. Any
    weights at levels with matrix tiles by more than 16 rows: likewise.
    """
    lost = tolerance(x, w)
    if ops.isa in TILES and len(x) > 16 and weight.spec.kind != "f32":
        return lost + 2.0**-7 * (np.abs(x).astype(np.float64) @ np.abs(w).T)
    exact = ops.isa in ("scalar", "avx512") if weight.spec.group_size else ops.isa not in HALVES
    if exact or weight.spec.kind == "f32":
        return lost
    if not weight.spec.group_size:
        roundings = 1 if weight.spec.kind == "bf16" else 2
        return lost + roundings * 2.0**-8 * (np.abs(x).astype(np.float64) @ np.abs(w).T)
    for start in range(0, x.shape[1], 128):
        most = np.abs(x[:, start : start + 128]).max(axis=1, keepdims=True).astype(np.float64)
        lost += most / 65024 * np.abs(w[:, start : start + 128]).sum(axis=1)
    return lost


@pytest.mark.parametrize("case", FORMATS, ids=format_id)
def test_linear_equals_float64(ops: CpuOps, case: tuple[str, int, int, bool]) -> None:
    rng = np.random.default_rng(1)
    for n in ROWS:
        out_features = int(rng.choice([1, 5, 24, 37, 129, 400]))
        weight, values = random_weight(rng, out_features, case, np.float16 if n % 2 else np.float32)
        x = rng.standard_normal((n, case[2]), np.float32)
        bias = rng.standard_normal(out_features, np.float32) if n % 3 else None
        y = ops.linear(x, Linear(weight=weight, bias=bias))
        expected = x.astype(np.float64) @ values.T + (0 if bias is None else bias)
        excess = np.abs(y - expected) - bound(ops, weight, x, values)
        assert y.dtype == np.float32 and excess.max() <= 0, (n, out_features, excess.max())


@pytest.mark.parametrize("case", [case for case in FORMATS if case[1]], ids=format_id)
def test_grouped_weights_lose_little(ops: CpuOps, case: tuple[str, int, int, bool]) -> None:
    """Less than a ten-thousandth; 2 to 3 thousandths where both sides are rounded to 8 bits."""
    rng = np.random.default_rng(9)
    weight, values = random_weight(rng, 64, case)
    for n in (1, 4, 16, 40):
        x = rng.standard_normal((n, case[2]), np.float32)
        expected = x.astype(np.float64) @ values.T
        y = ops.linear(x, Linear(weight=weight))
        least = 3e-3 if ops.isa in TILES and n > 16 else 1e-4
        assert np.linalg.norm(y - expected) < least * np.linalg.norm(expected)


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
def test_rows_of_any_size(ops: CpuOps, scale: float) -> None:
    rng = np.random.default_rng(10)
    weight, values = random_weight(rng, 20, ("int4", 32, 192, False))
    for n in (1, 30):
        x = (rng.standard_normal((n, 192)) * scale).astype(np.float32)
        y = ops.linear(x, Linear(weight=weight))
        assert (np.abs(y - x @ values.T) <= bound(ops, weight, x, values)).all()


@pytest.mark.parametrize("case", FORMATS, ids=format_id)
def test_linear_agrees_with_ref(ops: CpuOps, case: tuple[str, int, int, bool]) -> None:
    rng = np.random.default_rng(2)
    weight, values = random_weight(rng, 50, case)
    for n in (1, 20):
        x = rng.standard_normal((n, case[2]), np.float32)
        expected = RefOps().linear(x, Linear(weight=weight))
        got = ops.linear(x, Linear(weight=weight))
        assert (np.abs(got - expected) <= 2 * bound(ops, weight, x, values)).all()


@pytest.mark.parametrize("n", [1, 3, 16, 17])
@pytest.mark.parametrize("alike", [True, False])
def test_products_of_one_x_equal_each_by_itself(ops: CpuOps, n: int, alike: bool) -> None:
    rng = np.random.default_rng(n)
    for case in FORMATS:
        others = [other for other in FORMATS if other[2] == case[2] and other != case]
        second = case if alike or not others else others[int(rng.integers(len(others)))]
        cases = [(case, 37), (second, 8), (case, 3), (case, 130)]
        linears = [Linear(weight=random_weight(rng, rows, which)[0]) for which, rows in cases]
        linears[1] = Linear(weight=linears[1].weight, bias=rng.standard_normal(8, np.float32))
        x = rng.standard_normal((n, case[2]), np.float32)
        products = [
            (linear, np.full((n, rows), np.nan, np.float32))
            for linear, (_, rows) in zip(linears, cases, strict=True)
        ]
        for linear, y in zip(linears, ops._linears(x, *products), strict=True):
            np.testing.assert_array_equal(y, ops.linear(x, linear))


LEVELS = isa_levels() + emulated_levels()


@pytest.fixture(scope="module", params=[isa for isa in LEVELS if "int8" in CpuOps(1, isa).activations])
def narrow(request: pytest.FixtureRequest) -> CpuOps:
    return CpuOps(2, request.param, narrow=True)


@pytest.mark.parametrize("case", [case for case in FORMATS if case[1] and case[1] % 32 == 0], ids=format_id)
def test_activations_of_8_bits_round_by_half_a_step(narrow: CpuOps, case: tuple[str, int, int, bool]) -> None:
    rng = np.random.default_rng(11)
    unit = next(size for size in (128, 64, 32) if case[1] % size == 0)
    for n in [*ROWS, 18, 23]:
        weight, values = random_weight(rng, int(rng.choice([1, 16, 37, 129, 400])), case)
        x = rng.standard_normal((n, case[2]), np.float32)
        y = narrow.linear(x, Linear(weight=narrow.prepare(weight)))
        lost = tolerance(x, values)
        for start in range(0, case[2], unit):
            part = slice(start, start + unit)
            step = np.abs(x[:, part]).max(axis=1, keepdims=True) / 127
            lost += 0.5001 * step * np.abs(values[:, part]).sum(axis=1)
        excess = np.abs(y - x.astype(np.float64) @ values.T) - lost
        assert excess.max() <= 0, (n, excess.max())


def test_activations_of_8_bits_keep_bad_rows_apart(narrow: CpuOps) -> None:
    rng = np.random.default_rng(12)
    weight, values = random_weight(rng, 50, ("int4", 32, 64, True))
    for n in (1, 6, 40):
        x = rng.standard_normal((n, 64), np.float32)
        x[n // 2, 7] = np.nan
        y = narrow.linear(x, Linear(weight=narrow.prepare(weight)))
        good = np.arange(n) != n // 2
        assert not np.isfinite(y[n // 2]).any()
        expected = x[good] @ values.T
        assert np.linalg.norm(y[good] - expected) <= 0.03 * np.linalg.norm(expected)


def test_levels_without_8_bit_activations_say_so() -> None:
    with pytest.raises(ValueError, match="level scalar do not round activations"):
        _cpu.Context(1, "scalar", True)


def test_too_many_products_are_refused(ops: CpuOps) -> None:
    linear = Linear(weight=random_weight(np.random.default_rng(0), 8, FORMATS[0])[0])
    x = np.ones((1, FORMATS[0][2]), np.float32)
    with pytest.raises(ValueError, match="more than 8 products"):
        ops._linears(x, *[(linear, np.empty((1, 8), np.float32))] * 9)


@pytest.mark.parametrize("n", [1, 3, 8, 9, 70])
def test_add_linear_adds_a_scaled_branch(ops: CpuOps, n: int) -> None:
    rng = np.random.default_rng(3)
    weight, values = random_weight(rng, 30, ("int4", 32, 64, True))
    x, a = rng.standard_normal((n, 30), np.float32), rng.standard_normal((n, 64), np.float32)
    bias = rng.standard_normal(30, np.float32)
    expected = x + 0.25 * (a.astype(np.float64) @ values.T + bias)
    y = ops.add_linear(x.copy(), a, Linear(weight=weight, bias=bias), 0.25)
    assert (np.abs(y - expected) <= bound(ops, weight, a, values)).all()


@pytest.mark.parametrize("case", FORMATS, ids=format_id)
def test_embed_gathers_scaled_rows(ops: CpuOps, case: tuple[str, int, int, bool]) -> None:
    rng = np.random.default_rng(4)
    table, values = random_weight(rng, 17, case)
    ids = np.array([0, 16, 3, 3, 9], np.int32)
    assert_allclose(ops.embed(table, ids, 1.0), values[ids], rtol=1e-6, atol=1e-5)
    assert_allclose(ops.embed(table, ids, 12.0), 12 * values[ids], rtol=1e-6, atol=1e-4)
    assert_allclose(ops.embed(table, ids, 12.0), RefOps().embed(table, ids, 12.0), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("n", [1, 6, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_spoils_only_itself(ops: CpuOps, n: int, bad: float) -> None:
    rng = np.random.default_rng(5)
    for case in (("bf16", 0, 100, False), ("int4", 32, 64, True), ("ternary", 64, 64, False)):
        weight, values = random_weight(rng, 50, case)
        x = rng.standard_normal((n, case[2]), np.float32)
        x[n // 2, 7] = bad
        with np.errstate(invalid="ignore"):
            y = ops.linear(x, Linear(weight=weight))
        good = np.arange(n) != n // 2
        assert not np.isfinite(y[n // 2]).any()
        assert (np.abs(y[good] - x[good] @ values.T) <= bound(ops, weight, x[good], values)).all()


def test_a_bad_weight_spoils_only_its_feature(ops: CpuOps) -> None:
    rng = np.random.default_rng(6)
    weight, values = random_weight(rng, 50, ("f32", 0, 40, False))
    weight.codes[13, 39] = np.nan
    for n in (1, 5, 50):
        x = rng.standard_normal((n, 40), np.float32)
        y = ops.linear(x, Linear(weight=weight))
        good = np.arange(50) != 13
        assert np.isnan(y[:, 13]).all()
        assert (np.abs(y - x @ values.T) <= tolerance(x, values))[:, good].all()


def test_special_halves_are_read_exactly(ops: CpuOps) -> None:
    bits = np.array([[0x0001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x8000, 0x7C00, 0xFC00, 0x7E00]], np.uint16)
    shape = bits.shape
    f16 = PackedTensor(spec=QuantSpec(kind="f16"), shape=shape, codes=bits.view(np.float16))
    row = ops.embed(f16, np.zeros(1, np.int32), 1.0)
    np.testing.assert_array_equal(row, bits.view(np.float16).astype(np.float32))


def test_wide_results_write_into_the_buffer_given(ops: CpuOps) -> None:
    rng = np.random.default_rng(7)
    weight, values = random_weight(rng, 12, ("int8", 16, 32, False))
    buffer = np.full((5, 12), np.nan, np.float32)
    x = rng.standard_normal((3, 32), np.float32)
    assert ops.linear(x, Linear(weight=weight), buffer[:3]).base is buffer
    assert (np.abs(buffer[:3] - x @ values.T) <= bound(ops, weight, x, values)).all()
    assert np.isnan(buffer[3:]).all()


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 13, 24, 61])
def test_matmul_of_ragged_sizes(ops: CpuOps, m: int) -> None:
    rng = np.random.default_rng(m)
    for n in (1, 3, 15, 16, 17, 33, 64, 100):
        for k in (1, 2, 64, 257):
            a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
            c = np.full((m, n), np.nan, np.float32)
            ops._ctx.matmul(a, b, c)
            assert (np.abs(c - a.astype(np.float64) @ b) <= tolerance(a, b.T)).all(), (n, k)


def test_empty_inputs(ops: CpuOps) -> None:
    weight, _ = random_weight(np.random.default_rng(8), 12, ("int4", 32, 64, False))
    assert ops.linear(np.empty((0, 64), np.float32), Linear(weight=weight)).shape == (0, 12)
    assert ops.embed(weight, np.empty(0, np.int32), 1.0).shape == (0, 64)


CODES = np.zeros((4, 32), np.uint8)
SCALES = np.ones((4, 2), np.float16)
PANEL = np.zeros((1, 8, 64), np.uint8)
PANEL_SCALES = np.ones((1, 2, 16), np.float32)
BAD_WEIGHTS = {
    "unknown": (("int7", "rows", 4, 64, 32, CODES, SCALES, None), "'int7' is unknown"),
    "layout": (("int4", "tiles", 4, 64, 32, CODES, SCALES, None), "'tiles' is unknown"),
    "codes": (("int4", "rows", 4, 64, 32, CODES[:, :16].copy(), SCALES, None), r"\(4, 16\), expected"),
    "dtype": (("int4", "rows", 4, 64, 32, CODES.view(np.int8), SCALES, None), "wrong dtype"),
    "rows": (("int4", "rows", 5, 64, 32, CODES, SCALES, None), r"expected \(5, 32\)"),
    "negative": (("int4", "rows", -1, 64, 32, CODES, SCALES, None), "rows = -1, outside 0 to"),
    "group": (("int4", "rows", 4, 64, 48, CODES, SCALES, None), "group size 48"),
    "no group": (("int4", "rows", 4, 64, 0, CODES, SCALES, None), "group size 0"),
    "no scales": (("int4", "rows", 4, 64, 32, CODES, None, None), "needs scales"),
    "scales": (("int4", "rows", 4, 64, 32, CODES, SCALES[:3], None), "weight scales has shape"),
    "offsets": (("int4", "rows", 4, 64, 32, CODES, SCALES, SCALES[:, :1]), "weight offsets has shape"),
    "columns": (("int4", "rows", 4, 50, 32, CODES, SCALES, None), "50 columns do not fit"),
    "panel codes": (("int4", "panels", 17, 64, 32, PANEL, PANEL_SCALES, None), r"expected \(2, 8, 64\)"),
    "panel scales": (("int4", "panels", 4, 64, 32, PANEL, SCALES, None), "weight scales has shape"),
    "panel group": (("int8", "panels", 4, 32, 8, PANEL.view(np.int8), PANEL_SCALES, None), "group size 8"),
    # Too many to compute with: their bytes would overflow.
    "huge columns": (
        ("int4", "rows", 4, 1 << 62, 32, CODES, SCALES, None),
        "cols = 4611686018427387904, outside",
    ),
    "huge rows": (
        ("int4", "panels", (1 << 63) - 1, 64, 32, PANEL, PANEL_SCALES, None),
        "rows = 9223372036854775807",
    ),
    "huge group": (
        ("int4", "rows", 4, 64, 1 << 62, CODES, SCALES, None),
        "group = 4611686018427387904, outside",
    ),
    "no panels": (("f32", "panels", 4, 8, 0, np.ones((4, 8), np.float32), None, None), "has no panels"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_wrong_weights_are_refused(name: str) -> None:
    arguments, message = BAD_WEIGHTS[name]
    with pytest.raises(ValueError, match=message):
        _cpu.Weight(*arguments)


X = np.ones((2, 64), np.float32)
OUT = np.empty((2, 4), np.float32)
BAD_CALLS = {
    "bias": ((X, np.ones(5, np.float32), OUT), "bias has shape"),
    "x": ((X[:, :50].copy(), None, OUT), "x has shape"),
    "strided": ((np.ones((2, 128), np.float32)[:, ::2], None, OUT), "C-cont"),
    "out": ((X, None, OUT[:1]), "out has shape"),
    "out type": ((X, None, OUT.astype(float)), "out has the wrong dtype"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_arguments_are_refused(name: str) -> None:
    (x, bias, out), message = BAD_CALLS[name]
    weight = _cpu.Weight("int4", "rows", 4, 64, 32, CODES, SCALES, None)
    with pytest.raises(ValueError, match=message):
        _cpu.Context(1, "scalar").linear(x, weight, bias, out)


def test_levels_without_panels_refuse_them() -> None:
    weight = _cpu.Weight("int4", "panels", 4, 64, 32, PANEL, PANEL_SCALES, None)
    with pytest.raises(ValueError, match="level scalar do not take such weights"):
        _cpu.Context(1, "scalar").linear(X, weight, None, OUT)


@pytest.mark.parametrize("shape", [(0, 1 << 50), (1 << 50, 0)])
def test_arrays_without_elements_have_lengths_that_memory_holds(shape: tuple[int, int]) -> None:
    huge, context = np.empty(shape, np.float32), _cpu.Context(1, "scalar")
    with pytest.raises(ValueError, match=r"has shape \(.*1125899906842624.*, more than memory holds"):
        context.silu_mul(huge, huge, huge)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_ids_out_of_range_are_refused(bad: int) -> None:
    ids, out = np.array([0, bad], np.int32), np.empty((2, 64), np.float32)
    weight = _cpu.Weight("int4", "rows", 4, 64, 32, CODES, SCALES, None)
    with pytest.raises(ValueError, match=f"ids holds {bad}, outside 0 to 3"):
        _cpu.Context(1, "scalar").embed(ids, weight, 1.0, out)
