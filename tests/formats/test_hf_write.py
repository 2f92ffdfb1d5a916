"""Folders written without torch: the library's bytes, a tensor in memory, nothing that is not whole."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from minicpm4.config import ModelConfig
from minicpm4.config.model import MODEL_TYPES
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats import check_tensors, open_checkpoint, safetensors_write
from minicpm4.formats.hf_write import fold_scales, hf_config, stored, with_end_ids, write_folder
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.packing import unpack
from minicpm4.formats.safetensors import open_tensors
from minicpm4.formats.safetensors_header import ARRAY_TYPES
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource, array_source
from tests.fixtures.tiny import tiny_config

CONFIG = tiny_config(
    scale_emb=12.0,
    scale_depth=1.4,
    dim_model_base=32.0,
    bos_token_id=1,
    eos_token_ids=(2, 3),
)


def weights(config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = expected_tensors(config).items()
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes}


def sources(config: ModelConfig = CONFIG) -> dict[str, TensorSource]:
    return {name: array_source(array) for name, array in weights(config).items()}


def source(name: str, array: np.ndarray) -> TensorSource:
    return TensorSource(shape=array.shape, dtype=name, make=lambda: array)


def test_files_are_those_of_the_formats_library(tmp_path: Path) -> None:
    rng, arrays = np.random.default_rng(0), {}
    for dtype, kind in ARRAY_TYPES.items():
        if not dtype.startswith(("F8", "BF")):  # NumPy has none
            for number in range(3):
                arrays[f"{dtype} é {number}"] = rng.integers(0, 2, (number, 5)).astype(kind), dtype
    arrays["scalar"] = np.array(7, np.int64), "I64"
    write_safetensors(
        tmp_path / "ours", {name: source(dtype, array) for name, (array, dtype) in arrays.items()}
    )
    save_file({name: array for name, (array, _) in arrays.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_types_that_numpy_lacks_are_the_librarys_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    types = {"BF16": torch.bfloat16, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn}
    types |= {"F32": torch.float32, "F16": torch.float16, "U8": torch.uint8, "I16": torch.int16}
    made = {f"{dtype}{i}": (torch.randn(3, 2).to(kind), dtype) for dtype, kind in types.items() for i in "ab"}
    ours = {
        name: source(dtype, tensor.view(torch.uint8).numpy().view(ARRAY_TYPES[dtype]))
        for name, (tensor, dtype) in made.items()
    }
    write_safetensors(tmp_path / "ours", ours)
    save_file({name: tensor for name, (tensor, _) in made.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("limit", [1 << 30, 100_000])
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(safetensors_write, "MAX_FILE", limit)
    out = tmp_path / "out"
    write_folder(out, CONFIG, sources(), beside={"tokenizer.json": b"{}"})
    checkpoint = open_checkpoint(out)
    assert ModelConfig.from_hf(out) == CONFIG and (out / "tokenizer.json").read_text() == "{}"
    check_tensors(checkpoint, CONFIG)
    for name, array in weights().items():
        found = unpack(checkpoint.load(name)) if array.ndim == 2 else checkpoint.load_vector(name)
        np.testing.assert_array_equal(found, array)
    assert (len(checkpoint.files) > 1) == (limit < 1 << 20)


def test_types_follow_what_values_need(tmp_path: Path) -> None:
    signs = np.sign(weights()["model.layers.0.mlp.up_proj.weight"])
    half, odd = array_source(signs * np.float32(0.5)), array_source(signs * np.float32(1 / 3))
    assert [stored(one, "ternary", "bfloat16").dtype for one in (half, odd)] == ["F16", "F32"]
    assert stored(half, "int4", "bfloat16").dtype == "F32"
    assert stored(half, None, "bfloat16").dtype == "BF16"
    assert stored(array_source(np.ones(3, np.float32)), None, "bfloat16").dtype == "F32"
    with pytest.raises(ConfigError, match="dtype 'float8' is unknown"):
        stored(half, None, "float8")


def test_ends_of_a_tokenizer_come_after_the_models_own_where_it_has_rows() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    raw = {"model_type": "llama", "vocab_size": 64, **sizes, "eos_token_id": 5}
    assert with_end_ids(ModelConfig.from_hf(raw), [7, 5, 64, 63]).eos_token_ids == (5, 7, 63)


def test_folding_needs_no_torch() -> None:
    config, folded = fold_scales(CONFIG, sources())
    own, residual = weights(), CONFIG.residual_scale
    assert config.model_type == "llama" and not config.tie_word_embeddings
    expected = own["model.embed_tokens.weight"].astype(np.float64) * (12.0 / residual)
    np.testing.assert_array_equal(folded["model.embed_tokens.weight"].read(), expected.astype(np.float32))
    assert config.rms_norm_eps == CONFIG.rms_norm_eps / residual**2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    given = sources()
    bad = {"model.norm.weight": array_source(np.array([np.inf] * 64, np.float32))}
    write_folder(tmp_path / "full", CONFIG, given)
    cases = [
        (tmp_path / "a", given | {"extra": array_source(np.ones(3, np.float32))}, "missing or too many"),
        (tmp_path / "b", given | {"model.norm.weight": array_source(np.ones(3, np.float32))}, "has shape"),
        (tmp_path / "c", given | bad, r"model.norm.weight holds a value that is not finite"),
        (tmp_path / "full", given, "holds weights already"),
    ]
    for folder, tensors, message in cases:
        with pytest.raises(CheckpointError, match=message):
            write_folder(folder, CONFIG, tensors)
    assert not any(file for place in "abc" for file in (tmp_path / place).glob("*"))  # nothing half written


def test_a_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    config = replace(CONFIG, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, head_dim=128)
    made = {
        name: TensorSource(shape=shape, dtype="F32", make=lambda shape=shape: np.ones(shape, np.float32))  # type: ignore[misc]
        for name, shape in expected_tensors(config).items()
    }
    written = {name: stored(one, None, "bfloat16") for name, one in made.items()}
    total, largest = (f(one.nbytes for one in written.values()) for f in (sum, max))
    tracemalloc.start()
    write_folder(tmp_path / "out", config, written, dtype="bfloat16")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A tensor as it is made, which is twice as large, as it is written, and the one before it.
    assert total > 30e6 and most < 6 * largest < total / 2
    (file,) = open_checkpoint(tmp_path / "out").files
    assert {tensor.entry.dtype for tensor in open_tensors(file).values()} == {"BF16", "F32"}


WINDOWED = [
    ("llama", (8, 8), "MistralForCausalLM"),
    ("qwen2", (0, 8), "Qwen2ForCausalLM"),
    ("qwen3", (8, 8), "Qwen3ForCausalLM"),
    ("llama", (0, 8), None),
    ("qwen2", (4, 8), None),
    ("minicpm", (8, 8), None),
]


@pytest.mark.parametrize(("kind", "windows", "architecture"), WINDOWED)
def test_windows_are_written_as_they_are_read(kind: str, windows: Any, architecture: str | None) -> None:
    plain = {"scale_emb": 1.0, "scale_depth": 0.0, "dim_model_base": 0.0, "sparse_config": None}
    shape = {"num_hidden_layers": 2, "attention_bias": kind == "qwen2", "qk_norm": kind == "qwen3"}
    config = replace(CONFIG, model_type=kind, windows=windows, **plain, **shape)
    if architecture is None:
        with pytest.raises(ConfigError, match="no place for these sliding windows"):
            hf_config(config)
        return
    written = hf_config(config)
    assert written["architectures"] == [architecture] and ModelConfig.from_hf(written) == config
    if all(windows):  # said a second time, for readers that know no layer_types
        older = {key: value for key, value in written.items() if key != "layer_types"}
        assert ModelConfig.from_hf(older) == config


BIASES = ("attention_bias", "output_bias", "mlp_bias")


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_every_model_type_is_written_as_it_is_read(kind: str) -> None:
    plain = {} if kind == "minicpm" else {"scale_emb": 1.0, "scale_depth": 0.0, "dim_model_base": 0.0}
    config = replace(
        CONFIG, model_type=kind, attention_bias=kind == "qwen2", qk_norm=kind == "qwen3", **plain
    )
    assert ModelConfig.from_hf(hf_config(config)) == config
    refused = set()
    for flags in product([False, True], repeat=3):
        biased = replace(config, **dict(zip(BIASES, flags, strict=True)))  # type: ignore[arg-type]
        try:
            written = hf_config(biased)
        except ConfigError:
            refused.add(flags)
            continue
        assert ModelConfig.from_hf(written) == biased
    every = set(product([False, True], repeat=3))
    no_place = {
        "minicpm": {f for f in every if f[2] or (f[1] and not f[0])},
        "llama": {f for f in every if f[1] and not f[0]},
        "qwen2": {f for f in every if f != (True, False, False)},
        "qwen3": {f for f in every if f[2] or (f[1] and not f[0])},
    }
    assert refused == no_place[kind]
