"""``/v1/completions`` over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import events

PATH = "/v1/completions"
BOS = 256


def test_a_text_is_continued(serve: Any) -> None:
    server = serve(" is Paris")
    answer = server.post(PATH, prompt="The capital", max_tokens=9).json()
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": " is Paris", "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"]["prompt_tokens"] == 12 and answer["usage"]["completion_tokens"] == 9
    assert server.engine.params[0].max_tokens == 9
    server.post(PATH, prompt="x")
    assert server.engine.params[1].max_tokens == 16  # OpenAI's default


@pytest.mark.parametrize("prompt", ["ab", [BOS, 97, 98]])
def test_echo_and_log_probabilities_have_offsets(serve: Any, prompt: Any) -> None:
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2, "temperature": 0}
    (choice,) = serve("xé").post(PATH, **body).json()["choices"]
    begin = "" if isinstance(prompt, str) else "<s>"
    at = len(begin)
    assert choice["text"] == f"{begin}abx\ufffd" and choice["finish_reason"] == "length"
    told = choice["logprobs"]
    assert told["tokens"] == ["<s>", "a", "b", "x", "\ufffd"]
    assert told["text_offset"] == [0, at, at + 1, at + 2, at + 3]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx([0, 0, 0, 0])
    for logprob, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert max(top.values()) == logprob  # how lm-evaluation-harness tells that a token is the best


def test_a_text_is_scored_without_an_answer(serve: Any) -> None:
    server = serve(engine={"context": 64})
    body = {"echo": True, "logprobs": True, "max_tokens": 0}
    answer = server.post(PATH, prompt=[97] * 64, **body).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "a" * 64 and len(choice["logprobs"]["tokens"]) == 64
    assert choice["finish_reason"] == "length" and answer["usage"]["prompt_tokens"] == 64
    assert server.engine.prompts == []  # scored, not answered
    refused = server.post(PATH, prompt=[97] * 65, **body).json()["error"]
    assert "65" in refused["message"] and "64" in refused["message"] and refused["param"] == "prompt"


def test_several_prompts_and_samples(serve: Any) -> None:
    server = serve(lambda prompt: prompt.upper())
    answer = server.post(PATH, prompt=["ab", "cd"], n=2, logprobs=0).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "AB"),
        (1, "AB"),
        (2, "CD"),
        (3, "CD"),
    ]
    assert answer["usage"]["prompt_tokens"] == 6 and answer["usage"]["completion_tokens"] == 12
    ids = server.post(PATH, prompt=[[97], [98, 99]]).json()
    assert [c["text"] for c in ids["choices"]] == ["A", "BC"]


def test_a_stream_says_the_same(serve: Any) -> None:
    body = {"prompt": ["ab", "cd"], "echo": True, "logprobs": 2, "temperature": 0}
    whole = serve(lambda prompt: prompt * 2).post(PATH, **body).json()
    response = serve(lambda prompt: prompt * 2).post(
        PATH, stream=True, stream_options={"include_usage": True}, **body
    )
    *chunks, last = events(response)
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"] and own[-1]["finish_reason"] == "stop"
        for name, values in choice["logprobs"].items():
            assert [v for c in own for v in c["logprobs"][name]] == values
    assert last["usage"] == whole["usage"] and last["choices"] == []


WRONG = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": [["a"]]}, "prompt[0][0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [0.5]}, "prompt[0]"),
    ({"prompt": [9999]}, "prompt"),
    ({"prompt": [[1], [9999]]}, "prompt[1]"),
    ({"prompt": ["x", "y" * 5000]}, "prompt[1]"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "suffix": "y"}, "suffix"),
    ({"prompt": "x", "best_of": 3}, "best_of"),
    ({"prompt": [9999], "echo": True, "max_tokens": 0}, "prompt"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(body)[:50] for body, _ in WRONG])
def test_a_wrong_field_is_a_400_with_its_path(serve: Any, body: Any, param: str) -> None:
    content = json.dumps(body)
    response = serve().ask("POST", PATH, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
