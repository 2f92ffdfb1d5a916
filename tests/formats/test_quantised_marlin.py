"""CPM.cu's Marlin folders: bytes worked out one weight at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats import open_checkpoint
from minicpm4.formats.marlin import pack_tiles, scales_in_order, scales_of_threads, unpack_tiles
from minicpm4.formats.packing import unpack
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource

LAYER = "model.layers.0."
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq", "sym": True}
CONFIG |= {"desc_act": False, "static_groups": True, "lm_head": False}
MODEL = {"model_type": "minicpm", "num_attention_heads": 4, "num_key_value_heads": 2}


def places() -> list[tuple[int, int]]:
    """Which input and output (of 16 x 64) each code of a block is of, in the order of their bits."""
    found = []
    for thread in range(32):
        for tile in range(4):
            own = [
                (row, 16 * tile + thread // 4 + 8 * half)
                for half in (0, 1)
                for row in (2 * (thread % 4) + i for i in (0, 1, 8, 9))
            ]
            found += [own[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    return found


def by_hand(codes: np.ndarray) -> np.ndarray:
    """Words (in / 16, 2 out) of codes (in, out)."""
    inputs, outputs = codes.shape
    words = np.zeros((inputs // 16, 2 * outputs), np.uint32)
    for row in range(inputs // 16):
        for block in range(outputs // 64):
            for i, (k, n) in enumerate(places()):
                code = int(codes[16 * row + k, 64 * block + n])
                words[row, 128 * block + i // 8] |= np.uint32(code << 4 * (i % 8))
    return words.view(np.int32)


def thread_scales(scales: np.ndarray) -> np.ndarray:
    """Scales (groups, out) as the kernel has them."""
    order = [i + 8 * j for i in range(8) for j in range(8)]
    if len(scales) == 1:
        order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    out = [scales[:, start + i] for start in range(0, scales.shape[1], len(order)) for i in order]
    return np.stack(out, 1)


def drawn(outputs: int, inputs: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (in, out), scales (groups, out), weights (out, in)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (inputs, outputs))
    scales = (rng.random((groups, outputs)) * 0.1 + 0.01).astype(np.float16)
    return codes, scales, ((codes - 8) * scales.astype(np.float64).repeat(inputs // groups, 0)).T


def folder(path: Path, matrices: dict[str, tuple[np.ndarray, np.ndarray]], **changes: Any) -> Path:
    """A folder with ``matrices`` (words, scales), as CPM.cu's converter writes it."""
    sources = {}
    for name, (words, scales) in matrices.items():
        for last, kind, one in (("qweight", "I32", words), ("scales", "F16", scales)):
            sources[f"{LAYER}{name}.{last}"] = TensorSource(
                shape=one.shape, dtype=kind, make=lambda one=one: one
            )
    path.mkdir(exist_ok=True)
    write_safetensors(path / "model_gptq.safetensors", sources)
    said = MODEL | {"quantization_config": CONFIG} | changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    return path


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 16), (128, 48), (192, 32)])
def test_tiles(outputs: int, inputs: int) -> None:
    codes = drawn(outputs, inputs, 1)[0]
    words = by_hand(codes)
    np.testing.assert_array_equal(pack_tiles(codes.T.astype(np.uint8)), words)
    for rows in (slice(0, outputs), slice(16, 40), slice(60, 64), slice(outputs - 24, outputs)):
        np.testing.assert_array_equal(unpack_tiles(words, rows), codes.T[rows])


@pytest.mark.parametrize("groups", [1, 3])
def test_scales(groups: int) -> None:
    scales = drawn(128, 16 * groups, groups)[1]
    np.testing.assert_array_equal(scales_of_threads(scales), thread_scales(scales))
    np.testing.assert_array_equal(scales_in_order(thread_scales(scales)), scales)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_matrix_of_its_own(tmp_path: Path, groups: int) -> None:
    codes, scales, weights = drawn(64, 256, groups)
    said = CONFIG | {"group_size": 128 if groups == 2 else -1}
    path = folder(
        tmp_path, {"mlp.down_proj": (by_hand(codes), thread_scales(scales))}, quantization_config=said
    )
    found = open_checkpoint(path)
    tensor = found.load(f"{LAYER}mlp.down_proj.weight")
    assert str(tensor.spec) == f"int4-g{256 // groups}" and tensor.offsets is None
    assert found.tensors[f"{LAYER}mlp.down_proj.weight"].dtype == "marlin-int4"
    np.testing.assert_array_equal(unpack(tensor).astype(np.float64), weights)


def test_fused_matrices_are_cut(tmp_path: Path) -> None:
    """q, k and v by the heads: 4, 2 and 2 of 24 rows; gate and up in halves."""
    qkv, gate_up = drawn(192, 128, 1, 1), drawn(192, 128, 1, 2)
    path = folder(
        tmp_path,
        {
            name: (by_hand(codes), thread_scales(scales))
            for name, (codes, scales, _) in (("self_attn.qkv_proj", qkv), ("mlp.gate_up_proj", gate_up))
        },
    )
    found, wanted = open_checkpoint(path), {}
    for name, rows in (("q", slice(0, 96)), ("k", slice(96, 144)), ("v", slice(144, 192))):
        wanted[f"{LAYER}self_attn.{name}_proj.weight"] = qkv[2][rows]
    wanted[f"{LAYER}mlp.gate_proj.weight"], wanted[f"{LAYER}mlp.up_proj.weight"] = np.split(gate_up[2], 2)
    assert found.tensors.keys() == wanted.keys()
    for name, weights in wanted.items():
        assert found.tensors[name].shape == weights.shape
        np.testing.assert_array_equal(unpack(found.load(name)).astype(np.float64), weights, err_msg=name)
    stored = sum(one.nbytes for one in found.tensors.values())
    assert stored == 2 * (192 * 128 // 2 + 192 * 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": None}, "num_attention_heads = None"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_key_value_heads": True}, "num_key_value_heads = True"),
        ({"num_attention_heads": 5}, "cut into 9 parts by the heads"),
        ({"quantization_config": {**CONFIG, "sym": False}}, "not symmetric"),
        ({"quantization_config": {**CONFIG, "desc_act": True}}, "not symmetric"),
        ({"quantization_config": {**CONFIG, "bits": 8}}, "of 4 bits"),
        ({"quantization_config": {**CONFIG, "group_size": 32}}, r"scales has shape \(1, 192\), expected \(4"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    codes, scales, _ = drawn(192, 128, 1)
    path = folder(tmp_path, {"self_attn.qkv_proj": (by_hand(codes), thread_scales(scales))}, **changes)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(path)


def test_rows_that_are_no_blocks_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, {"mlp.down_proj": (np.zeros((8, 64), np.int32), np.ones((1, 32), np.float16))})
    with pytest.raises(
        CheckpointError, match=r"down_proj.weight: qweight has shape \(8, 64\), which is not 64"
    ):
        open_checkpoint(path)


def test_a_matrix_beside_its_fused_one_is_refused(tmp_path: Path) -> None:
    codes, scales, _ = drawn(64, 128, 1)
    one = by_hand(codes), thread_scales(scales)
    path = folder(tmp_path, {"mlp.gate_up_proj": one, "mlp.up_proj": one})
    with pytest.raises(CheckpointError, match=r"holds .*up_proj.weight twice"):
        open_checkpoint(path)
