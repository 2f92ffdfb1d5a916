"""config.json as transformers reads it (benchmarks/reference/transformers_configs.py made the fixtures)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from minicpm4.config import ModelConfig
from minicpm4.config.fields import CLASSES, HARMLESS, KEYS, NEUTRAL, READ, SIZES
from minicpm4.errors import ConfigError
from minicpm4.model.rotary import inverse_frequencies
from tests.fixtures.transformers_folders import SHAPE, read

FIELDS = read("fields.json")
GRID = read("rope_grid.json")
OWN = {
    "mistral": {"sliding_window": None},
    "minicpm": {"scale_emb": 1, "scale_depth": 1, "dim_model_base": 16},
}


def shaped(kind: str, **changes: Any) -> dict[str, Any]:
    """A small config.json of a class; ... removes a field."""
    raw = {"model_type": kind, **SHAPE, **OWN.get(kind, {}), **changes}
    return {name: value for name, value in raw.items() if value is not ...}


@pytest.mark.parametrize(("version", "kind"), [(v, k) for v in FIELDS for k in FIELDS[v]])
def test_every_field_of_transformers_is_known(version: str, kind: str, caplog: Any) -> None:
    assert len(FIELDS[version][kind]) > 20
    unknown = [n for n in FIELDS[version][kind] if n not in READ and n not in HARMLESS and n not in NEUTRAL]
    assert not unknown
    raw = shaped(kind, **{k: v for k, v in FIELDS[version][kind].items() if k not in (*SIZES, "layer_types")})
    if kind == "mistral":  # whose default is a window
        raw["sliding_window"] = None
    with caplog.at_level(logging.WARNING, "minicpm4"):
        ModelConfig.from_hf(raw)
    assert not caplog.records


def test_no_field_has_two_answers() -> None:
    assert not set(HARMLESS) & (set(READ) | set(NEUTRAL)) and set(KEYS) == set(READ)


# What one class reads another does not know: then only a value that says nothing passes.
FOREIGN = [
    ("llama", "scale_emb", 12.0, 1),
    ("qwen2", "mlp_bias", True, False),
    ("qwen3", "mlp_bias", True, None),
    ("mistral", "attention_bias", True, False),
    ("minicpm", "mlp_bias", True, False),
    ("llama", "sliding_window", 64, None),
    ("minicpm", "sliding_window", 64, 256),
    ("llama", "layer_types", ["sliding_attention"] * 2, ["full_attention"] * 2),
    ("llama", "partial_rotary_factor", 0.5, 1.0),
    ("qwen2", "logits_scaling", 8.0, 1.0),
    ("qwen2", "attention_multiplier", 0.1, None),
    ("qwen3", "num_experts", 8, 0),
    ("llama", "n_routed_experts", 8, None),
    ("llama", "rope_interleaved", True, False),
    ("llama", "activation", "gelu", "swiglu"),
    ("llama", "is_encoder_decoder", True, False),
    ("minicpm", "some_new_field", [1], []),
    ("llama", "some_new_field", "abc", ""),
    ("llama", "is_causal", False, True),  # where it is absent it is true
    ("qwen2", "is_causal", False, None),
    ("qwen3", "is_causal", 0, True),
]


@pytest.mark.parametrize(("kind", "name", "bad", "good"), FOREIGN)
def test_a_field_that_is_not_obeyed_is_refused_by_name(kind: str, name: str, bad: Any, good: Any) -> None:
    plain = ModelConfig.from_hf(shaped(kind))
    assert ModelConfig.from_hf(shaped(kind, **{name: good})) == plain
    with pytest.raises(ConfigError, match=rf"config {name} = .*--ignore-field {name}"):
        ModelConfig.from_hf(shaped(kind, **{name: bad}))
    assert ModelConfig.from_hf(shaped(kind, **{name: bad}), [name]) == plain


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        (
            {"tool_version": "1.2", "x_flag": False, "y_count": 0, "z": None},
            ["tool_version", "x_flag", "y_count"],
        ),
        ({"transformers_version": "4.99", "unsloth_fixed": True, "resid_pdrop": 0.1, "num_beams": 4}, []),
        ({"seed": 1, "flash_attn": True, "use_unsloth": True, "n_routed_experts": None}, []),
        ({"scoring_func": "softmax", "topk_method": "greedy", "routed_scaling_factor": 1.5}, []),
    ],
)
def test_labels_and_fields_that_say_nothing_pass(kind: str, fields: Any, warned: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "minicpm4"):
        assert ModelConfig.from_hf(shaped(kind, **fields)) == ModelConfig.from_hf(shaped(kind))
    assert len(caplog.records) == (1 if warned else 0)
    assert all(name in caplog.text for name in warned)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("version", FIELDS)
def test_an_absent_field_is_the_default_of_its_own_class(kind: str, version: str) -> None:
    theirs = FIELDS[version][kind]
    gone = {"max_position_embeddings": ..., "rms_norm_eps": ..., "num_key_value_heads": ..., "head_dim": ...}
    found = ModelConfig.from_hf(shaped(kind, num_attention_heads=32, hidden_size=128, **gone))
    assert found.max_position_embeddings == theirs["max_position_embeddings"]
    assert found.rms_norm_eps == theirs["rms_norm_eps"]
    assert found.num_key_value_heads == theirs["num_key_value_heads"]
    assert found.head_dim == (theirs["head_dim"] if kind == "qwen3" else 4)
    assert found.tie_word_embeddings is theirs["tie_word_embeddings"] is False


def test_a_field_to_be_ignored_is_null_though_it_is_absent(caplog: Any) -> None:
    """What stands for it then is not the class's own default; names that nothing has are told of."""
    raw = shaped("mistral", sliding_window=..., rope_scaling={"type": "linear", "factor": 2.0})
    assert ModelConfig.from_hf(raw).windows
    with caplog.at_level(logging.WARNING, "minicpm4"):
        found = ModelConfig.from_hf(raw, ["sliding_window", "rope_scaling.type"])
    assert not found.windows and found.rope_scaling is None and not caplog.records
    with caplog.at_level(logging.WARNING, "minicpm4"):
        ModelConfig.from_hf(raw, ["slidin_window", "sliding_window", "rope_scaling.tpye"])
    (record,) = caplog.records
    assert record.getMessage().endswith("does not have: slidin_window, rope_scaling.tpye")


def test_old_spellings() -> None:
    """A Llama of the first conversions: no lengths but one that nobody reads, -1 for none, an old class."""
    old = ModelConfig.from_hf(
        shaped(
            "llama",
            architectures=["LLaMAForCausalLM"],
            max_sequence_length=2048,
            max_position_embeddings=...,
            num_key_value_heads=...,
            pad_token_id=-1,
            bos_token_id=-1,
            eos_token_id=-1,
            hidden_act="swish",
        )
    )
    assert old.max_position_embeddings == 2048 and old.num_key_value_heads == old.num_attention_heads == 4
    assert old.bos_token_id is None and old.eos_token_ids == ()


def test_two_names_of_the_model_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"'mistral' are two kinds of model.*--ignore-field model_type"):
        ModelConfig.from_hf(shaped("mistral", architectures=["LlamaForCausalLM"]))
    both = shaped("mistral", architectures=["LlamaForCausalLM"], sliding_window=...)
    assert not ModelConfig.from_hf(both, ["model_type"]).windows


FIRST = {kind: one.architectures[0] for kind, one in CLASSES.items()}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("foreign", ["phi3", "gemma2", "qwen2_moe", "Llama", "x" * 5000])
def test_another_model_type_is_not_opened_by_its_architectures(kind: str, foreign: str) -> None:
    plain = shaped(kind, architectures=[FIRST[kind]])
    raw = {**plain, "model_type": foreign}
    with pytest.raises(ConfigError, match=r"are two kinds of model.*--ignore-field model_type") as caught:
        ModelConfig.from_hf(raw)
    assert FIRST[kind] in str(caught.value) and foreign[:20] in str(caught.value)
    assert len(str(caught.value)) < 400
    # Without a type, or with one that is set aside, architectures say it.
    expected = ModelConfig.from_hf(plain)
    assert ModelConfig.from_hf(raw, ["model_type"]) == expected
    assert ModelConfig.from_hf({**raw, "model_type": None}) == expected
    assert ModelConfig.from_hf({**raw, "model_type": ""}) == expected
    assert ModelConfig.from_hf({**plain, "architectures": None}) == expected


def test_other_names_of_minicpm() -> None:
    plain = ModelConfig.from_hf(shaped("minicpm"))
    for kind in ("minicpm", "minicpm4", ...):
        for named in CLASSES["minicpm"].architectures:
            assert ModelConfig.from_hf(shaped("minicpm", model_type=kind, architectures=[named])) == plain


# What transformers, vLLM, SGLang, llm2vec and others call classes around the same layers.
OTHERS = [
    ("SequenceClassification", "a classifier"),
    ("TokenClassification", "a classifier"),
    ("Classification", "a classifier"),
    ("QuestionAnswering", "marks answers"),
    ("RewardModel", "a reward model"),
    ("ProcessRewardModel", "a reward model"),
    ("RewardModelWithGating", "a reward model"),
    ("Score", "a reward model"),
    ("CausalLMEagle", "a draft"),
    ("CausalLMEagle3", "a draft"),
    ("CausalLMNextN", "a draft"),
    ("TextEmbedding", "an embedding model"),
    ("MNTP", "no causal language model"),
    ("MaskedLM", "no causal language model"),
    ("ConditionalGeneration", "no causal language model"),
]
FAMILIES = {"minicpm": "MiniCPM", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
NAMED = [
    *((kind, f"{FAMILIES[kind]}For{task}", what) for kind in CLASSES for task, what in OTHERS),
    *((kind, f"Eagle{FAMILIES[kind]}ForCausalLM", "a draft") for kind in CLASSES),
    *((kind, f"Eagle3{FAMILIES[kind]}ForCausalLM", "a draft") for kind in CLASSES),
    *((kind, f"{FAMILIES[kind]}BidirectionalModel", "an embedding model") for kind in CLASSES),
    *((kind, f"{FAMILIES[kind]}EncoderModel", "an embedding model") for kind in CLASSES),
    ("minicpm", "EagleForCausalLM", "a draft"),
    ("llama", "LlamaModelForScore", "a reward model"),
    ("llama", "LlamaRewardModel", "a reward model"),
    ("llama", "MedusaModel", "a draft"),
    ("llama", "LlamaBiModel", "an embedding model"),
    ("llama", "MLPSpeculatorPreTrainedModel", "a draft"),
    ("qwen3", "DFlashDraftModel", "a draft"),
]


@pytest.mark.parametrize(("kind", "named", "what"), NAMED)
def test_classes_that_compute_something_else_are_refused_by_name(kind: str, named: str, what: str) -> None:
    raw = shaped(kind, architectures=[named])
    with pytest.raises(ConfigError, match=rf"{named}.*{what}.*--ignore-field architectures"):
        ModelConfig.from_hf(raw)
    with pytest.raises(ConfigError, match=f"{named}.*{what}"):
        ModelConfig.from_hf({**raw, "architectures": [FIRST[kind], named]})
    with pytest.raises(ConfigError, match=f"{named}.*{what}") as caught:
        ModelConfig.from_hf({**raw, "model_type": None})
    assert "--ignore-field" not in str(caught.value)  # nothing else would say what it is
    assert ModelConfig.from_hf(raw, ["architectures"]) == ModelConfig.from_hf(shaped(kind))


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_around_the_same_language_model_go_by_its_type(kind: str) -> None:
    """As AutoModelForCausalLM of transformers does; whether the head is there is seen among the tensors."""
    name = FAMILIES[kind]
    for named in ("Model", "ForCausalLM", "ForCausalLMQuantized", "LMHeadModel", "PreTrainedModel"):
        for shown in (name + named, name.upper() + named, "My" + name + named):
            raw = shaped(kind, architectures=[shown])
            assert ModelConfig.from_hf(raw) == ModelConfig.from_hf(shaped(kind))


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"num_attention_heads = 3 do not divide hidden_size = 16"):
        ModelConfig.from_hf(shaped("llama", num_attention_heads=3, num_key_value_heads=3))
    assert ModelConfig.from_hf(shaped("llama", num_attention_heads=3, num_key_value_heads=3, head_dim=8))


def contradicts(raw: dict[str, Any]) -> bool:
    """Whether rope_scaling hides another theta of rope_parameters, which is refused."""
    scaling, both = raw.get("rope_scaling"), raw.get("rope_parameters")
    theta = (scaling or {}).get("rope_theta", raw.get("rope_theta", 10000.0))
    return bool(scaling and both) and both["rope_theta"] != theta


def test_rotary_frequencies_over_a_grid_of_configurations() -> None:
    wrong, refused = [], 0
    for raw, context, inverse, factor in GRID:
        if contradicts(raw):
            with pytest.raises(
                ConfigError, match=r"config rope_parameters has rope_theta = .*, but rope_scaling"
            ):
                ModelConfig.from_hf(raw)
            refused += 1
            continue
        try:
            got, scale = inverse_frequencies(ModelConfig.from_hf(raw), context)
        except ConfigError as error:
            wrong.append((raw, str(error)))
            continue
        if not np.allclose(got, inverse, rtol=2e-5, atol=0) or abs(scale - factor) > 1e-6 * factor:
            wrong.append((raw, context, got.tolist(), inverse, scale, factor))
    assert not wrong, f"{len(wrong)} of {len(GRID)}: {wrong[0]}"
    assert len(GRID) >= 400 and 0 < refused < len(GRID) / 4
