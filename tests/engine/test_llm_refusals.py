"""What an LLM refuses: at the call, by name, and without harm to the next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.errors import (
    ConfigError,
    MemoryPlanError,
    Minicpm4Error,
    ModelNotFoundError,
    RequestError,
    TextError,
)
from tests.engine.test_llm import Make, greedy

REQUESTS: list[tuple[Any, Any, str]] = [
    ("", None, r"the prompt is empty"),
    (np.zeros(0, int), None, r"the prompt is empty"),
    ("a", [], r"1 prompts came with 0 params"),
    ("a", {}, r"params is a dict\. pass SamplingParams"),
    ([[]], None, r"the prompt is empty"),
    ([{}], None, r"token \{\} at position 0 is not in the vocabulary"),
    ({"a": 1}, None, r"a dict was given, not token ids"),
    ([320], None, r"token 320 at position 0 is not in the vocabulary of 320"),
    ([1] * 512, None, r"the prompt has 512 tokens, prompt and answer together may have 512 \(context\)"),
    (["a", "b"], [SamplingParams()], r"2 prompts came with 1 params"),
    ("a", {"top_k": 3}, r"params is a dict\. pass SamplingParams"),
    (7, None, r"a int was given, not token ids"),
    (np.zeros(3), None, r"token ids come as 1-d float64"),
    ([1], SamplingParams(logit_bias=dict.fromkeys(range(320), float("-inf"))), r"forbid every token"),
]


@pytest.mark.parametrize(("prompts", "params", "message"), REQUESTS)
def test_a_wrong_request_is_refused(make_llm: Make, prompts: Any, params: Any, message: str) -> None:
    llm = make_llm()
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, params)
    assert not llm.engine.scheduler.has_work


TALK = [{"role": "user", "content": "hi"}]

WRONG_TYPES: list[tuple[Callable[[LLM], Any], str]] = [
    (lambda llm: llm.generate([1], progress=5), r"progress is a int\. pass a function of"),
    (lambda llm: llm.stream([1], progress="x"), r"progress is a str\. pass a function of"),
    (lambda llm: llm.logits([1], progress=5), r"progress is a int\. pass a function of"),
    (lambda llm: llm.nll([1, 2], progress=5), r"progress is a int\. pass a function of"),
    (lambda llm: llm.chat(TALK, enable_thinking="x"), r"enable_thinking is a str\. give True, False"),
    (lambda llm: llm.refill(None), r"a NoneType is no model\. give a name"),
]


@pytest.mark.parametrize(("use", "message"), WRONG_TYPES)
def test_a_wrong_type_is_refused(make_llm: Make, use: Callable[[LLM], Any], message: str) -> None:
    llm = make_llm()
    with pytest.raises((ConfigError, RequestError), match=message):
        use(llm)


def test_streams_refuse_at_the_call(make_llm: Make) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        make_llm().stream("")


def test_scores_refuse_what_they_cannot_score(make_llm: Make) -> None:
    llm = make_llm()
    with pytest.raises(RequestError, match="1 tokens have no next token"):
        llm.nll([1])
    with pytest.raises(RequestError, match="the text has 513 tokens, the context is 512"):
        llm.logits([1] * 513)


def test_a_closed_llm_says_so(make_llm: Make) -> None:
    llm = make_llm()
    llm.close()
    with pytest.raises(RequestError, match="this LLM is closed"):
        llm.generate("a")


LOADS: list[tuple[dict[str, Any], type[Minicpm4Error], str]] = [
    ({"attention": "sprase"}, ConfigError, r"did you mean 'sparse'"),
    ({"backend": "cpuu"}, ConfigError, r"did you mean 'cpu'"),
    ({"weights": None}, ConfigError, r"weights = None is not a weight format"),
    ({"weights": ["int4"]}, ConfigError, r"weights = \['int4'\] is not a weight format"),
    ({"seed": 10**5000, "context": "x"}, ConfigError, r"context = 'x' is not an integer"),
    ({"progress": 5}, ConfigError, r"progress is a int\. pass a function of \(done, total\)"),
    ({"context": 1 << 24, "kv": "float32"}, MemoryPlanError, r"a context of 16,777,216 tokens needs .* fits"),
]


@pytest.mark.parametrize(("options", "error", "message"), LOADS)
def test_a_wrong_load_is_refused(
    make_llm: Make,
    options: dict[str, Any],
    error: type[Minicpm4Error],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minicpm4.kernels.contract.available_memory", lambda: 10**9)
    with pytest.raises(error, match=message):
        make_llm(**options)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m-instruct"):
        LLM("smolm2-135m-instruct")


def test_a_stop_string_without_tokenizer_is_refused_and_breaks_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, tmp_path / name)
    with LLM(tmp_path, threads=1) as llm:
        expected = llm.generate([1, 2, 3], greedy()).token_ids
        for _ in range(2):
            with pytest.raises(TextError, match="holds no tokenizer"):
                llm.generate([1, 2, 3], greedy(stop="a"))
            assert llm.generate([1, 2, 3], greedy()).token_ids == expected
