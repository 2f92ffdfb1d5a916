"""bfloat16 conversion: exact one way, nearest-even the other."""

from __future__ import annotations

import numpy as np

from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16


def test_every_bfloat16_survives_a_round_trip() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = bf16_to_f32(bits)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(f32_to_bf16(values)[finite], bits[finite])
    assert np.isnan(bf16_to_f32(f32_to_bf16(values)))[~finite].all()


def test_rounding_is_to_nearest_ties_to_even() -> None:
    ulp = 2.0**-7  # of bfloat16 numbers from 1 to 2
    values = np.array(
        [1, 1 + 0.49 * ulp, 1 + 0.5 * ulp, 1 + 0.51 * ulp, 1 + 1.5 * ulp, -1 - 1.5 * ulp], np.float32
    )
    expected = np.array([1, 1, 1, 1 + ulp, 1 + 2 * ulp, -1 - 2 * ulp], np.float32)
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(values)), expected)


def test_specials() -> None:
    low_payload = np.array([0x7F800001], np.uint32).view(np.float32)  # would round to infinity
    assert np.isnan(bf16_to_f32(f32_to_bf16(low_payload)))[0]
    values = np.array([np.inf, -np.inf, 3.4e38, 0.0, -0.0], np.float32)
    back = bf16_to_f32(f32_to_bf16(values))
    assert back[0] == np.inf and back[1] == -np.inf
    assert back[2] == np.inf  # beyond the largest bfloat16, 3.39e38
    assert np.signbit(back[4]) and not np.signbit(back[3])


def test_shapes_are_kept() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    back = bf16_to_f32(f32_to_bf16(values))
    assert back.shape == values.shape
    np.testing.assert_allclose(back, values, rtol=2**-8)
