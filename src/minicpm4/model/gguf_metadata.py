"""A configuration as the metadata of a GGUF file: the inverse of ``config/gguf.py``, with the names that
llama.cpp reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.config.gguf import FREQS, LONG, SHORT
from minicpm4.errors import ConfigError
from minicpm4.model.rotary import inverse_frequencies

__all__ = ["gguf_metadata"]

_WITH_FACTORS = ("llama", "minicpm")  # architectures whose readers look for the tensors of rotary factors
_BIASED = {"qwen2": ("attention_bias",), "qwen3": ()}  # others may have any, by their tensors
_REMEDY = "write a folder (--to hf), whose config.json can"

Vectors = dict[str, NDArray[np.float32]]


def gguf_metadata(config: ModelConfig) -> tuple[dict[str, Any], Vectors]:
    """Keys of the architecture, and the tensors that belong to them. Sparse attention has none. Raises
    ConfigError where there is no key for what changes logits."""
    arch = config.model_type
    _check(config)
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size or arch == "qwen3":
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if arch == "minicpm":
        values |= {
            "embedding_scale": config.scale_emb,
            "residual_scale": config.residual_scale,
            "logit_scale": 1.0 / config.logit_scale,
        }
    keys, vectors = _rope(config)
    return {f"{arch}.{name}": value for name, value in (values | keys).items()}, vectors


def _check(config: ModelConfig) -> None:
    arch = config.model_type
    if any(config.windows):
        raise ConfigError(f"GGUF's {arch} has no key for sliding windows", _REMEDY)
    biases = [name for name in ("attention_bias", "output_bias", "mlp_bias") if getattr(config, name)]
    if arch in _BIASED and biases != list(_BIASED[arch]):
        raise ConfigError(f"GGUF's {arch} has no place for {' and '.join(biases) or 'no biases'}", _REMEDY)
    plain = (config.scale_emb, config.residual_scale, config.logit_scale) == (1.0, 1.0, 1.0)
    if arch != "minicpm" and not plain:
        raise ConfigError(f"GGUF's {arch} has no key for muP's scales", "use model type minicpm")
    if arch == "minicpm" and config.logit_scale > 1:
        raise ConfigError(
            f"dim_model_base = {config.dim_model_base:g} is above hidden_size = {config.hidden_size}: GGUF "
            "files whose logit_scale is below 1 are taken for old ones that hold its inverse",
            _REMEDY,
        )


def _rope(config: ModelConfig) -> tuple[dict[str, Any], Vectors]:
    scaling = config.rope_scaling
    if scaling is None:
        return {}, {}
    arch, kind = config.model_type, scaling.rope_type
    if kind in ("longrope", "llama3") and arch not in _WITH_FACTORS:
        raise ConfigError(f"readers of GGUF's {arch} look for no rotary factors ({kind})", _REMEDY)
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}, {}
    if kind == "yarn":
        return _yarn(config, scaling), {}
    if kind == "longrope":
        return _longrope(config, scaling)
    if kind == "llama3":
        plain = inverse_frequencies(replace(config, rope_scaling=None), 1)[0]
        divisors = plain / inverse_frequencies(config, 1)[0]
        return {}, {FREQS: divisors.astype(np.float32)}
    raise ConfigError(f"GGUF has no key for rotary scaling of type {kind!r}", _REMEDY)


def _yarn(config: ModelConfig, scaling: RopeScaling) -> dict[str, Any]:
    if not scaling.truncate or scaling.factor < 1:
        raise ConfigError("GGUF has no key for YaRN without truncation, or of a factor below 1", _REMEDY)
    # GGUF's factor multiplies YaRN's own.
    attention = inverse_frequencies(config, 1)[1] / (0.1 * math.log(scaling.factor) + 1)
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.factor,
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": scaling.beta_fast,
        "rope.scaling.yarn_beta_slow": scaling.beta_slow,
        **({} if abs(attention - 1) < 1e-7 else {"rope.scaling.attn_factor": attention}),
    }


def _longrope(config: ModelConfig, scaling: RopeScaling) -> tuple[dict[str, Any], Vectors]:
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    keys = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": inverse_frequencies(config, original)[1],
    }
    vectors = {LONG: scaling.long_factor, SHORT: scaling.short_factor}
    return keys, {name: np.array(factors, np.float32) for name, factors in vectors.items()}
