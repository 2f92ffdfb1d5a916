"""Endpoints beside the APIs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.conftest import HELLO

BOS, EOS = 256, 257


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "ab"}, [BOS, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"content": "ab"}, [97, 98]),
        ({"content": "ab", "add_special_tokens": True}, [BOS, 97, 98]),
        ({"prompt": "</s>", "add_special_tokens": False}, [EOS]),
        ({"content": "", "add_special_tokens": True}, [BOS]),
        ({"content": "a", "with_pieces": True}, [{"id": 97, "piece": "a"}]),
    ],
)
def test_text_to_tokens(serve: Any, body: Any, tokens: Any) -> None:
    answer = serve().post("/tokenize", **body).json()
    assert answer == {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}


def test_control_tokens_may_stay_text(serve: Any) -> None:
    tokens = serve().post("/tokenize", content="</s>", parse_special=False).json()["tokens"]
    assert tokens == list(b"</s>")


def test_a_chat_to_tokens(serve: Any) -> None:
    server = serve()
    assert server.post("/tokenize", messages=HELLO).json()["tokens"] == server.llm.llm.chat_ids(HELLO)


def test_tokens_to_text(serve: Any) -> None:
    answer = serve().post("/detokenize", tokens=[BOS, *"né".encode()]).json()
    assert answer == {"prompt": "<s>né", "content": "<s>né"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [{}]}, "messages[0].role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, "x"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 2**31 - 1]}, "tokens[1]"),
    ],
)
def test_what_is_wrong_is_named(serve: Any, path: str, body: Any, param: str) -> None:
    response = serve().post(path, **body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_facts(serve: Any) -> None:
    server = serve()
    info = server.ask("GET", "/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>") and "messages" in info["chat_template"]
    props = server.ask("GET", "/props").json()
    assert props["n_ctx"] == 4096 and props["total_slots"] == 8
    assert props["default_generation_settings"]["temperature"] == 0.7
