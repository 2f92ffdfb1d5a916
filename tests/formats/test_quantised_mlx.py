"""Folders as MLX's tools write them, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats import open_checkpoint
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.packing import packed_if_exact, unpack
from minicpm4.formats.quant import PackedTensor
from tests.formats.test_quantised import GPTQ, NAME, STEM, drawn, opened, put_bits

MLX = {"group_size": 32, "bits": 4}
MODULE = STEM.removesuffix(".")


def parts(bits: int = 4, seed: int = 0, **changed: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors of a matrix, and its weights: scale * code + bias, in float64."""
    codes, _, scales, _ = drawn(seed, bits)
    biases = np.random.default_rng(seed + 50).standard_normal(scales.shape).astype(np.float16)
    made = {"weight": put_bits(codes, bits, 1).view(np.uint32), "scales": scales, "biases": biases}
    made |= changed
    scales, biases = made["scales"], made["biases"]
    weights = codes * scales.astype(np.float64).repeat(32, 1) + biases.astype(np.float64).repeat(32, 1)
    return made, weights


def mlx(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> PackedTensor:
    return opened(folder, config, tensors, "quantization")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_scales_and_biases(tmp_path: Path, bits: int) -> None:
    tensors, weights = parts(bits)
    found = mlx(tmp_path, {**MLX, "bits": bits, "mode": "affine"}, tensors)
    assert str(found.spec) == f"int{max(bits, 4)}-g32" and found.offsets is not None
    np.testing.assert_allclose(unpack(found), weights, rtol=2e-7, atol=2e-7 * np.abs(weights).max())


def test_the_first_words_by_hand(tmp_path: Path) -> None:
    """Code 0 in the lowest bits of word 0; 0.5 * code - 1 of it."""
    codes = np.arange(96) % 16
    words = [sum(int(codes[8 * w + i]) << 4 * i for i in range(8)) for w in range(12)]
    assert words[0] == 0x76543210 and words[1] == 0xFEDCBA98
    tensors = {
        "weight": np.array([words] * 16, np.uint32),
        "scales": np.full((16, 3), 0.5, np.float16),
        "biases": np.full((16, 3), -1, np.float16),
    }
    np.testing.assert_array_equal(unpack(mlx(tmp_path, MLX, tensors)), np.tile(codes * 0.5 - 1, (16, 1)))


def test_bf16_scales(tmp_path: Path) -> None:
    tensors, _ = parts()
    tensors["scales"] = f32_to_bf16(tensors["scales"].astype(np.float32))
    tensors["biases"] = f32_to_bf16(tensors["biases"].astype(np.float32))
    codes = drawn(0)[0]
    wanted = codes * bf16_to_f32(tensors["scales"]).repeat(32, 1) + bf16_to_f32(tensors["biases"]).repeat(
        32, 1
    )
    np.testing.assert_allclose(unpack(mlx(tmp_path, MLX, tensors)), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("bits", "middle"), [(2, 1), (4, 8), (8, 128)])
def test_weights_about_zero_take_no_offsets(tmp_path: Path, bits: int, middle: int) -> None:
    scales = drawn(1, bits)[2]
    tensors, weights = parts(bits, 1, biases=(-middle * scales.astype(np.float32)).astype(np.float16))
    found = mlx(tmp_path, {**MLX, "bits": bits}, tensors)
    assert found.offsets is None
    np.testing.assert_array_equal(unpack(found).astype(np.float64), weights)


def test_ternary_weights_are_held_as_such(tmp_path: Path) -> None:
    """Two bits of which the fourth code occurs nowhere."""
    numbers = np.random.default_rng(2).integers(-1, 2, (16, 128))
    scales = np.full((16, 2), 0.25, np.float16)
    tensors = {"weight": put_bits(numbers + 1, 2, 1).view(np.uint32), "scales": scales, "biases": -scales}
    found = mlx(tmp_path, {"group_size": 64, "bits": 2}, tensors)
    assert open_checkpoint(tmp_path).tensors[NAME].narrows
    assert str(packed_if_exact(found).spec) == "ternary-g64"
    np.testing.assert_array_equal(unpack(packed_if_exact(found)), numbers * 0.25)


def test_single_matrices_have_their_own_format(tmp_path: Path) -> None:
    tensors, weights = parts(8)
    config = {"group_size": 64, "bits": 4, MODULE: {"group_size": 32, "bits": 8}, "other": False}
    found = mlx(tmp_path, config, tensors)
    assert str(found.spec) == "int8-g32"
    np.testing.assert_allclose(unpack(found), weights, rtol=2e-7, atol=2e-7 * np.abs(weights).max())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**MLX, "bits": 3}, r"MLX weights of 3 bits cannot be read \(quantization\)"),
        ({**MLX, "bits": True}, "True bits"),
        ({**MLX, "bits": None}, "None bits"),
        ({**MLX, "mode": "mxfp4"}, "mode 'mxfp4'"),
        ({**MLX, "group_size": 0}, "groups of 0"),
        ({**MLX, "group_size": "64"}, "groups of '64'"),
        ({**MLX, MODULE: {"group_size": 32, "bits": 6}}, rf"6 bits cannot be read \({MODULE}"),
        ({**MLX, MODULE: {"group_size": 32, "bits": 4, "mode": "nvfp4"}}, "nvfp4"),
        ({**MLX, "odd": 3}, "odd = 3"),
        ({**MLX, MODULE: False}, rf"{NAME} has scales, but config.json says that it is not quantised"),
        ({**MLX, "group_size": 64}, rf"{NAME}: 96 columns are not whole groups of 64"),
        ([4], "None bits"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, config: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        mlx(tmp_path, config, parts()[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"biases": None}, "has scales but no biases"),
        ({"weight": None}, "has scales but no weight"),
        ({"biases": np.zeros((16, 2), np.float16)}, r"biases has shape \(16, 2\), expected \(16, 3\)"),
        ({"scales": np.zeros((3, 16), np.float16)}, r"scales has shape \(3, 16\)"),
        ({"biases": np.zeros((16, 3), np.int32)}, "biases is I32"),
        ({"weight": np.zeros((16, 12), np.float32)}, "weight is F32"),
        ({"weight": np.zeros((16, 96), np.uint32)}, "scales has shape"),
        ({"scales": np.full((16, 3), np.nan, np.float16)}, "a scale is not finite"),
        ({"biases": np.full((16, 3), np.inf, np.float16)}, "one of its biases is not finite"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    tensors = {name: one for name, one in (parts()[0] | changed).items() if one is not None}
    with pytest.raises(CheckpointError, match=said) as error:
        mlx(tmp_path, MLX, tensors)
    assert NAME in str(error.value)


def test_two_descriptions_are_refused(tmp_path: Path) -> None:
    tensors, _ = parts()
    mlx(tmp_path, MLX, tensors)
    config = tmp_path / "config.json"
    both = config.read_text()[:-1] + ', "quantization_config": %s}'
    config.write_text(both % '{"group_size": 32, "bits": 4}')  # as its own tools write it
    assert list(open_checkpoint(tmp_path).tensors) == [NAME]
    config.write_text(both % str(GPTQ).replace("'", '"').replace("False", "false").replace("True", "true"))
    with pytest.raises(CheckpointError, match="quantization and others in quantization_config"):
        open_checkpoint(tmp_path)
