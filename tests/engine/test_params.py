"""Sampling parameters: defaults, normalisation, and what each refusal says."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import minicpm4.engine.params as params_module
from minicpm4.engine.params import OFF, SamplingParams, suggested_by_gguf, suggested_sampling
from minicpm4.errors import ConfigError


def drawing(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in OFF}


def test_nothing_named_is_the_models_to_say_and_else_sane() -> None:
    params = SamplingParams()
    assert params.is_open and drawing(params) == {**OFF, "temperature": 0.7, "top_p": 0.7}
    assert params.max_tokens == 256 and params.n == 1 and not params.greedy
    kept = SamplingParams(max_tokens=5, seed=3, stop="x").suggested({"temperature": 0.8, "top_k": 20})
    assert drawing(kept) == {**OFF, "temperature": 0.8, "top_k": 20}
    assert (kept.max_tokens, kept.seed, kept.stop) == (5, 3, ("x",))
    assert params.suggested({}) == params


@pytest.mark.parametrize("named", [{"temperature": 1.0}, {"top_p": 0.9}, {"top_k": 0}, {"temperature": 0}])
def test_one_named_turns_the_others_off(named: dict[str, Any]) -> None:
    params = SamplingParams(**named)
    assert not params.is_open and drawing(params) == {**OFF, **named}
    assert params.suggested({"repetition_penalty": 1.3, "temperature": 0.2}) is params


def test_how_tokens_are_drawn_is_told() -> None:
    assert SamplingParams().drawn() == "temperature 0.7, top_p 0.7"
    assert SamplingParams(temperature=0).drawn() == "the likeliest token"
    assert SamplingParams(temperature=0, repetition_penalty=1.1).drawn() == (
        "the likeliest token, repetition_penalty 1.1"
    )
    said = SamplingParams(top_k=40, min_p=0.05, presence_penalty=1).drawn()
    assert said == "temperature 1, top_k 40, min_p 0.05, presence_penalty 1"


def test_what_a_gguf_file_suggests() -> None:
    metadata = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.name": "m"}
    assert suggested_by_gguf(metadata) == {"temperature": 0.6, "top_k": 20}
    assert suggested_by_gguf({}) == {}
    with pytest.raises(ConfigError, match="temperature"):
        suggested_by_gguf({"general.sampling.temp": -1.0})


def test_zero_temperature_is_greedy() -> None:
    assert SamplingParams(max_tokens=64, temperature=0.0).greedy
    assert SamplingParams(temperature=0).temperature == 0.0


def test_spellings_are_normalised() -> None:
    params = SamplingParams(stop="\n\n", top_k=-1, stop_token_ids=[3], logit_bias={1: 2})
    assert params.stop == ("\n\n",) and params.top_k == 0
    assert params.stop_token_ids == (3,) and params.logit_bias == {1: 2.0}


def test_params_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().top_k = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingParams(64)  # type: ignore[misc]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, r"max_tokens = 0 is outside 1 to"),
    ({"max_tokens": 2.5}, r"max_tokens = 2\.5 is not an integer"),
    ({"max_tokens": True}, r"max_tokens = True is not an integer"),
    ({"max_tokens": 3, "min_tokens": 4}, r"min_tokens = 4 is above max_tokens = 3"),
    ({"temperature": -0.1}, r"temperature = -0\.1 is outside 0 to 100"),
    ({"temperature": float("nan")}, r"temperature = nan is not a number"),
    ({"temperature": "hot"}, r"temperature = 'hot' is not a number"),
    ({"temperature": 10**400}, r"temperature = 10+… .* is not a number"),
    ({"top_p": 10**5000}, r"top_p = an integer of 16610 bits is not a number"),
    ({"max_tokens": 10**5000}, r"max_tokens = .* is outside 1 to"),
    ({"top_k": -2}, r"top_k = -2 is outside -1 to"),
    ({"top_p": 0}, r"top_p = 0\.0 is outside 0 \(excluded\) to 1\. 1 turns it off"),
    ({"min_p": 1.5}, r"min_p = 1\.5 is outside 0 to 1"),
    ({"repetition_penalty": 0}, r"repetition_penalty = 0\.0 is outside"),
    ({"repetition_penalty": 1e-300}, r"repetition_penalty = 1e-300 is outside 0\.01 to 100\. 1 turns it off"),
    ({"presence_penalty": 3}, r"presence_penalty = 3\.0 is outside -2 to 2"),
    ({"frequency_penalty": -3}, r"frequency_penalty = -3\.0 is outside -2 to 2"),
    ({"seed": 1.5}, r"seed = 1\.5 is not an integer"),
    ({"stop": 7}, r"stop = 7 is not a string or a list"),
    ({"stop": ["a", ""]}, r"stop string '' is not usable"),
    ({"stop": "x" * 5000}, r"'x+ is not usable\. stop strings have 1 to 4096"),
    ({"stop": ["a"] * 65}, r"65 stop strings were given, the limit is 64"),
    ({"stop_token_ids": [-1]}, r"stop_token_ids = \[-1\] is not a list of token ids"),
    ({"stop_token_ids": [-(10**5000)]}, r"stop_token_ids = list is not"),
    ({"stop_token_ids": 5}, r"stop_token_ids = 5 is not a list"),
    ({"logit_bias": {"a": 1.0}}, r"logit_bias has the key 'a'"),
    ({"logit_bias": {3: float("nan")}}, r"logit_bias of token 3 is nan"),
    (
        {"logit_bias": {1: 10**400}},
        r"logit_bias of token 1 is 10+… .*\. use a number from -10000 to 10000, or -inf",
    ),
    ({"logit_bias": {1: 1e308}}, r"logit_bias of token 1 is 1e\+308"),
    ({"logit_bias": {1: -1e5}}, r"logit_bias of token 1 is -100000"),
    ({"logit_bias": {1: True}}, r"logit_bias of token 1 is True"),
    ({"logit_bias": [1]}, r"logit_bias = \[1\] is not a table"),
    ({"ignore_eos": 1}, r"ignore_eos = 1 is not true or false"),
    ({"skip_special_tokens": "no"}, r"skip_special_tokens = 'no' is not true or false"),
    ({"logprobs": -1}, r"logprobs = -1 is outside 0 to 1000"),
    ({"n": 0}, r"n = 0 is outside 1 to 256"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_a_wrong_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**options)


def test_any_integer_is_a_seed() -> None:
    assert SamplingParams(seed=-(10**5000)).seed == -(10**5000)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no parameter 'temprature'\. did you mean 'temperature'\?"):
        SamplingParams.from_mapping({"temprature": 1})


def test_bias_may_forbid_a_token() -> None:
    assert SamplingParams(logit_bias={3: float("-inf")}).logit_bias[3] == float("-inf")


@pytest.mark.parametrize("name", ["sequence", "pages", "scheduler", "params"])
def test_the_integer_side_imports_no_arrays(name: str) -> None:
    source = Path(params_module.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert "numpy" not in " ".join(ast.unparse(node) for node in nodes)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, {}),
        ({"do_sample": True, "top_p": 0.8, "temperature": 0.7}, {"top_p": 0.8, "temperature": 0.7}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 20}, {"temperature": 0.0, "top_k": 20}),
        ({"eos_token_id": 2, "temperature": None, "min_p": 0.1}, {"min_p": 0.1}),
    ],
)
def test_what_a_generation_config_suggests(table: dict[str, Any], expected: dict[str, Any]) -> None:
    assert suggested_sampling(table) == expected


def test_a_suggestion_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"temperature"):
        suggested_sampling({"temperature": "hot"})
