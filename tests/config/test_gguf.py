"""ModelConfig from GGUF metadata."""

from __future__ import annotations

import math
from typing import Any

import pytest

from minicpm4.config import ModelConfig
from minicpm4.config.gguf import FREQS, LONG, SHORT, config_from_gguf
from minicpm4.errors import ConfigError

LAYERS, HIDDEN = 4, 64


def metadata(arch: str = "llama", remove: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """Metadata of a small model; dots of changed keys are written as double underscores."""
    values: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": 4096,
        "embedding_length": HIDDEN,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 9.999999747378752e-06,  # float32 of 1e-5
    }
    if arch == "minicpm":
        # as stored: float32
        values |= {"embedding_scale": 12.0, "residual_scale": 0.699999988079071, "logit_scale": 2.0}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    table = {f"{arch}.{key}": value for key, value in values.items() if key not in remove}
    return {"general.architecture": arch, "tokenizer.ggml.tokens": ["a", "b", "c"], **table}


def build(table: dict[str, Any], vectors: dict[str, list[float]] | None = None, **shapes: Any) -> ModelConfig:
    known: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (100, HIDDEN), **shapes}
    known |= {name: (len(values),) for name, values in (vectors or {}).items()}
    return config_from_gguf(table, known, vectors)


def test_minicpm_scales_are_inverted() -> None:
    config = build(metadata("minicpm"))
    assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12.0, 1.4, 32.0)
    assert config.residual_scale == pytest.approx(0.7) and config.logit_scale == 0.5
    assert config.rms_norm_eps == 1e-5 and config.rope_theta == 10000.0 and config.head_dim == 16


@pytest.mark.parametrize("scale", ["embedding_scale", "residual_scale", "logit_scale"])
def test_minicpm_without_a_scale_is_refused(scale: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"lacks minicpm\.{scale}: without it every logit.*convert the model again"
    ):
        build(metadata("minicpm", remove=(scale,)))


def test_an_inverse_logit_scale_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"minicpm.logit_scale = 0.5 is below 1: .* some old files hold the inverse"
    ):
        build(metadata("minicpm", logit_scale=0.5))


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9, math.inf, math.nan, "12", True])
def test_absurd_scales_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"minicpm\.embedding_scale = .*(out of range|not a valid float)"):
        build(metadata("minicpm", embedding_scale=value))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_other_architectures_scale_nothing(arch: str) -> None:
    config = build(metadata(arch))
    assert config.model_type == arch
    assert config.scale_emb == 1 and config.residual_scale == 1 and config.logit_scale == 1
    assert config.qk_norm == (arch == "qwen3")
    assert config.vocab_size == 100 and config.max_position_embeddings == 4096


def test_tensors_tell_tying_and_biases() -> None:
    table = metadata("qwen2")
    assert build(table).tie_word_embeddings and not build(table).attention_bias
    shapes = {"lm_head.weight": (100, HIDDEN), "model.layers.0.self_attn.q_proj.bias": (64,)}
    config = build(table, **shapes)
    assert not config.tie_word_embeddings and config.attention_bias


def test_vocabulary_without_an_embedding_is_the_tokens() -> None:
    assert config_from_gguf(metadata(), {}).vocab_size == 3


def test_head_size() -> None:
    assert build(metadata("qwen3", attention__key_length=32, attention__value_length=32)).head_dim == 32
    assert build(metadata(rope__dimension_count=16)).head_dim == 16
    with pytest.raises(
        ConfigError, match=r"rope.dimension_count = 8 is not the head size 32: .* part of each head"
    ):
        build(metadata(attention__key_length=32, rope__dimension_count=8))
    with pytest.raises(ConfigError, match="value heads of size 8 beside keys of 16"):
        build(metadata(attention__value_length=8))
    with pytest.raises(ConfigError, match="5 heads do not divide 64"):
        build(metadata(attention__head_count=5))


def test_kv_heads_default_to_heads() -> None:
    assert build(metadata(remove=("attention.head_count_kv",))).num_key_value_heads == 4


def test_token_ids() -> None:
    ids = {"bos": 1, "eos": 2, "eot": 7, "eom": 2}
    config = build(metadata() | {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()})
    assert config.bos_token_id == 1 and config.eos_token_ids == (2, 7)
    assert build(metadata()).bos_token_id is None and build(metadata()).eos_token_ids == ()
    with pytest.raises(ConfigError, match=r"tokenizer.ggml.eos_token_id = -1 is not a token id"):
        build(metadata() | {"tokenizer.ggml.eos_token_id": -1})


NEEDED = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
]


@pytest.mark.parametrize("key", NEEDED)
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"GGUF metadata lacks llama\.{key}"):
        build(metadata(remove=(key,)))


@pytest.mark.parametrize("value", [0, -1, 1 << 40, 1.5, "8", True, [8, 8]])
@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_absurd_sizes_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"GGUF llama\.{key} = .*(outside 1 to|is not a valid int)"):
        build(metadata(**{key.replace(".", "__"): value}))


@pytest.mark.parametrize("key", ["feed_forward_length", "attention.head_count", "attention.head_count_kv"])
def test_sizes_layer_by_layer(key: str) -> None:
    """As llama.cpp reads them; layers that differ are refused by name."""
    value, name = metadata()[f"llama.{key}"], key.replace(".", "__")
    assert build(metadata(**{name: [value] * LAYERS})) == build(metadata())
    with pytest.raises(ConfigError, match=rf"GGUF llama\.{key} = .*layers of different sizes"):
        build(metadata(**{name: [value] * (LAYERS - 1) + [2 * value]}))


def test_long_values_do_not_become_the_message() -> None:
    for table in (
        metadata(block_count=[1] * 100_000),
        metadata(block_count="x" * 100_000),
        metadata(rope__scaling__type="x" * 100_000),
        metadata() | {"general.architecture": "x" * 100_000},
        metadata() | {"tokenizer.ggml.eos_token_id": [1] * 100_000},
    ):
        with pytest.raises(ConfigError) as caught:
            build(table)
        assert len(str(caught.value)) < 300


def test_a_model_that_reads_both_ways_is_refused() -> None:
    for value in (False, 0):
        with pytest.raises(ConfigError, match=r"llama.attention.causal = .*--ignore-field"):
            build(metadata(attention__causal=value))
    assert build(metadata(attention__causal=True)) == build(metadata())


def test_unsupported_models_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"general.architecture = 'minicpm3' is not supported\. did you mean 'minicpm'"
    ):
        build({"general.architecture": "minicpm3"})
    with pytest.raises(ConfigError, match=r"general.architecture = None is not supported"):
        build({})
    with pytest.raises(ConfigError, match=r"llama.expert_count = 8: .* --ignore-field llama.expert_count"):
        build(metadata(expert_count=8))
    with pytest.raises(ConfigError, match=r"GGUF llama.attention.sliding_window = 4096: not a field of"):
        build(metadata(attention__sliding_window=4096))


def test_linear_scaling() -> None:
    scaling = build(metadata(rope__scaling__type="linear", rope__scaling__factor=4.0)).rope_scaling
    assert scaling is not None and (scaling.rope_type, scaling.factor) == ("linear", 4.0)
    old = build(metadata(rope__scale_linear=2.0)).rope_scaling
    assert old is not None and (old.rope_type, old.factor) == ("linear", 2.0)
    assert build(metadata(rope__scaling__type="none")).rope_scaling is None
    # A factor alone scales; "none" means none, whatever factor there is; nought says nothing.
    alone = build(metadata(rope__scaling__factor=2.0, rope__scale_linear=8.0)).rope_scaling
    assert alone is not None and (alone.rope_type, alone.factor) == ("linear", 2.0)
    for key in ("rope__scaling__factor", "rope__scale_linear"):
        assert build(metadata(rope__scaling__type="none", **{key: 4.0})).rope_scaling is None
        assert build(metadata(**{key: 0.0})).rope_scaling is None
        assert build(metadata(rope__scaling__type="linear", **{key: 1.0})).rope_scaling is None


def test_yarn() -> None:
    keys = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 1024,
    }
    scaling = build(metadata(**keys)).rope_scaling
    assert scaling is not None and scaling.rope_type == "yarn" and scaling.factor == 4.0
    assert scaling.original_max_position_embeddings == 1024 and scaling.attention_factor is None
    more = {"rope__scaling__yarn_attn_factor": 0.5, "rope__scaling__yarn_beta_fast": 16.0}
    scaling = build(metadata(**keys, **more)).rope_scaling
    assert scaling is not None and scaling.beta_fast == 16.0
    assert scaling.attention_factor == pytest.approx(0.5 * (0.1 * math.log(4) + 1))
    with pytest.raises(ConfigError, match=r"rope.scaling.factor = 0.5 is below 1"):
        build(metadata(**keys | {"rope__scaling__factor": 0.5}))
    with pytest.raises(
        ConfigError, match=r"rope.scaling.type = 'yarm' is not supported\. did you mean 'yarn'"
    ):
        build(metadata(rope__scaling__type="yarm"))


def test_longrope_factors_count_even_unannounced() -> None:
    vectors = {LONG: [2.0] * 8, SHORT: [1.0] * 8}
    for table in (metadata("minicpm"), metadata("minicpm", rope__scaling__type="longrope")):
        scaling = build(table, vectors).rope_scaling
        assert scaling is not None and scaling.rope_type == "longrope"
        assert scaling.long_factor == (2.0,) * 8 and scaling.short_factor == (1.0,) * 8
        assert scaling.original_max_position_embeddings == 4096


def test_longrope_factors_that_are_wrong() -> None:
    with pytest.raises(ConfigError, match=r"rope_factors_short.weight has 0 factors, head_dim / 2 is 8"):
        build(metadata(), {LONG: [1.0] * 8})
    with pytest.raises(ConfigError, match=r"rope_factors_long.weight has 5 factors, head_dim / 2 is 8"):
        build(metadata(), {LONG: [1.0] * 5, SHORT: [1.0] * 8})
    with pytest.raises(ConfigError, match=r"rope_factors_long.weight holds a factor that is not positive"):
        build(metadata(), {LONG: [0.0] * 8, SHORT: [1.0] * 8})
    with pytest.raises(ConfigError, match=r"the values of rope_factors_long.weight were not given"):
        config_from_gguf(metadata(), {LONG: (8,)})


def test_llama3_divisors_apply_at_any_length() -> None:
    with pytest.raises(ConfigError, match=r"rope_freqs.weight beside llama.rope.scaling.factor = 8.0"):
        build(metadata(rope__scaling__factor=8.0), {FREQS: [8.0] * 8})
    scaling = build(metadata(), {FREQS: [1.0] * 4 + [8.0] * 4}).rope_scaling
    assert scaling is not None and scaling.rope_type == "longrope" and scaling.attention_factor == 1.0
    assert scaling.short_factor == scaling.long_factor == (1.0,) * 4 + (8.0,) * 4
