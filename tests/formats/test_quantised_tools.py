"""Folders with the fields that GPTQModel 7.6 and llm-compressor 0.14 write, and tensors of the types and
shapes of theirs, drawn at random: their own files of a model of four layers gave the logits of their own
dequantised weights to 1e-6 of the largest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.formats.packing import unpack
from tests.formats.test_quantised import drawn, equal, opened, put_bits, put_zeros


def gptqmodel(bits: int, version: str, **said: bool) -> dict[str, Any]:
    return {
        "bits": bits,
        "checkpoint_format": version,
        "format": version,
        "group_size": 64,
        "lm_head": False,
        "method": "gptq",
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "meta": {
            "act_group_aware": not said["desc_act"],
            "damp_auto_increment": 0.01,
            "damp_percent": 0.05,
            "fallback": {"smooth": None, "strategy": "rtn", "threshold": "0.5%"},
            "hessian": {"chunk_size": None, "staging_dtype": "float32"},
            "quantizer": ["gptqmodel:7.6.0"],
            "static_groups": False,
            "true_sequential": True,
        },
        **said,
    }


def llmcompressor(bits: int, symmetric: bool, order: str | None) -> dict[str, Any]:
    weights = {
        "actorder": order,
        "block_structure": None,
        "dynamic": False,
        "group_size": 64,
        "num_bits": bits,
        "observer": "memoryless_minmax",
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": "group",
        "symmetric": symmetric,
        "type": "int",
        "zp_dtype": None if symmetric else "torch.int8",
    }
    group = {"format": "pack-quantized", "input_activations": None, "output_activations": None}
    return {
        "config_groups": {"group_0": {**group, "targets": ["Linear"], "weights": weights}},
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.19.0",
    }


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptqmodel(tmp_path: Path, bits: int, desc_act: bool, sym: bool, version: str) -> None:
    codes, zeros, scales, _ = drawn(bits, bits, out=32, columns=192, group=64)
    if sym:
        zeros[:] = 1 << (bits - 1)
    groups = np.arange(192) // 64
    if desc_act:
        groups = np.random.default_rng(1).permutation(groups)
    tensors = {
        "g_idx": groups.astype(np.int32),
        "scales": np.ascontiguousarray(scales.T),
        "qweight": put_bits(codes.T, bits, 0),
        "qzeros": put_zeros(zeros, bits, version),
    }
    found = opened(tmp_path, gptqmodel(bits, version, sym=sym, desc_act=desc_act), tensors)
    assert str(found.spec) == ("f32" if desc_act else f"int{bits}-g64")
    equal(found, (codes - zeros[:, groups]) * scales[:, groups].astype(np.float64))


@pytest.mark.parametrize(
    ("bits", "symmetric", "order"),
    [(4, True, None), (4, True, "static"), (4, True, "weight"), (4, False, "static"), (8, True, "static")],
)
def test_llmcompressor(tmp_path: Path, bits: int, symmetric: bool, order: str | None) -> None:
    """Its act-order is one of rounding alone: groups stay neighbours, and there is no weight_g_idx."""
    codes, zeros, scales, _ = drawn(bits, bits, out=32, columns=192, group=64)
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    wide = scales.astype(np.float32) * np.float32(1.0001)  # no float16
    tensors = {
        "weight_shape": np.array([32, 192], np.int64),
        "weight_scale": wide,
        "weight_packed": put_bits(codes, bits, 1),
    }
    if not symmetric:
        tensors["weight_zero_point"] = put_bits(zeros, bits, 0)
    found = opened(tmp_path, llmcompressor(bits, symmetric, order), tensors)
    assert str(found.spec) == f"int{bits}-g64"
    if symmetric:
        numbers = (codes - zeros.repeat(64, 1)).astype(np.float32)
        equal(found, numbers * wide.repeat(64, 1))
        return
    exact = (codes - zeros.repeat(64, 1)) * wide.astype(np.float64).repeat(64, 1)
    largest = np.abs(exact).max()
    np.testing.assert_allclose(unpack(found), exact, atol=2e-7 * largest)
