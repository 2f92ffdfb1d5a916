"""Folders whose weights other tools quantised, worked out by hand: GPTQ, AWQ, compressed-tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats import open_checkpoint
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import PackedTensor
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.formats.words import AWQ_ORDER, pack_words, unpack_words

NAME = "model.layers.0.mlp.down_proj.weight"
STEM = NAME.removesuffix("weight")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
CT = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}},
}


def put_bits(codes: np.ndarray, bits: int, axis: int, order: tuple[int, ...] = ()) -> np.ndarray:
    """Codes to 32-bit words along ``axis``, one code at a time."""
    each = 32 // bits
    codes = np.moveaxis(codes, axis, -1)
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // each), np.uint32)
    for i in range(codes.shape[-1]):
        place = order.index(i % each) if order else i % each
        words[..., i // each] |= codes[..., i].astype(np.uint32) << np.uint32(bits * place)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def put_zeros(zeros: np.ndarray, bits: int, version: str) -> np.ndarray:
    """GPTQ's words of zeros (out, groups); in its first version less 1 each as GPTQModel does it: of the
    word, so that a zero of 0 borrows from the next."""
    words = put_bits(zeros.T, bits, 1).view(np.uint32)
    less = np.uint32({4: 0x11111111, 8: 0x01010101}[bits] if version == "gptq" else 0)
    return (words - less).view(np.int32)


def drawn(
    seed: int, bits: int = 4, out: int = 16, columns: int = 96, group: int = 32
) -> tuple[np.ndarray, ...]:
    """Codes (out, in), zeros (out, groups), scales (out, groups) float16, and the weights that they are."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (out, columns))
    zeros = rng.integers(0, 1 << bits, (out, columns // group))
    scales = (rng.random((out, columns // group)) * 0.1 + 0.01).astype(np.float16)
    wide = scales.astype(np.float64).repeat(group, 1)
    return codes, zeros, scales, (codes - zeros.repeat(group, 1)) * wide


def opened(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], field: str = "quantization_config"
) -> PackedTensor:
    """The matrix NAME of a folder with these parts of it; ``config``: what config.json says in ``field``."""
    types = {"uint16": "BF16", "float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64"}
    types |= {"uint32": "U32"}
    sources = {
        STEM + last: TensorSource(shape=one.shape, dtype=types[one.dtype.name], make=lambda one=one: one)
        for last, one in tensors.items()
    }
    write_safetensors(folder / "model.safetensors", sources)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", field: config}))
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.tensors) == [NAME]
    tensor = checkpoint.load(NAME)
    assert tensor.shape == checkpoint.tensors[NAME].shape and tensor.spec == checkpoint.tensors[NAME].spec
    checkpoint.release(NAME)
    return tensor


def equal(tensor: PackedTensor, weights: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(tensor).astype(np.float64), weights)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(tmp_path: Path, version: str, bits: int) -> None:
    codes, zeros, scales, _ = drawn(1, bits)
    zeros[3] = 0
    weights = (codes - zeros.repeat(32, 1)) * scales.astype(np.float64).repeat(32, 1)
    tensors = {
        "qweight": put_bits(codes.T, bits, 0),
        "qzeros": put_zeros(zeros, bits, version),
        "scales": scales.T,
        "g_idx": (np.arange(96) // 32).astype(np.int32),
    }
    found = opened(tmp_path, {**GPTQ, "bits": bits, "checkpoint_format": version}, tensors)
    assert str(found.spec) == f"int{bits}-g32"
    equal(found, weights)


def test_symmetric_weights_take_no_offsets(tmp_path: Path) -> None:
    codes, zeros, scales, _ = drawn(2)
    zeros[:] = 8
    tensors = {
        "qweight": put_bits(codes.T, 4, 0),
        "qzeros": put_bits(zeros.T - 1, 4, 1),
        "scales": scales.T,
    }
    found = opened(tmp_path, GPTQ, tensors)
    assert found.offsets is None
    equal(found, (codes - 8) * scales.astype(np.float64).repeat(32, 1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("desc_act", [False, True])
def test_groups_that_are_not_neighbours_are_floats(
    tmp_path: Path, bits: int, desc_act: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Act-order: whatever the configuration says of it, the columns' groups are those of g_idx."""
    codes, zeros, scales, _ = drawn(3, bits)
    groups = np.random.default_rng(3).permutation(np.arange(96) // 32)
    tensors = {
        "qweight": put_bits(codes.T, bits, 0),
        "qzeros": put_bits(zeros.T, bits, 1),
        "scales": scales.T,
        "g_idx": groups.astype(np.int32),
    }
    config = {**GPTQ, "bits": bits, "desc_act": desc_act, "checkpoint_format": "gptq_v2"}
    found = opened(tmp_path, config, tensors)
    assert str(found.spec) == "f32" and "convert" in caplog.text and NAME in caplog.text
    equal(found, (codes - zeros[:, groups]) * scales[:, groups].astype(np.float64))
    info = open_checkpoint(tmp_path).tensors[NAME]
    assert info.dtype == f"gptq-int{bits} in act-order" and info.loaded_nbytes == 4 * 16 * 96


def test_groups_in_order_are_told_of_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path, {**GPTQ, "desc_act": True}, parts(g_idx=(np.arange(96) // 32).astype(np.int32)))
    assert not caplog.text


@pytest.mark.parametrize("zero", [False, True])
def test_act_order_of_compressed_tensors(tmp_path: Path, zero: bool) -> None:
    codes, zeros, scales, _ = drawn(5)
    groups = np.random.default_rng(5).permutation(np.arange(96) // 32)
    tensors = {
        "weight_packed": put_bits(codes, 4, 1),
        "weight_scale": scales,
        "weight_shape": np.array([16, 96], np.int64),
        "weight_g_idx": groups.astype(np.int32),
    } | ({"weight_zero_point": put_bits(zeros, 4, 0)} if zero else {})
    middle = zeros[:, groups] if zero else 8
    equal(opened(tmp_path, CT, tensors), (codes - middle) * scales[:, groups].astype(np.float64))


# As AutoAWQ writes it, as transformers 5 does, and with the name of a kernel that loads such files.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": None, "format": "gemm", "backend": "auto", "modules_to_not_convert": ["lm_head"]},
        {"version": "exllama", "exllama_config": {"version": 2}},
        {"bits": None, "group_size": None, "w_bit": 4, "q_group_size": 32},
    ],
)
def test_awq(tmp_path: Path, changes: dict[str, Any]) -> None:
    codes, zeros, scales, weights = drawn(4)
    tensors = {
        "qweight": put_bits(codes.T, 4, 1, AWQ_ORDER),
        "qzeros": put_bits(zeros.T, 4, 1, AWQ_ORDER),
        "scales": scales.T,
    }
    config = {name: value for name, value in (AWQ | changes).items() if value is not None}
    equal(opened(tmp_path, config, tensors), weights)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_compressed_tensors(tmp_path: Path, bits: int, zero: bool, kind: str) -> None:
    codes, zeros, scales, weights = drawn(5, bits)
    config = json.loads(json.dumps(CT))
    config["config_groups"]["group_0"]["weights"]["num_bits"] = bits
    tensors = {
        "weight_packed": put_bits(codes, bits, 1),
        "weight_scale": scales,
        "weight_shape": np.array([16, 96], np.int64),
    }
    if zero:
        tensors["weight_zero_point"] = put_bits(zeros, bits, 0)
    else:
        weights = (codes - (1 << (bits - 1))) * scales.astype(np.float64).repeat(32, 1)
    if kind == "BF16":
        tensors["weight_scale"] = f32_to_bf16(scales.astype(np.float32))
        short = bf16_to_f32(tensors["weight_scale"]).astype(np.float64).repeat(32, 1)
        weights = weights / scales.astype(np.float64).repeat(32, 1) * short
    found = opened(tmp_path, config, tensors)
    np.testing.assert_allclose(unpack(found), weights, rtol=1e-6)


def parts(**changed: Any) -> dict[str, np.ndarray]:
    codes, zeros, scales, _ = drawn(6)
    made = {"qweight": put_bits(codes.T, 4, 0), "qzeros": put_bits(zeros.T, 4, 1), "scales": scales.T}
    made |= changed
    return {name: one for name, one in made.items() if one is not None}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (parts(scales=None), "no scales"),
        (parts(scales=np.zeros((2, 16), np.float16)), r"shape \(2, 16\)"),
        (parts(scales=np.full((3, 16), np.nan, np.float16)), "not finite, or too large\\. download it anew"),
        (
            parts(qzeros=np.zeros((3, 2), np.float32)),
            r"F32 .*which gptq has not\. use the original checkpoint",
        ),
        (parts(g_idx=np.zeros(7, np.int32)), r"shape \(7,\)"),
        (parts(g_idx=np.full(96, 3, np.int32)), "groups from 3 to 3, there are 3"),
        (parts(g_idx=-np.ones(96, np.int32)), "groups from -1 to -1"),
        (parts(qweight=np.zeros((11, 16), np.int32)), "whole groups"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        opened(tmp_path, GPTQ, tensors)
    assert NAME in str(error.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({**GPTQ, "bits": 3}, "3 bits"),
        ({**GPTQ, "group_size": "x"}, "group_size"),
        ({**AWQ, "version": "gemv"}, "gemv"),
        ({**AWQ, "backend": "llm-awq"}, "llm-awq"),
        ({**CT, "format": "marlin-24"}, "marlin-24"),
        ({**CT, "config_groups": {}}, "config_groups"),
        (
            {
                **CT,
                "config_groups": {"a": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 8}}},
            },
            "input_activations",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path, config, parts())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [1, 7, 32, 33])
def test_words(bits: int, columns: int) -> None:
    codes = np.random.default_rng(columns).integers(0, 1 << bits, (5, columns))
    np.testing.assert_array_equal(unpack_words(pack_words(codes, bits), bits)[:, :columns], codes)


def test_the_least_code_of_eight_bits_is_multiplied_right(tmp_path: Path) -> None:
    """-128, which our own rounding never gives."""
    from minicpm4.kernels.contract import Linear
    from minicpm4.kernels.registry import host_table

    codes, zeros, scales, weights = drawn(8, 8, out=32, columns=128, group=64)
    codes[:, ::3] = 0
    tensors = {
        "qweight": put_bits(codes.T, 8, 0),
        "qzeros": put_bits(np.full_like(zeros, 127).T, 8, 1),
        "scales": scales.T,
    }
    found = opened(tmp_path, {**GPTQ, "bits": 8, "group_size": 64}, tensors)
    ops = host_table()
    weights = (codes - 128) * scales.astype(np.float64).repeat(64, 1)
    for rows in (1, 4, 20):
        x = np.random.default_rng(rows).standard_normal((rows, 128)).astype(np.float32)
        for tensor in (found, ops.prepare(found)):
            got = ops.linear(x, Linear(weight=tensor))
            np.testing.assert_allclose(got, x @ weights.T, atol=2e-2 * np.abs(weights).max())
