"""Fake quantisation against the packing that it stands for, bit for bit; its gradient; blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.errors import ConfigError
from minicpm4.formats.packing import detect_ternary, pack_from_float, pack_ternary_exact, unpack
from minicpm4.formats.quant import BlockSpec, PackedTensor, QuantSpec
from minicpm4.formats.rounding import group_sum

torch = pytest.importorskip("torch")
from minicpm4.kernels.straight_through import fake_quantise, rounded  # noqa: E402
from tests.fixtures.normal import normal  # noqa: E402

KINDS = ("ternary", "int4", "int8")
SPECS = [
    QuantSpec(kind=kind, group_size=group)
    for kind in KINDS
    for group in (16, 32, 48, 64, 96, 128, 192, 256, 384)
    if kind == "int8" or group % 32 == 0
]


def same_bits(weights: np.ndarray, spec: QuantSpec) -> None:
    """The rounded weights of torch and those of packing, compared as bits (the sign of zero counts)."""
    packed = unpack(pack_from_float(weights, spec))
    found = rounded(torch.from_numpy(weights), spec).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), packed.view(np.uint32), err_msg=str(spec))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_are_those_of_packing(spec: QuantSpec) -> None:
    columns = 384 if 384 % spec.group_size == 0 else 768
    rows = 800  # more than one slice of packing
    same_bits(normal(rows, columns, spec.group_size) * 0.05, spec)


@settings(max_examples=60)
@given(st.sampled_from(SPECS), st.floats(-46, 34), st.integers(0, 2**31))
def test_values_at_any_magnitude(spec: QuantSpec, exponent: float, seed: int) -> None:
    columns = 384 if 384 % spec.group_size == 0 else 768
    weights = normal(4, columns, seed)
    weights[1, : columns // 2] = 0
    weights[2] = np.round(weights[2])  # ties, in errors and in halves
    weights[3, ::7] *= -0.0
    same_bits(weights * np.float32(10**exponent), spec)


@pytest.mark.parametrize("kind", KINDS)
def test_one_huge_scale_leaves_the_others_in_float16(kind: str) -> None:
    weights = normal(3, 128, 1)
    weights[1, 5] = 3e7  # of ternary the mean is large enough, too
    same_bits(weights, QuantSpec(kind=kind, group_size=64))


@pytest.mark.parametrize("spec", [s for s in SPECS if s.group_size in (32, 128)], ids=str)
def test_rounding_twice_changes_nothing(spec: QuantSpec) -> None:
    once = rounded(torch.from_numpy(normal(64, 384, 3)), spec)
    assert torch.equal(rounded(once, spec), once)


def test_ternary_is_the_mean_magnitude() -> None:
    """BitCPM4's rule, from its definition in float64: q = clip(round(w / s), -1, 1), s = mean|w|."""
    weights = normal(16, 256, 4).astype(np.float64)
    groups = weights.reshape(16, 4, 64)
    scale = np.abs(groups).mean(axis=2, keepdims=True)
    expected = (np.clip(np.rint(groups / scale), -1, 1) * scale).reshape(16, 256)
    found = rounded(torch.from_numpy(weights), QuantSpec(kind="ternary", group_size=64))
    assert found.dtype == torch.float64
    assert (np.sign(found.numpy()) != np.sign(expected)).mean() < 2e-3  # halves that float16 scales move
    agree = np.sign(found.numpy()) == np.sign(expected)
    np.testing.assert_allclose(found.numpy()[agree], expected[agree], rtol=6e-4)


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (300, 256), (1, 128), (129, 384)])
def test_blocks_share_a_scale(rows: int, columns: int) -> None:
    weights = normal(rows, columns, 5) * np.linspace(1, 3, columns, dtype=np.float32)
    found = rounded(torch.from_numpy(weights), BlockSpec(kind="ternary", group_size=128)).numpy()
    for top in range(0, rows, 128):
        for left in range(0, columns, 128):
            block = found[top : top + 128, left : left + 128]
            mean = np.abs(weights[top : top + 128, left : left + 128].astype(np.float64)).mean()
            magnitudes = np.unique(np.abs(block[block != 0]))
            assert len(magnitudes) == 1 and magnitudes[0] == pytest.approx(mean, rel=6e-4)


def test_blocks_pack_without_loss() -> None:
    spec = BlockSpec(kind="ternary", group_size=128)
    found = rounded(torch.from_numpy(normal(200, 256, 6)), spec).numpy()
    stored = PackedTensor(spec=QuantSpec(kind="f16"), shape=found.shape, codes=found.astype(np.float16))
    detected = detect_ternary(stored)
    assert detected == QuantSpec(kind="ternary", group_size=128)
    np.testing.assert_array_equal(unpack(pack_ternary_exact(stored, detected)), found)
    np.testing.assert_array_equal(unpack(pack_from_float(found, detected)), found)
    assert torch.equal(rounded(torch.from_numpy(found), spec), torch.from_numpy(found))


@pytest.mark.parametrize("spec", [*SPECS[:4], BlockSpec(kind="ternary", group_size=128)], ids=str)
def test_the_gradient_goes_straight_through(spec: QuantSpec) -> None:
    w = torch.from_numpy(normal(8, 384, 7)).requires_grad_()
    x, up = torch.from_numpy(normal(5, 384, 8)), torch.from_numpy(normal(5, 8, 9))
    (x @ fake_quantise(w, spec).t() * up).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, up.t() @ x, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_float_kinds_round_to_their_type(kind: str, dtype: torch.dtype) -> None:
    w = torch.from_numpy(normal(3, 5, 10))
    assert torch.equal(rounded(w, QuantSpec(kind=kind)), w.to(dtype).float())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_weight_is_not_hidden(bad: float, kind: str) -> None:
    weights = normal(2, 128, 11)
    weights[1, 70] = bad
    found = rounded(torch.from_numpy(weights), QuantSpec(kind=kind, group_size=64))
    assert not torch.isfinite(found[1, 64:]).any()
    assert torch.isfinite(found[0]).all() and torch.isfinite(found[1, :64]).all()


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="96 columns do not fit weight format ternary-g32"):
        fake_quantise(torch.zeros(4, 96), QuantSpec(kind="ternary", group_size=32))
    with pytest.raises(ConfigError, match="blocks are for ternary weights"):
        BlockSpec(kind="int4", group_size=128)


@pytest.mark.parametrize("size", [1, 2, 3, 31, 48, 96, 128])
def test_sums_are_the_same_in_numpy_and_torch(size: int) -> None:
    values = normal(50, size, size)
    exact = values.astype(np.float64).sum(axis=1)
    torch_sum = group_sum(torch.from_numpy(values.copy())).numpy()
    np.testing.assert_array_equal(group_sum(values), torch_sum)
    np.testing.assert_allclose(torch_sum, exact, atol=2e-5)
