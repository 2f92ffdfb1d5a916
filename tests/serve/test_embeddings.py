"""``/v1/embeddings``."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from minicpm4 import AsyncLLM

PATH = "/v1/embeddings"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What was embedded: a scripted engine has no states, so each text's vector is (its length, 0.5)."""
    asked: list[list[int]] = []

    async def embed(self: AsyncLLM, ids: list[int]) -> Any:
        asked.append(ids)
        return np.array([len(ids), 0.5], np.float32)

    monkeypatch.setattr(AsyncLLM, "embed", embed)
    return asked


@pytest.mark.parametrize(
    ("given", "lengths"), [("ab", [3]), (["a", "bcd"], [2, 4]), ([97, 98], [2]), ([[97], [98, 99]], [1, 2])]
)
def test_each_text_has_a_vector(serve: Any, embedded: Any, given: Any, lengths: list[int]) -> None:
    answer = serve().post(PATH, input=given, model="scripted").json()
    assert [one["embedding"] for one in answer["data"]] == [[n, 0.5] for n in lengths]
    assert [one["index"] for one in answer["data"]] == list(range(len(lengths)))
    assert answer["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


def test_vectors_in_base64_as_the_official_client_asks(serve: Any, embedded: Any) -> None:
    (one,) = serve().post(PATH, input="ab", encoding_format="base64").json()["data"]
    assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() == [3, 0.5]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [9999]}, "input"),
        ({"input": ["a", "b" * 5000]}, "input[1]"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_a_wrong_field_is_named(serve: Any, embedded: Any, body: Any, param: str) -> None:
    response = serve().post(PATH, **body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_an_engine_without_states_says_so(serve: Any) -> None:
    response = serve().post(PATH, input="ab")
    assert response.status_code == 501 and "states" in response.json()["error"]["message"]
