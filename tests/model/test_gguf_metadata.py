"""A configuration in GGUF metadata is the same model when it is read again."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.config.gguf import config_from_gguf
from minicpm4.errors import ConfigError
from minicpm4.formats.names import expected_tensors, gguf_name, gguf_to_hf
from minicpm4.model.gguf_metadata import gguf_metadata
from minicpm4.model.rotary import inverse_frequencies
from tests.model.test_rotary import CONFIG

FACTORS = tuple(1 + 0.3 * i for i in range(8))
MUP: dict[str, Any] = {"model_type": "minicpm", "scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 16.0}
ORIGINAL = {"original_max_position_embeddings": 1024}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "all biases": {"attention_bias": True, "output_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "theta": {"rope_theta": 5e6, "rms_norm_eps": 1e-6},
    "qwen2": {"model_type": "qwen2", "attention_bias": True},
    "qwen3": {"model_type": "qwen3", "qk_norm": True, "head_dim": 32},
    "minicpm": MUP,
    "minicpm longrope": MUP
    | {
        "rope_scaling": RopeScaling(
            rope_type="longrope", short_factor=FACTORS[::-1], long_factor=FACTORS, **ORIGINAL
        )
    },
    "linear": {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)},
    "yarn": {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, beta_fast=16.0, **ORIGINAL)},
    "yarn attention": {
        "model_type": "qwen2",
        "attention_bias": True,
        "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, attention_factor=1.3, **ORIGINAL),
    },
    "llama3": {
        "rope_scaling": RopeScaling(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL
        )
    },
}


def read_again(config: ModelConfig) -> ModelConfig:
    keys, vectors = gguf_metadata(config)
    shapes: dict[str, tuple[int, ...]] = {**expected_tensors(config)}
    shapes |= {name: values.shape for name, values in vectors.items()}
    # Numbers are float32 in a file.
    keys = {key: float(np.float32(value)) if type(value) is float else value for key, value in keys.items()}
    metadata = {"general.architecture": config.model_type, **keys}
    return config_from_gguf(metadata, shapes, {name: v.tolist() for name, v in vectors.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_same_model_is_read_again(name: str) -> None:
    config = dataclasses.replace(CONFIG, **CASES[name])
    found = read_again(config)
    close = {"scale_emb", "scale_depth", "dim_model_base", "rms_norm_eps"}
    for field in dataclasses.fields(config):
        one, other = getattr(config, field.name), getattr(found, field.name)
        if field.name == "rope_scaling":
            continue
        assert (other == pytest.approx(one, rel=1e-6)) if field.name in close else other == one, field.name
    for context in (512, 1024, 4096):
        ours, theirs = inverse_frequencies(config, context), inverse_frequencies(found, context)
        np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-6)
        assert theirs[1] == pytest.approx(ours[1], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": (64,)}, "sliding windows"),
        ({"model_type": "qwen2"}, "qwen2 has no place for no biases"),
        ({"model_type": "qwen2", "attention_bias": True, "mlp_bias": True}, "and mlp_bias"),
        ({"scale_emb": 2.0}, "muP"),
        (MUP | {"dim_model_base": 128.0}, "above hidden_size = 64"),
        ({"rope_scaling": RopeScaling(rope_type="dynamic", factor=2.0)}, "'dynamic'"),
        ({"rope_scaling": RopeScaling(rope_type="yarn", factor=2.0, truncate=False, **ORIGINAL)}, "YaRN"),
        (
            CASES["qwen2"]
            | {"rope_scaling": RopeScaling(rope_type="longrope", short_factor=FACTORS, long_factor=FACTORS)},
            "rotary factors",
        ),
    ],
)
def test_what_no_key_can_say_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gguf_metadata(dataclasses.replace(CONFIG, **changes))


def test_every_tensor_has_a_name_in_gguf() -> None:
    config = dataclasses.replace(CONFIG, **CASES["all biases"], qk_norm=True)
    for name in expected_tensors(config):
        assert gguf_to_hf(gguf_name(name)) == name != gguf_name(name)
