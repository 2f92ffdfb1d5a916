"""Packing: layouts, rounding, conversion, ternary detection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.bf16 import f32_to_bf16
from minicpm4.formats.kinds import KINDS, rounded_kinds
from minicpm4.formats.packing import (
    default_spec,
    detect_rounded,
    detect_ternary,
    pack_from_float,
    pack_ternary_exact,
    repack,
    row_slices,
    unpack,
    unpack_rows,
)
from minicpm4.formats.quant import PackedTensor, QuantSpec
from tests.fixtures.normal import normal

SPECS = [QuantSpec(kind=k, group_size=g) for k in rounded_kinds() for g in (32, 64, 128)]


def spec(kind: str, group: int = 0) -> QuantSpec:
    return QuantSpec(kind=kind, group_size=group)


def float_tensor(values: np.ndarray, kind: str) -> PackedTensor:
    codes = f32_to_bf16(values) if kind == "bf16" else values.astype({"f32": "f4", "f16": "f2"}[kind])
    return PackedTensor(spec=spec(kind), shape=values.shape, codes=codes)


def ternary_matrix(rows: int, columns: int, group: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = rng.integers(1, 200, (rows, columns // group, 1)) / 256
    return (
        (rng.integers(-1, 2, (rows, columns // group, group)) * scale)
        .astype(np.float32)
        .reshape(rows, columns)
    )


@pytest.mark.parametrize(("kind", "top"), [("int4", 16), ("ternary", 3)])
def test_codes_survive_packing(kind: str, top: int) -> None:
    codes = np.random.default_rng(1).integers(0, top, (5, 192), dtype=np.uint8)
    np.testing.assert_array_equal(KINDS[kind].unpack(KINDS[kind].pack(codes)), codes)


def test_layout_of_int4() -> None:
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    packed = KINDS["int4"].pack(codes)[0]
    # byte j: weight j low, weight j + 16 high
    assert packed.tolist() == [j % 16 | (j + 16) % 16 << 4 for j in range(16)]


def test_layout_of_ternary() -> None:
    codes = np.zeros((1, 64), np.uint8)
    codes[0, [3, 3 + 16, 3 + 32, 3 + 48]] = 1, 2, 0, 1
    packed = KINDS["ternary"].pack(codes)[0]
    assert packed[3] == 1 | 2 << 2 | 0 << 4 | 1 << 6
    assert packed[:3].tolist() == [0, 0, 0]


def test_layout_of_two_planes() -> None:
    codes = np.random.default_rng(5).integers(0, 64, (1, 64), np.uint8)
    six, low, high = KINDS["int6"].pack(codes)[0], codes[0] & 15, codes[0] >> 4
    assert six[:32].tolist() == [
        low[j + j // 16 * 16] | low[j + j // 16 * 16 + 16] << 4 for j in range(32)
    ]  # two units of int4's
    assert six[32:].tolist() == [sum(high[j + 16 * f] << 2 * f for f in range(4)) for j in range(16)]
    codes = codes[:, :32] % 32
    five, top = KINDS["int5"].pack(codes)[0], codes[0] >> 4
    assert five[:16].tolist() == KINDS["int4"].pack(codes & 15)[0].tolist()
    assert five[16:].tolist() == [sum(top[8 * i + j] << j for j in range(8)) for i in range(4)]
    codes = np.arange(64, dtype=np.uint8)[None] * 5 % 8
    three, top = KINDS["int3"].pack(codes)[0], codes[0] >> 2
    assert three[:16].tolist() == KINDS["ternary"].pack(codes & 3)[0].tolist()
    assert three[16:].tolist() == [sum(top[8 * i + j] << j for j in range(8)) for i in range(8)]


def test_unpack_is_the_table_in_quant() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (2, 64), dtype=np.uint8)
    scales = rng.random((2, 2)).astype(np.float16)
    offsets = rng.random((2, 2)).astype(np.float16)
    wide, shift = (np.repeat(a.astype(np.float32), 32, axis=1) for a in (scales, offsets))
    packed = PackedTensor(
        spec=spec("int4", 32), shape=(2, 64), codes=KINDS["int4"].pack(codes), scales=scales
    )
    np.testing.assert_array_equal(unpack(packed), wide * (codes.astype(np.float32) - 8))
    with_offset = PackedTensor(
        spec=spec("int8", 32), shape=(2, 64), codes=codes.view(np.int8), scales=scales, offsets=offsets
    )
    np.testing.assert_array_equal(unpack(with_offset), wide * codes + shift)


@pytest.mark.parametrize("target", SPECS, ids=str)
def test_rounding_error_is_bounded(target: QuantSpec) -> None:
    weights = normal(7, 256) * 0.05
    packed = pack_from_float(weights, target)
    assert packed.scales is not None and packed.scales.dtype == np.float16 and packed.offsets is None
    error = np.abs(unpack(packed) - weights).reshape(7, -1, target.group_size)
    scales = packed.scales.astype(np.float32)[:, :, None]
    if target.kind == "int8":
        assert (error <= 0.5001 * np.abs(scales) + 1e-7).all()
    mse = float(((unpack(packed) - weights) ** 2).mean() / (weights**2).mean())
    assert mse < {"int8": 6e-5, "int4": 0.012, "ternary": 0.3}[target.kind]


def test_int4_uses_the_whole_range() -> None:
    codes = KINDS["int4"].unpack(pack_from_float(normal(64, 64), spec("int4", 64)).codes)
    assert codes.min() == 0 and codes.max() == 15
    assert (codes == 0).any(axis=1).mean() > 0.9  # nearly every group reaches code -8


def test_int4_beats_the_plain_scale() -> None:
    weights = normal(64, 128)
    extreme = np.take_along_axis(weights, np.abs(weights).argmax(axis=1)[:, None], axis=1)
    plain = np.clip(np.rint(weights / (extreme / -8)), -8, 7) * (extreme / -8)
    found = unpack(pack_from_float(weights, spec("int4", 128)))
    assert ((found - weights) ** 2).mean() < 0.97 * ((plain - weights) ** 2).mean()


@settings(max_examples=60)
@given(st.sampled_from(SPECS), st.floats(-30, 12), st.integers(0, 2**31))
def test_any_magnitude_packs(target: QuantSpec, exponent: float, seed: int) -> None:
    weights = normal(2, 128, seed) * np.float32(10**exponent)
    weights[0, :32] = 0
    back = unpack(pack_from_float(weights, target))
    assert np.isfinite(back).all() and (back[0, :32] == 0).sum() >= 32 * (target.group_size == 32)
    # Below float16's smallest step a scale cannot follow: then the error stays below that step.
    limit = {"int8": 0.6 / 127, "int4": 0.2, "ternary": 1.0}[target.kind] * np.abs(weights).max()
    assert np.abs(back - weights).max() <= max(limit, 2e-7)


def test_tiny_scales_do_not_clip() -> None:
    weights = normal(4, 64) * 1e-5  # scales near 2e-7, where float16 steps are 6e-8
    packed = pack_from_float(weights, spec("int8", 64))
    assert np.abs(unpack(packed) - weights).max() < 1.5e-7


def test_huge_scales_become_float32() -> None:
    packed = pack_from_float(normal(2, 64) * 1e8, spec("int8", 64))
    assert packed.scales is not None and packed.scales.dtype == np.float32
    np.testing.assert_allclose(unpack(packed), normal(2, 64) * 1e8, atol=2e6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("target", ["bf16", "int8", "int4", "ternary"])
def test_values_that_are_not_finite_are_refused(bad: float, target: str) -> None:
    weights = normal(5, 64)
    weights[3, 7] = bad
    found = default_spec(target, 64)
    assert found is not None
    with pytest.raises(CheckpointError, match="row 3 of a weight matrix holds a value that is not finite"):
        pack_from_float(weights, found)


def test_too_large_for_f16_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"magnitude 70000 is too large for f16.*use bf16 or f32"):
        pack_from_float(np.full((1, 4), 70000, np.float32), spec("f16"))


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="96 columns do not fit weight format int4-g64"):
        pack_from_float(normal(2, 96), spec("int4", 64))
    with pytest.raises(ConfigError, match="96 columns do not fit weight format ternary-g32"):
        pack_from_float(normal(2, 96), spec("ternary", 32))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_float_kinds_convert(kind: str) -> None:
    weights = normal(3, 5)
    packed = repack(float_tensor(weights, "f32"), spec(kind))
    np.testing.assert_allclose(unpack(packed), weights, rtol={"f32": 0, "f16": 2**-11, "bf16": 2**-8}[kind])


def test_repack_streams_and_agrees_with_packing_at_once() -> None:
    weights = normal(600, 1024)  # more than one slice
    assert len(list(row_slices(600, 1024))) > 1
    stored = float_tensor(weights, "bf16")
    packed = repack(stored, spec("int4", 64))
    at_once = pack_from_float(unpack(stored), spec("int4", 64))
    np.testing.assert_array_equal(packed.codes, at_once.codes)
    assert packed.scales is not None and at_once.scales is not None
    np.testing.assert_array_equal(packed.scales, at_once.scales)
    assert repack(packed, spec("int4", 64)) is packed
    again = repack(packed, spec("int8", 64))
    assert np.abs(unpack(again) - unpack(packed)).max() < np.abs(weights).max() / 120
    np.testing.assert_array_equal(unpack_rows(packed, slice(5, 7)), unpack(packed)[5:7])


@settings(max_examples=100)
@given(st.integers(1, 50), st.integers(1, 1 << 20), st.integers(1, 1 << 12))
def test_row_slices_cover_every_row_once(rows: int, columns: int, weights: int) -> None:
    slices = list(row_slices(rows, columns, weights))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(rows))
    assert all(s.stop - s.start == 1 or (s.stop - s.start) * columns <= weights for s in slices)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_ternary_is_found_with_its_largest_group(kind: str, group: int) -> None:
    weights = ternary_matrix(9, 512, group)
    weights[4] = 0
    stored = float_tensor(weights, kind)
    found = detect_ternary(stored)
    assert found == spec("ternary", group)
    packed = pack_ternary_exact(stored, found)
    np.testing.assert_array_equal(unpack(packed), unpack(stored))
    assert packed.scales is not None and packed.scales.dtype == np.float16
    assert packed.nbytes < stored.nbytes / 6


def test_one_value_out_of_place_is_not_ternary() -> None:
    weights = ternary_matrix(50, 128, 32)
    weights[37, 100] = 5.0  # not in a sampled row
    weights[37, 101] = 4.0
    assert detect_ternary(float_tensor(weights, "bf16")) is None
    with pytest.raises(CheckpointError, match="not ternary in groups of 32"):
        pack_ternary_exact(float_tensor(weights, "bf16"), spec("ternary", 32))


def test_what_cannot_be_ternary() -> None:
    assert detect_ternary(float_tensor(normal(8, 64), "bf16")) is None
    assert detect_ternary(float_tensor(ternary_matrix(8, 96, 32), "bf16")) is None  # rows of 1.5 units
    assert detect_ternary(pack_from_float(normal(2, 64), spec("int8", 64))) is None
    assert detect_ternary(float_tensor(np.full((2, 64), np.inf, np.float32), "bf16")) is None


def test_ternary_scales_that_float16_cannot_hold_stay_float32() -> None:
    stored = float_tensor(ternary_matrix(4, 64, 64) * np.float32(1 / 3), "f32")
    packed = pack_ternary_exact(stored, spec("ternary", 64))
    assert packed.scales is not None and packed.scales.dtype == np.float32
    np.testing.assert_array_equal(unpack(packed), unpack(stored))


def test_rounding_to_ternary_keeps_what_is_ternary_already() -> None:
    weights = ternary_matrix(6, 128, 64)
    np.testing.assert_array_equal(unpack(pack_from_float(weights, spec("ternary", 64))), weights)


def test_ternary_scale_is_the_mean_magnitude() -> None:
    weights = normal(3, 64)
    packed = pack_from_float(weights, spec("ternary", 64))
    scale = np.abs(weights).mean(axis=1, keepdims=True)
    assert packed.scales is not None
    np.testing.assert_allclose(packed.scales, scale, rtol=1e-3)
    np.testing.assert_array_equal(np.sign(unpack(packed)), np.clip(np.rint(weights / packed.scales), -1, 1))


def test_default_spec() -> None:
    assert default_spec("int4", 576) == spec("int4", 64)
    assert default_spec("int8", 96) == spec("int8", 32)
    assert default_spec("int4", 40) is None
    assert default_spec("ternary", 96) is None
    assert default_spec("bf16", 7) == spec("bf16")
    assert default_spec("int5", 64) is None  # it is only read
    with pytest.raises(ConfigError, match=r"weight format 'int7' is unknown\. did you mean 'int"):
        default_spec("int7", 64)


@pytest.mark.parametrize(
    "target", [spec(k, g) for k in ("int4", "int8") for g in (32, 64, 96, 128, 256)], ids=str
)
def test_what_was_rounded_is_found(target: QuantSpec) -> None:
    weights = unpack(pack_from_float(normal(9, 768) * 0.05, target))
    weights[4] = 0
    stored = float_tensor(weights, "f32")
    found = detect_rounded(stored)
    assert found == target
    np.testing.assert_array_equal(unpack(repack(stored, found)), weights)


def test_one_value_out_of_place_is_not_rounded() -> None:
    weights = unpack(pack_from_float(normal(50, 128), spec("int4", 64)))
    weights[37, 100] *= np.float32(1.001)  # not in a sampled row
    assert detect_rounded(float_tensor(weights, "f32")) is None
    weights[37, 100] = np.nan
    assert detect_rounded(float_tensor(weights, "f32")) is None


def test_what_cannot_be_rounded() -> None:
    assert detect_rounded(float_tensor(normal(8, 64), "f32")) is None
    weights = unpack(pack_from_float(normal(8, 64), spec("int8", 32)))
    assert detect_rounded(float_tensor(weights, "bf16")) is None
    assert detect_rounded(pack_from_float(weights, spec("int8", 32))) is None
    assert detect_rounded(float_tensor(np.zeros((0, 64), np.float32), "f32")) is None
