"""Blocks that are written again: the same weights to the bit where a type can represent them, near ones
elsewhere."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats.ggml_types import GGML_TYPES, GgmlType, encoded
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.gguf_write import OutTensor, matrix, write_gguf
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.quant import PARTS, PackedTensor, QuantSpec, packed_shapes
from tests.fixtures.normal import normal

BLOCKS = Path(__file__).parent / "data" / "ggml_blocks.npz"
BY_NAME = {kind.name: (number, kind) for number, kind in GGML_TYPES.items() if kind.writable}
# How the types that round are rounded to, by the rounding of packing: type -> format.
ROUNDED = {"Q4_0": "int4-g32", "Q4_1": "int4-g32", "Q8_0": "int8-g32", "TQ1_0": "ternary-g256"}
ROUNDED |= {"TQ2_0": "ternary-g256", "F16": "f16", "BF16": "bf16", "F32": "f32"}


def written(path: Path, number: int, raw: np.ndarray) -> PackedTensor:
    kind = GGML_TYPES[number]
    shape = raw.shape[0], raw.shape[1] // kind.nbytes * kind.block
    write_gguf(path, {}, [OutTensor(name="w", shape=shape, type_id=number, data=raw)])
    return GgufCheckpoint(path).load("w")


def random_blocks(name: str, seed: int) -> np.ndarray:
    """Any bytes that are valid: random bits, finite scales of either sign and of any size."""
    rng = np.random.default_rng(seed)
    _, kind = BY_NAME[name]
    raw = rng.integers(0, 256, (3, 4, kind.nbytes), np.uint8)
    places = {"Q4_0": (0,), "Q8_0": (0,), "Q5_0": (0,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)}
    places |= {"Q2_0": (0,)}
    for place in places.get(name, (0, 2) if kind.decode is not None else ()):
        scales = rng.standard_normal((3, 4)) * 10.0 ** rng.integers(-6, 3, (3, 4))
        raw[..., place : place + 2] = scales.astype("<f2")[..., None].view(np.uint8)
    if name == "Q2_0":  # without the fourth number, which is never written
        raw[..., 2:] &= ~((raw[..., 2:] & (raw[..., 2:] >> 1) & 0x55) * 3)
    if name.startswith("TQ"):
        codes = rng.integers(0, 3, (3, 1024)).astype(np.float32) - 1
        packed = pack_from_float(codes, QuantSpec(kind="ternary", group_size=256))
        raw[..., : places[name][0]] = encoded(packed, kind).reshape(3, 4, -1)[..., : places[name][0]]
    elif kind.decode is None:
        stored = kind.stored or kind.spec.row.codes
        values = rng.standard_normal(raw.reshape(3, -1).view(stored).shape).astype(np.float32)
        raw = kind.spec.row.pack(values).astype(stored, copy=False).view(np.uint8)
    return raw.reshape(3, -1)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_what_was_read_is_written_to_the_bit(name: str, seed: int | None, tmp_path: Path) -> None:
    number, kind = BY_NAME[name]
    with np.load(BLOCKS) as stored:
        known = seed is None and f"{name}_raw" in stored  # float64 has no others' blocks
        raw = stored[f"{name}_raw"] if known else random_blocks(name, seed or 0)
    first = written(tmp_path / "first.gguf", number, raw)
    again = written(tmp_path / "again.gguf", number, encoded(first, kind))
    np.testing.assert_array_equal(unpack(again), unpack(first))
    for part in PARTS:
        np.testing.assert_array_equal(getattr(again, part), getattr(first, part), err_msg=part)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_0", "TQ2_0", "F16"])
def test_bytes_are_the_same_where_only_one_block_stands_for_the_weights(name: str, tmp_path: Path) -> None:
    number, kind = BY_NAME[name]
    raw = random_blocks(name, 3)
    np.testing.assert_array_equal(encoded(written(tmp_path / "one.gguf", number, raw), kind), raw)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_weights_are_those_of_packing(name: str, tmp_path: Path) -> None:
    number, kind = BY_NAME[name]
    weights = normal(5, 512) * np.float32(0.05)
    packed = pack_from_float(weights, kind.spec)
    assert str(packed.spec) == ROUNDED[name]
    write_gguf(tmp_path / "one.gguf", {}, [matrix("w", packed, number)])
    found = GgufCheckpoint(tmp_path / "one.gguf").load("w")
    close = {"rtol": 1e-6, "atol": 1e-7} if name == "Q4_1" else {"rtol": 0, "atol": 0}  # -8 times a scale
    np.testing.assert_allclose(unpack(found), unpack(packed), **close)


@pytest.mark.parametrize("offset", [True, False])
def test_scales_off_the_grid_move_to_the_nearest(offset: bool) -> None:
    """int4 with scales of either sign in a Q4_K: the error stays that of another rounding to 4 bits."""
    weights = normal(9, 512, 1) * np.float32(0.05)
    packed = pack_from_float(weights, QuantSpec(kind="int4", group_size=32))
    if offset:
        assert packed.scales is not None
        lowered = (packed.scales.astype(np.float32) * -8).astype(np.float16)
        packed = PackedTensor(
            spec=packed.spec, shape=packed.shape, codes=packed.codes, scales=packed.scales, offsets=lowered
        )
    _, kind = BY_NAME["Q4_K"]
    assert kind.decode is not None
    parts: dict[str, Any] = kind.decode(encoded(packed, kind).reshape(9, -1, kind.nbytes))
    found = PackedTensor(spec=kind.spec, shape=packed.shape, **parts)
    error = np.abs(unpack(found) - unpack(packed)).reshape(9, -1, 32).max(axis=2)
    assert packed.scales is not None
    assert (error <= 1.0 * np.abs(packed.scales.astype(np.float32))).all()
    assert ((unpack(found) - weights) ** 2).mean() < 2 * ((unpack(packed) - weights) ** 2).mean()


def test_what_a_type_has_no_room_for_is_refused() -> None:
    weights = normal(2, 256, 2)
    int8 = pack_from_float(weights, QuantSpec(kind="int8", group_size=32))
    cases = [
        (int8, "Q5_0", r"weights in int8-g32 cannot be written as Q5_0.*convert them to int5-g32"),
        (int8, "Q4_0", r"weights in int8-g32 cannot be written as Q4_0.*convert them to int4-g32"),
        (pack_from_float(weights * 1e8, int8.spec), "Q8_0", "not one that float16 holds"),
        (pack_from_float(weights, QuantSpec(kind="int4", group_size=64)), "Q2_0", "codes of 0 to 15"),
        (
            pack_from_float(weights[:, :96], QuantSpec(kind="int4", group_size=32)),
            "Q4_K",
            "96 columns do not",
        ),
    ]
    for tensor, name, message in cases:
        with pytest.raises(CheckpointError, match=message):
            encoded(tensor, BY_NAME[name][1])


@pytest.mark.parametrize(
    "kind", [kind for kind in GGML_TYPES.values() if not kind.writable], ids=lambda one: one.name
)
def test_types_that_are_read_alone_say_so(kind: GgmlType) -> None:
    shapes = packed_shapes((2, 256), kind.spec, "rows")
    parts: dict[str, Any] = {part: np.zeros(shapes[part], one) for part, one in kind.types.items()}
    with pytest.raises(CheckpointError, match=f"{kind.name} can be read, not written"):
        encoded(PackedTensor(spec=kind.spec, shape=(2, 256), **parts), kind)


def test_a_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    def made() -> np.ndarray:
        return np.ones((1024, 1024), np.float32)

    tensors = [OutTensor(name=f"t{i}", shape=(1024, 1024), type_id=0, data=made) for i in range(10)]
    tracemalloc.start()
    write_gguf(tmp_path / "large.gguf", {}, tensors)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * 4 * 1024 * 1024
    assert GgufCheckpoint(tmp_path / "large.gguf").load("t9").shape == (1024, 1024)
