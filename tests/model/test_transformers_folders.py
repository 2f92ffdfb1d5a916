"""Folders that transformers 5 and 4 saved give transformers' logits (float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm4 import LLM
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.gguf_write import write_gguf
from minicpm4.kernels.ref import RefOps
from tests.fixtures import transformers_folders as theirs
from tests.fixtures.loading import load_model
from tests.formats.gguf_files import metadata, to_gguf
from tests.model.driver import Driver

CASES = [(version, name) for version in theirs.VERSIONS for name in theirs.names(version)]


def test_both_majors_are_there() -> None:
    assert [version[0] for version in theirs.VERSIONS] == ["4", "5"] and len(CASES) >= 30


@pytest.mark.parametrize(("version", "name"), CASES)
def test_logits_are_those_of_transformers(ops: Any, version: str, name: str, tmp_path: Path) -> None:
    folder, want = theirs.make(tmp_path / "m", version, name), theirs.logits(version, name)
    weights = load_model(folder).weights
    for chunks in ([len(theirs.IDS)], [17, 1]):
        got = Driver(ops, weights, context=len(theirs.IDS)).feed_chunks(theirs.IDS, chunks)
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


IN_GGUF = [
    *("llama", "llama_tied", "llama_biased", "llama_attention_biased_sharded"),
    *("qwen2_tied", "qwen3", "qwen3_tied_biased"),
]


@pytest.mark.parametrize("name", IN_GGUF)
def test_the_same_weights_in_gguf(name: str, tmp_path: Path) -> None:
    made = theirs.read(f"folders-{theirs.VERSIONS[-1]}.json")[name]
    config, arch = made["texts"]["config.json"], name.partition("_")[0]
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    shapes = {key: one[0] for tensors in made["weights"].values() for key, one in tensors.items()}
    keys = metadata(
        arch,
        embedding_length=config["hidden_size"],
        feed_forward_length=config["intermediate_size"],
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        rope__dimension_count=head_dim,
    )
    tensors = to_gguf({key: theirs.draw(key, tuple(shape)) for key, shape in shapes.items()}, arch)
    write_gguf(tmp_path / "m.gguf", keys, tensors)
    weights = load_model(tmp_path / "m.gguf").weights
    got = Driver(RefOps(), weights, context=len(theirs.IDS)).feed(theirs.IDS)
    want = theirs.logits(theirs.VERSIONS[-1], name)
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


def test_a_missing_bias_out_of_attention_is_none_at_all(tmp_path: Path) -> None:
    """As transformers fills in what is missing: files with biases of q, k and v alone load."""
    folder = theirs.make(tmp_path / "m", theirs.VERSIONS[-1], "qwen2")
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | raw))
    weights = load_model(folder).weights
    got = Driver(RefOps(), weights, context=len(theirs.IDS)).feed(theirs.IDS)
    want = theirs.logits(theirs.VERSIONS[-1], "qwen2")
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


# What stands before a tensor's name -> that of "model.norm.weight" and that of "lm_head.weight".
PREFIXES = {"none": ("", ""), "doubled": ("model.model.", ""), "a wrapper's": ("model.model.", "model.")}


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen2_tied", "qwen3"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_names_and_types_that_transformers_reads(prefix: str, name: str, dtype: Any, tmp_path: Path) -> None:
    """The prefix "model." absent, doubled or before the head; float64."""
    version = theirs.VERSIONS[-1]
    folder = theirs.make(tmp_path / "m", version, name)
    inner, head = PREFIXES[prefix]
    kept: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        for key, value in load_file(file).items():
            rest = key.removeprefix("model.")
            kept[(head if rest.startswith("lm_head") else inner) + rest] = value.astype(dtype)
        file.unlink()
    for file in folder.glob("*.index.json"):
        file.unlink()
    save_file(kept, folder / "model.safetensors")
    got = Driver(RefOps(), load_model(folder).weights, context=len(theirs.IDS)).feed(theirs.IDS)
    want = theirs.logits(version, name)
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


def test_one_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = theirs.make(tmp_path / "m", theirs.VERSIONS[-1], "llama")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"norm.weight": tensors["model.norm.weight"]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor norm\.weight is in .*, as model\.norm\.weight"):
        load_model(folder)


def test_a_head_of_its_own_is_used_though_the_config_ties(tmp_path: Path) -> None:
    version = theirs.VERSIONS[-1]
    folder = theirs.make(tmp_path / "m", version, "llama", tie_word_embeddings=True)
    weights = load_model(folder).weights
    got = Driver(RefOps(), weights, context=len(theirs.IDS)).feed(theirs.IDS)
    want = theirs.logits(version, "llama")
    np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))


def test_fields_are_ignored_where_that_is_asked_for(tmp_path: Path) -> None:
    version = theirs.VERSIONS[-1]
    plain = theirs.make(tmp_path / "a", version, "llama")
    odd = theirs.make(tmp_path / "b", version, "llama", some_new_field=[3])
    with pytest.raises(ConfigError, match=r"config some_new_field = \[3\].*--ignore-field some_new_field"):
        LLM(odd)
    with LLM(plain, threads=1) as first, LLM(odd, threads=1, ignore_fields=["some_new_field"]) as second:
        np.testing.assert_array_equal(first.logits(theirs.IDS), second.logits(theirs.IDS))
        second.refill(odd)
        with pytest.raises(ConfigError, match="some_new_field"):
            first.refill(odd)
