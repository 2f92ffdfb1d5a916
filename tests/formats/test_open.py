"""Opening any checkpoint, and the check of its tensors against its config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, Minicpm4Error
from minicpm4.formats import check_tensors, open_checkpoint
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.names import expected_tensors, gguf_to_hf
from minicpm4.formats.safetensors import SafetensorsCheckpoint
from minicpm4.formats.safetensors_header import described, make_header
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.formats.gguf_files import write_model


def test_each_kind_of_path(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf")
    gguf = write_model(tmp_path / "m.gguf")
    assert isinstance(open_checkpoint(folder), SafetensorsCheckpoint)
    assert isinstance(open_checkpoint(folder / "model.safetensors"), SafetensorsCheckpoint)
    assert isinstance(open_checkpoint(gguf), GgufCheckpoint)
    inside = tmp_path / "g"
    inside.mkdir()
    write_model(inside / "one.gguf")
    assert open_checkpoint(inside).path == inside / "one.gguf"


def test_paths_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is nothing at .*none.*check the path, or pull"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match=r"is a pickled checkpoint.*convert it to safetensors"):
        open_checkpoint(tmp_path / "model.bin")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"is neither a folder nor a \.gguf or \.safetensors file"):
        open_checkpoint(tmp_path / "notes.txt")
    for name in ("a", "b"):
        write_model(tmp_path / f"{name}.gguf")
    with pytest.raises(
        CheckpointError, match=r"holds 2 models in \.gguf files.*name one of them, such as a\.gguf"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("arch", ["minicpm", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tie", [True, False])
def test_good_checkpoints_pass(arch: str, tie: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", model_type=arch, tie=tie)
    check_tensors(open_checkpoint(folder), ModelConfig.from_hf(folder))


def changed(tmp_path: Path, change: Any, **shape: Any) -> tuple[SafetensorsCheckpoint, ModelConfig]:
    """A checkpoint whose tensors were edited by ``change`` (a function on the name -> array table)."""
    folder = make_checkpoint(tmp_path / "m", model_type="llama", **shape)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsCheckpoint(folder), ModelConfig.from_hf(folder)


Q = "model.layers.1.self_attn.q_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHANGES = {
    "missing": (lambda t: t.pop(f"{Q}.weight"), r"q_proj.weight is missing \(expected shape \(64, 64\)\)"),
    "shape": (
        lambda t: t.update({f"{Q}.weight": np.zeros((64, 32), np.float32)}),
        r"q_proj.weight has shape \(64, 32\), expected \(64, 64\)",
    ),
    "bias": (
        lambda t: t.update({f"{Q}.bias": np.zeros(64, np.float32)}),
        r"layers.1.self_attn.q_proj.bias of shape \(64,\) is in the file, but the config has no place for it",
    ),
    "more layers": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}),
        r"model.layers.2.mlp.up_proj.weight of shape \(2, 2\) is in the file",
    ),
    "many": (
        lambda t: [t.pop(k) for k in list(t)[:6]],
        r"is missing .*, and 3 more\. use the config that belongs",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    change, message = CHANGES[case]
    checkpoint, config = changed(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        check_tensors(checkpoint, config)


def test_missing_biases_and_norms_are_named(tmp_path: Path) -> None:
    checkpoint, config = changed(tmp_path, lambda t: None)
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.q_proj.bias is missing"):
        check_tensors(checkpoint, dataclasses.replace(config, attention_bias=True))
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.q_norm.weight is missing"):
        check_tensors(checkpoint, dataclasses.replace(config, qk_norm=True))


def test_rotary_tables_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    check_tensors(*changed(tmp_path, lambda t: t.update({name: np.ones(8, np.float32)})))


BUFFERS = [
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "model.layers.1.self_attn.rotary_emb.cos_cached",
    "model.layers.1.self_attn.masked_bias",
    "model.layers.1.self_attn.bias",
    "model.causal_mask",
    "model.position_ids",
    "freqs_cis",
]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float64", "complex64", "float16"])
def test_buffers_that_can_be_computed_are_ignored_whatever_their_type(tmp_path: Path, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "m", model_type="llama")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: np.ones((2, 3), dtype) for name in BUFFERS}
    (folder / "model.safetensors").write_bytes(safetensors_of(tensors))
    config = ModelConfig.from_hf(folder)
    assert check_tensors(open_checkpoint(folder), config) == config
    (folder / "model.safetensors").write_bytes(safetensors_of(tensors | {"model.extra": np.ones(3, dtype)}))
    with pytest.raises(CheckpointError, match=r"model\.extra"):
        check_tensors(open_checkpoint(folder), config)


def safetensors_of(tensors: dict[str, Any]) -> bytes:
    """A file, also of types that the format's own library does not write from NumPy."""
    header = make_header({}, {name: described(array) for name, array in tensors.items()})
    return header + b"".join(array.tobytes() for array in tensors.values())


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 17518624\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "x.gguf"])
def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "m", model_type="llama")
    (folder / name).write_bytes(POINTER)
    path = folder / name if name.endswith("gguf") else folder
    with pytest.raises(Minicpm4Error, match=rf"{name} is a pointer of Git LFS, not the file.*git lfs pull"):
        open_checkpoint(path)


def test_a_head_that_equals_the_tied_embedding_passes(tmp_path: Path) -> None:
    check_tensors(*changed(tmp_path, lambda t: t.update({HEAD: t[EMBED].copy()}), tie=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_head_that_differs_in_one_number_is_the_models(tmp_path: Path, dtype: Any) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[EMBED] = tensors[EMBED].astype(np.float16).astype(np.float32)
        tensors[HEAD] = tensors[EMBED].astype(dtype)

    checkpoint, config = changed(tmp_path / "a", change, tie=True)
    assert check_tensors(checkpoint, config).tie_word_embeddings

    def differ(tensors: dict[str, Any]) -> None:
        change(tensors)
        tensors[HEAD][201, 7] += 1

    checkpoint, config = changed(tmp_path / "b", differ, tie=True)
    assert config.tie_word_embeddings and not check_tensors(checkpoint, config).tie_word_embeddings
    wide = changed(tmp_path / "c", lambda t: t.update({HEAD: np.zeros((8, 64), np.float32)}), tie=True)
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \(8, 64\), expected \(320, 64\)"):
        check_tensors(*wide)


def test_expected_tensors_of_a_small_model(tmp_path: Path) -> None:
    config = ModelConfig.from_hf(make_checkpoint(tmp_path / "m", model_type="qwen3", head_dim=32))
    found = expected_tensors(config)
    assert len(found) == 2 * 11 + 3
    assert found["model.layers.0.self_attn.q_proj.weight"] == (4 * 32, 64)
    assert found["model.layers.1.self_attn.k_norm.weight"] == (32,)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.12.ffn_down.weight", "model.layers.12.mlp.down_proj.weight"),
        ("blk.3.attn_k.bias", "model.layers.3.self_attn.k_proj.bias"),
        ("blk.3.attn_q_norm.weight", "model.layers.3.self_attn.q_norm.weight"),
        ("rope_factors_long.weight", "rope_factors_long.weight"),
        ("blk.03.ffn_down.weight", "blk.03.ffn_down.weight"),
        ("blk.1.other.weight", "blk.1.other.weight"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert gguf_to_hf(theirs) == ours
