"""Matrices go into GGML types as they are where that can be, and are rounded once where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.ggml_fit import check_columns, own_types, rounded_to, same_in, type_id
from minicpm4.formats.ggml_types import GGML_TYPES
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.gguf_write import matrix, write_gguf
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec
from tests.formats.test_ggml_encode import BLOCKS, written

WRITTEN = [kind.name for kind in GGML_TYPES.values() if kind.writable and not kind.stored]


def drawn(columns: int = 512, seed: int = 0) -> np.ndarray:
    """Weights of groups that differ in size, some of them of one sign."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((7, columns)) * 10.0 ** rng.uniform(-2, 0, (7, columns // 32)).repeat(32, 1)
    values[2] = np.abs(values[2])
    values[3, :256] = 0
    return values.astype(np.float32)


def packed(spec: str, seed: int = 0) -> PackedTensor:
    kind, _, group = spec.partition("-g")
    return pack_from_float(drawn(seed=seed), QuantSpec(kind=kind, group_size=int(group or 0)))


def first_type(tensor: PackedTensor) -> str | None:
    """The type that a matrix gets unless one is asked for."""
    known = own_types(tensor.spec, tensor.shape[1], offsets=tensor.offsets is not None)
    return next((GGML_TYPES[n].name for n in known if same_in(tensor, GGML_TYPES[n]) is not None), None)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("f32", "F32"),
        ("f16", "F16"),
        ("bf16", "BF16"),
        ("int4-g32", "Q4_0"),
        ("int4-g128", "Q4_0"),
        ("int8-g32", "Q8_0"),
        ("int8-g64", "Q8_0"),
        ("ternary-g256", "TQ2_0"),
        ("ternary-g128", "Q2_0"),
        ("ternary-g64", "Q2_0"),
        ("ternary-g32", "Q4_0"),
        ("int8-g16", None),  # 8 bits in groups of 16: Q6_K has 6
    ],
)
def test_a_format_has_a_type_that_holds_it(spec: str, name: str | None, tmp_path: Path) -> None:
    tensor = packed(spec)
    assert first_type(tensor) == name
    if name is None:
        return
    fitted = same_in(tensor, GGML_TYPES[type_id(name)])
    assert fitted is not None
    write_gguf(tmp_path / "m.gguf", {}, [matrix("w", fitted, type_id(name))])
    np.testing.assert_array_equal(unpack(GgufCheckpoint(tmp_path / "m.gguf").load("w")), unpack(tensor))


@pytest.mark.parametrize("kind", ["ternary", "int4", "int8"])
def test_types_of_fewer_bits_come_first(kind: str) -> None:
    found = [GGML_TYPES[number] for number in own_types(QuantSpec(kind=kind, group_size=256), 512)]
    bits = [8 * one.nbytes / one.block for one in found]
    assert len(found) > 2 and bits == sorted(bits)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_read_from_a_file_goes_back_into_its_type(name: str, tmp_path: Path) -> None:
    number = type_id(name)
    with np.load(BLOCKS) as stored:
        if f"{name}_raw" not in stored:
            pytest.skip("its blocks are not among those kept")
        tensor = written(tmp_path / "m.gguf", number, stored[f"{name}_raw"])
    found = same_in(tensor, GGML_TYPES[number])
    assert found is not None
    np.testing.assert_array_equal(unpack(found), unpack(tensor))


@pytest.mark.parametrize("name", WRITTEN)
def test_floats_are_rounded_to_what_the_file_gives_back(name: str, tmp_path: Path) -> None:
    kind, tensor = GGML_TYPES[type_id(name)], packed("f32")
    fitted = rounded_to(tensor, kind)
    write_gguf(tmp_path / "m.gguf", {}, [matrix("w", fitted, type_id(name))])
    np.testing.assert_array_equal(unpack(GgufCheckpoint(tmp_path / "m.gguf").load("w")), unpack(fitted))
    assert same_in(fitted, kind) is not None


# Bits of the numbers of a type: a weight is at most half a step from what it was, and a little more where
# scales lie on a grid.
STEPS = {"Q8_0": 8, "Q5_0": 5, "Q6_K": 6, "Q4_1": 4, "Q5_1": 5, "Q4_K": 4, "Q5_K": 5}


@pytest.mark.parametrize("name", STEPS)
def test_rounding_is_to_the_nearest_of_the_span(name: str) -> None:
    kind, values = GGML_TYPES[type_id(name)], drawn(seed=3)
    found = unpack(rounded_to(packed("f32", seed=3), kind))
    groups = values.reshape(7, -1, kind.spec.group_size)
    top = np.abs(groups).max(axis=2)
    span = np.ptp(np.concatenate([groups, 0 * groups[..., :1]], axis=2), axis=2) if kind.offsets else 2 * top
    step = span / (2 ** STEPS[name] - 1)
    # A super-block's scales have a grid: half a 63rd of its largest scale is added to each weight's step.
    coarse = np.repeat(step.reshape(7, -1, kind.block // kind.spec.group_size).max(2), kind.block, 1)
    error = np.abs(found - values).reshape(groups.shape).max(axis=2)
    grid = 0.3 * coarse[:, :: kind.spec.group_size] if "steps" in kind.scales else 0
    clipped = 1.05 if name in ("Q5_0", "Q6_K") else 0.56  # they reach a step further down than up
    assert (error <= clipped * step + grid + 1e-6).all()


def test_zero_points_keep_their_codes() -> None:
    """AWQ's and GPTQ's: a zero point times its scale is mostly no float16, which moves a weight by a 2048th
    of its size; rounding anew would move it by a part of a step."""
    codes = np.random.default_rng(1).integers(0, 16, (7, 512)).astype(np.uint8)
    scales = np.random.default_rng(2).uniform(0.01, 0.02, (7, 4)).astype(np.float16)
    offsets = scales.astype(np.float32) * -7
    spec = QuantSpec(kind="int4", group_size=128)
    tensor = PackedTensor(
        spec=spec, shape=codes.shape, codes=spec.row.pack(codes), scales=scales, offsets=offsets
    )
    kind = GGML_TYPES[type_id("q4_1")]
    assert same_in(tensor, kind) is None
    found = rounded_to(tensor, kind)
    np.testing.assert_array_equal(found.spec.row.unpack(found.codes), codes)
    assert 0 < np.abs(unpack(found) - unpack(tensor)).max() <= np.abs(offsets).max() / 2048


def test_offsets_make_weights_of_one_sign_finer() -> None:
    values = np.abs(drawn())
    tensor = pack_from_float(values, QuantSpec(kind="f32"))
    with_offsets, without = (
        np.square(unpack(rounded_to(tensor, GGML_TYPES[type_id(name)])) - values).mean()
        for name in ("q4_1", "q4_0")
    )
    assert with_offsets < 0.5 * without


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'q4_k_m' is no GGML type that is written.*q4_k"):
        type_id("q4_k_m")
    with pytest.raises(ConfigError, match="q2_k"):
        type_id("q2_k")  # read only
    with pytest.raises(
        ConfigError, match=r"w.weight has rows of 96 weights, .* blocks of 256 \(Q6_K\).*'w=q8_0'"
    ):
        check_columns({"w.weight": 96}, GGML_TYPES[type_id("q6_k")])
    large = pack_from_float(drawn() * np.float32(1e10), QuantSpec(kind="f32"))
    for name in ("q4_1", "q4_k", "q6_k", "f16"):
        with pytest.raises(CheckpointError, match="too large for f"):
            rounded_to(large, GGML_TYPES[type_id(name)])
    assert (
        same_in(
            pack_from_float(drawn() * np.float32(1e8), QuantSpec(kind="int4", group_size=32)),
            GGML_TYPES[type_id("q4_0")],
        )
        is None
    )
