"""Every packing there and back, for any shape and codes: in memory, in words of files, in GGML's blocks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.formats.ggml_types import GGML_TYPES, GgmlType, encoded
from minicpm4.formats.kinds import grouped_kinds
from minicpm4.formats.marlin import pack_tiles, scales_in_order, scales_of_threads, unpack_tiles
from minicpm4.formats.packing import packed_if_exact, unpack, widened, wider
from minicpm4.formats.quant import (
    PARTS,
    PackedTensor,
    QuantSpec,
    ScaleForm,
    packed_nbytes,
    packed_shapes,
    scale_types,
)
from minicpm4.formats.quantised import QuantisedMatrix, layout_of
from minicpm4.formats.words import awq_columns, awq_words, pack_words, unpack_words
from minicpm4.quantize.grid import pack

SEEDS = st.integers(0, 1 << 32)
ROUND_TRIP = settings(max_examples=80)


def codes(seed: int, bits: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), dtype=np.uint8)


@ROUND_TRIP
@given(SEEDS, st.sampled_from(list(grouped_kinds())), st.integers(1, 9), st.integers(1, 5))
def test_codes_in_memory(seed: int, kind: str, rows: int, units: int) -> None:
    row = grouped_kinds()[kind]
    found = codes(seed, row.bits, rows, units * row.columns).view(row.codes)
    packed = row.pack(found)
    assert packed.shape == (rows, row.width(found.shape[1])) and packed.dtype == row.codes
    np.testing.assert_array_equal(row.unpack(packed), found)


@ROUND_TRIP
@given(SEEDS, st.sampled_from(list(grouped_kinds())), st.sampled_from(["f16", "f32", "steps"]), st.booleans())
def test_widened_weights_are_the_same(seed: int, kind: str, form: ScaleForm, offsets: bool) -> None:
    """In every kind and form of scales, to the bit."""
    tensor = drawn(seed, QuantSpec(kind=kind, group_size=32), form, offsets)
    wide = widened(tensor)
    assert not wide.two_level and wide.spec == wider(tensor.spec) and not wide.spec.row.wider
    np.testing.assert_array_equal(unpack(wide), unpack(tensor))
    assert tensor.nbytes == packed_nbytes(tensor.shape, tensor.spec, scales=form, offsets=offsets)


@ROUND_TRIP
@given(SEEDS, st.booleans())
def test_steps_of_four_bits_share_a_byte(seed: int, offsets: bool) -> None:
    """What a byte holds is what two bytes would."""
    spec = QuantSpec(kind="int2", group_size=16)
    whole = drawn(seed, spec, "steps", offsets=True, most=15)
    assert whole.scales is not None and whole.offsets is not None
    both = (whole.scales | whole.offsets << 4).astype(np.uint8)
    supers = {"super_scales": whole.super_scales, "super_offsets": whole.super_offsets if offsets else None}
    half = PackedTensor(spec=spec, shape=whole.shape, codes=whole.codes, scales=both, **supers)
    if not offsets:
        whole = replace(whole, offsets=None, super_offsets=None)
    assert half.shifted == whole.shifted == offsets
    np.testing.assert_array_equal(unpack(half), unpack(whole))


def drawn(seed: int, spec: QuantSpec, form: ScaleForm, offsets: bool, most: int = 127) -> PackedTensor:
    """A matrix of random codes and scales, which are negative here and there."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 9)), 256 * int(rng.integers(1, 4))
    shapes, least = packed_shapes(shape, spec, "rows"), 0 if most < 16 else -128
    parts: dict[str, Any] = {}
    for part, one in scale_types(form, offsets).items():
        steps = one == np.int8
        values = rng.integers(least, most + 1, shapes[part]) if steps else rng.standard_normal(shapes[part])
        parts[part] = values.astype(one)
    found = codes(seed, spec.row.bits, *shape)
    found = found % np.uint8(3) if spec.kind == "ternary" else found
    return PackedTensor(spec=spec, shape=shape, codes=spec.row.pack(found.view(spec.row.codes)), **parts)


@ROUND_TRIP
@given(SEEDS, st.sampled_from([2, 4, 8]), st.integers(1, 9), st.integers(1, 70))
def test_words(seed: int, bits: int, rows: int, columns: int) -> None:
    found = codes(seed, bits, rows, columns)
    words = pack_words(found, bits)
    assert words.shape == (rows, -(-columns * bits // 32)) and words.dtype == np.int32
    whole = unpack_words(words, bits)
    np.testing.assert_array_equal(whole[:, :columns], found)
    assert not whole[:, columns:].any()
    np.testing.assert_array_equal(pack_words(whole, bits), words)


@ROUND_TRIP
@given(SEEDS, st.integers(1, 9), st.integers(1, 9))
def test_awq_words(seed: int, rows: int, words: int) -> None:
    found = codes(seed, 4, rows, 8 * words)
    np.testing.assert_array_equal(awq_columns(awq_words(found)), found)


@ROUND_TRIP
@given(SEEDS, st.integers(1, 4), st.integers(1, 5), st.data())
def test_tiles(seed: int, blocks: int, steps: int, data: st.DataObject) -> None:
    found = codes(seed, 4, 64 * blocks, 16 * steps)
    words = pack_tiles(found)
    assert words.shape == (steps, 128 * blocks)
    start = data.draw(st.integers(0, len(found) - 1))
    stop = data.draw(st.integers(start + 1, len(found)))
    np.testing.assert_array_equal(unpack_tiles(words, slice(start, stop)), found[start:stop])
    scales = np.random.default_rng(seed).random((steps, 64 * blocks))
    np.testing.assert_array_equal(scales_in_order(scales_of_threads(scales)), scales)
    assert sorted(scales_of_threads(scales).reshape(-1)) == sorted(scales.reshape(-1))


@ROUND_TRIP
@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_ternary_codes_of_four_bits(seed: int, rows: int, groups: int, fourth: bool) -> None:
    """What Q2_0 and MLX's two bits are read into becomes ternary where that loses nothing, only there."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(-1, 2, (rows, 64 * groups)).astype(np.float32)
    if fourth:
        numbers[rng.integers(rows), rng.integers(64 * groups)] = 2
    scales = rng.standard_normal((rows, groups)).astype(np.float16).astype(np.float32)
    tensor = pack(numbers, scales, QuantSpec(kind="int4", group_size=64))
    found = packed_if_exact(tensor)
    assert found.spec.kind == ("int4" if fourth else "ternary")
    np.testing.assert_array_equal(unpack(found), unpack(tensor))


WRITTEN = {kind.name: kind for kind in GGML_TYPES.values() if kind.decode is not None and kind.writable}


def decoded(kind: GgmlType, raw: np.ndarray) -> PackedTensor:
    assert kind.decode is not None
    parts: dict[str, Any] = kind.decode(raw)
    return PackedTensor(spec=kind.spec, shape=(raw.shape[0], raw.shape[1] * kind.block), **parts)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([4, 8]), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_pickedin_act_order(seed: int, bits: int, rows: int, groups: int, symmetric: bool) -> None:
    """A matrix whose columns' groups are in any order has the values of the same matrix in order."""
    rng = np.random.default_rng(seed)
    rows, columns = 8 * rows, 32 * groups
    numbers, order = codes(seed, bits, rows, columns), rng.permutation(columns)
    middle = np.full((groups, rows), 1 << (bits - 1), np.uint8)
    zeros = middle if symmetric else codes(seed + 1, bits, groups, rows)
    scales = rng.standard_normal((groups, rows)).astype(np.float16)
    config = {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": bits, "group_size": 32}

    def stored(picked: np.ndarray) -> QuantisedMatrix:
        return _matrix(
            config,
            {
                "qzeros": pack_words(zeros, bits),
                "scales": scales,
                "qweight": np.ascontiguousarray(pack_words(numbers[:, picked], bits).T),
                "g_idx": (np.arange(columns) // 32)[picked].astype(np.int32),
            },
        )

    ordered, scattered = stored(np.arange(columns)), stored(order)
    moved = (order // 32 != np.arange(columns) // 32).any()
    assert str(ordered.spec) == f"int{bits}-g32" and scattered.scattered == moved
    np.testing.assert_array_equal(unpack(scattered.load()), unpack(ordered.load())[:, order])


def _matrix(config: dict[str, object], tensors: dict[str, np.ndarray]) -> QuantisedMatrix:
    """The matrix that a folder with these tensors would hold."""
    types = {"int32": "I32", "float16": "F16"}
    parts = {
        last: SimpleNamespace(
            shape=one.shape,
            entry=SimpleNamespace(dtype=types[one.dtype.name], nbytes=one.nbytes),
            view=lambda one=one: one,
        )
        for last, one in tensors.items()
    }
    return layout_of(config, {}, []).matrices("w", parts)["w"]


@ROUND_TRIP
@given(SEEDS, st.sampled_from(list(WRITTEN)), st.integers(1, 5), st.integers(1, 3))
def test_blocks_of_ggml(seed: int, name: str, rows: int, blocks: int) -> None:
    """Any bytes that stand for weights are written as they were read: the same codes, scales and offsets."""
    kind, rng = WRITTEN[name], np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, blocks, kind.nbytes), np.uint8)
    at = {"Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64], "Q2_0": [0]}
    for place in at.get(name, [0, 2] if kind.offsets else [0]):
        scales = rng.standard_normal((rows, blocks)) * 10.0 ** rng.integers(-6, 3, (rows, blocks))
        raw[..., place : place + 2] = scales.astype("<f2")[..., None].view(np.uint8)
    if name in ("TQ2_0", "Q2_0"):  # without the fourth code
        start = 0 if name == "TQ2_0" else 2
        part = raw[..., start : start + kind.block // 4]
        part &= ~((part & (part >> 1) & 0x55) * 3)
    if name == "TQ1_0":  # bytes that five base-3 digits give
        digits = rng.integers(0, 3, (rows, blocks * kind.block)).astype(np.float32) - 1
        spec, ones = kind.spec, np.ones((rows, blocks), np.float32)
        raw[..., :52] = encoded(pack(digits, ones, spec), kind).reshape(raw.shape)[..., :52]
    first = decoded(kind, raw)
    again = decoded(kind, encoded(first, kind).reshape(rows, blocks, kind.nbytes))
    for part_name in PARTS:
        np.testing.assert_array_equal(getattr(again, part_name), getattr(first, part_name))
