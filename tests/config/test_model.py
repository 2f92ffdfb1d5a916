"""ModelConfig from config.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from minicpm4.config import ModelConfig
from minicpm4.errors import ConfigError


def minicpm(**changes: Any) -> dict[str, Any]:
    """MiniCPM4-0.5B's config; None removes a key."""
    config: dict[str, Any] = {
        "architectures": ["MiniCPMForCausalLM"],
        "vocab_size": 73448,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": [2, 73440],
    }
    return {key: value for key, value in (config | changes).items() if value is not None}


def plain(model_type: str, **changes: Any) -> dict[str, Any]:
    scales = {"scale_emb": None, "scale_depth": None, "dim_model_base": None, "architectures": None}
    return minicpm(**scales, model_type=model_type, **changes)


def test_minicpm4() -> None:
    config = ModelConfig.from_hf(minicpm())
    assert config.model_type == "minicpm" and config.head_dim == 64 and config.group_size == 8
    assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12.0, 1.4, 256.0)
    assert config.residual_scale == pytest.approx(1.4 / math.sqrt(24)) and config.logit_scale == 0.25
    assert config.tie_word_embeddings  # the key is absent from the file; the class ties
    assert config.eos_token_ids == (2, 73440) and config.bos_token_id == 1
    assert config.rope_theta == 10000.0 and config.rope_scaling is None and config.sparse_config is None


@pytest.mark.parametrize("scale", ["scale_emb", "scale_depth", "dim_model_base"])
def test_minicpm_without_a_scale_is_refused(scale: str) -> None:
    with pytest.raises(ConfigError, match=rf"this MiniCPM config lacks {scale}: without it every logit"):
        ModelConfig.from_hf(minicpm(**{scale: None}))


def test_neighbours() -> None:
    llama = ModelConfig.from_hf(plain("llama"))
    assert llama.scale_emb == 1 and llama.residual_scale == 1 and llama.logit_scale == 1
    assert not llama.tie_word_embeddings and not llama.attention_bias and not llama.qk_norm
    qwen2 = ModelConfig.from_hf(plain("qwen2", tie_word_embeddings=True))
    assert qwen2.attention_bias and qwen2.tie_word_embeddings and not qwen2.qk_norm
    qwen3 = ModelConfig.from_hf(plain("qwen3", head_dim=128))
    assert qwen3.qk_norm and qwen3.head_dim == 128 and not qwen3.attention_bias


def test_sparse_config_is_read() -> None:
    config = ModelConfig.from_hf(minicpm(sparse_config={"topk": 8, "dense_len": -1}))
    assert config.sparse_config is not None and config.sparse_config.topk == 8
    with pytest.raises(ConfigError, match=r"sparse_config has an unknown key 'top_k'\. did you mean 'topk'"):
        ModelConfig.from_hf(minicpm(sparse_config={"top_k": 8}))


BAD = [
    ({"hidden_size": None}, "config lacks hidden_size"),
    ({"hidden_size": 0}, "config hidden_size = 0 is out of range"),
    ({"hidden_size": 1 << 40}, r"config hidden_size = \d+ is out of range"),
    ({"vocab_size": "73448"}, "config vocab_size = '73448' is not a valid int"),
    ({"num_hidden_layers": True}, "config num_hidden_layers = True is not a valid int"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0 is not positive"),
    ({"num_key_value_heads": 3}, "num_attention_heads = 16 is not a multiple of num_key_value_heads = 3"),
    ({"head_dim": 63}, "config head_dim = 63 is not even"),
    ({"rms_norm_eps": 0.0}, "config rms_norm_eps = 0.0 is out of range"),
    ({"rms_norm_eps": math.nan}, "config rms_norm_eps = nan is not a valid float"),
    ({"rope_theta": -1.0}, "config rope_theta = -1.0 is outside 1 to 1e30"),
    ({"hidden_act": "gelu"}, "config hidden_act = 'gelu' is not supported. only silu is"),
    ({"scale_emb": 0}, "config scale_emb = 0.0 is not positive"),
    ({"architectures": 5}, "config architectures = 5 is not a list of names"),
    ({"architectures": [["x"]]}, r"config architectures = \[\['x'\]\] is not a list of names"),
    ({"architectures": None, "model_type": 5}, "config model_type = 5 is not a valid str"),
    ({"rope_parameters": 1.5}, "config rope_parameters = 1.5 is not a table"),
    ({"rope_parameters": [1]}, r"config rope_parameters = \[1\] is not a table"),
    ({"rope_theta": 10**400}, r"config rope_theta = 10+… \(401 characters\) is not a valid float"),
    ({"vocab_size": 10**400}, r"config vocab_size = 10+… \(401 characters\) is out of range"),
    ({"num_hidden_layers": 1_000_000}, "config num_hidden_layers = 1000000 is out of range"),
    ({"rope_theta": 1.0}, "config rope_theta = 1.0 is outside 1 to 1e30"),
    ({"scale_emb": 1e308}, r"config scale_emb = 1e\+308 is outside 1e-09 to 1e\+09"),
    ({"eos_token_id": "2"}, "config eos_token_id holds '2', not a token id"),
    ({"eos_token_id": [2, -2]}, "config eos_token_id holds -2, not a token id"),
    ({"mixer_types": ["minicpm4"]}, "config has mixer_types"),
    (
        {"use_sliding_window": True, "sliding_window": 4096},
        "config sliding_window = 4096, use_sliding_window = True: not a field of MiniCPMForCausalLM",
    ),
    ({"architectures": ["MiniCPM3ForCausalLM"], "model_type": "minicpm3"}, "did you mean 'minicpm'"),
    ({"architectures": None}, "config describes no architecture, which is not supported"),
]


def test_layers_below_none_of_a_llama() -> None:
    with pytest.raises(ConfigError, match="config num_hidden_layers = -1 is out of range"):
        ModelConfig.from_hf(plain("llama", num_hidden_layers=-1))


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(minicpm(**changes))


def test_generation_config_adds_end_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(minicpm(eos_token_id=2)))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 73440]}')
    assert ModelConfig.from_hf(tmp_path).eos_token_ids == (2, 73440)
    assert ModelConfig.from_hf(tmp_path / "config.json").eos_token_ids == (2, 73440)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_broken_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config.json"):
        ModelConfig.from_hf(tmp_path)


def test_a_folder_without_a_model_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json: No such file or directory") as refused:
        ModelConfig.from_hf(tmp_path)
    assert refused.value.remedy.startswith("a model is a folder with config.json and .safetensors files")


def longrope(**changes: Any) -> dict[str, Any]:
    table = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2] * 32}
    return table | {"original_max_position_embeddings": 32768} | changes


def test_longrope() -> None:
    scaling = ModelConfig.from_hf(minicpm(rope_scaling=longrope())).rope_scaling
    assert scaling is not None and scaling.rope_type == "longrope"
    assert scaling.long_factor == (2.0,) * 32 and scaling.original_max_position_embeddings == 32768


def test_nested_rope_parameters() -> None:
    config = ModelConfig.from_hf(
        plain("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    )
    assert config.rope_theta == 5e5 and config.rope_scaling is not None and config.rope_scaling.factor == 2.0
    default = ModelConfig.from_hf(plain("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    assert default.rope_scaling is None


def yarn(**changes: Any) -> dict[str, Any]:
    return {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64} | changes


# What a formula of model/rotary.py would divide by, or take the logarithm of.
ROPE_BAD = [
    (yarn(beta_fast=-2.0), "rope_scaling.beta_fast = -2.0 is not positive"),
    (yarn(beta_slow=-1.0), "rope_scaling.beta_slow = -1.0 is not positive"),
    (yarn(factor=1e-300), "rope_scaling.factor = 1e-300 is outside 1e-06 to 1e"),
    (yarn(mscale=1.0, mscale_all_dim=-4.8), "rope_scaling.mscale_all_dim = -4.8 is outside 0 to 1e"),
    (yarn(attention_factor=0.0), "rope_scaling.attention_factor = 0.0 is outside"),
    (yarn(original_max_position_embeddings=0), "original_max_position_embeddings = 0 is outside 1 to"),
    (yarn(original_max_position_embeddings=-1), "original_max_position_embeddings = -1 is outside 1 to"),
    (yarn(type="dynamic", factor=None), "config rope_scaling of type 'dynamic' lacks factor"),
    (yarn(type="llama3", low_freq_factor=4.0), "config rope_scaling of type 'llama3' lacks high_freq_factor"),
    (
        yarn(type="llama3", low_freq_factor=4.0, high_freq_factor=4.0),
        "low_freq_factor = 4.0 is not below high_f",
    ),
    (yarn(alpha=1000.0), "config rope_scaling rope_scaling.alpha = 1000.0: not a field of rotary positions"),
    (yarn(factor=10**400), r"rope_scaling.factor = 10+… \(401 characters\) is not a number"),
    (longrope(long_factor=[1.0] * 31), "longrope has 32 short and 31 long factors"),
    (
        longrope(long_factor=[1.0] * 16, short_factor=[1.0] * 16),
        r"longrope has 16 factors, head_dim / 2 is 32",
    ),
    (longrope(original_max_position_embeddings=1), "original_max_position_embeddings = 1 is outside 2 to"),
    (longrope(long_factor=[1e-300] * 32), "a longrope factor of 1e-300 is below 1e-06"),
    (longrope(long_factor=[0.0] * 32), "a longrope factor is not positive"),
    (longrope(long_factor=["1"] * 32), "rope_scaling.long_factor is not a list of numbers"),
    (longrope(long_factor=None), "longrope has 32 short and 0 long factors"),
    ({"type": "longrop"}, "rope_scaling type 'longrop' is not supported. did you mean 'longrope'"),
    ({"type": "linear", "factor": 0}, "rope_scaling.factor = 0.0 is not positive"),
    ({"type": "linear", "factor": "2"}, "rope_scaling.factor = '2' is not a number"),
    ("linear", "config rope_scaling = 'linear' is not a table"),
]


@pytest.mark.parametrize(("table", "message"), ROPE_BAD)
def test_bad_rope_scaling_is_refused(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(minicpm(rope_scaling=table))


@pytest.mark.parametrize(("kind", "named"), [("su", "longrope"), ("ntk", "dynamic"), ("dynamic", "dynamic")])
def test_rope_aliases(kind: str, named: str) -> None:
    scaling = ModelConfig.from_hf(minicpm(rope_scaling=longrope(type=kind, factor=2.0))).rope_scaling
    assert scaling is not None and scaling.rope_type == named
