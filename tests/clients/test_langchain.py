"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tests.clients.conftest import needed
from tests.serve.processes import Running

langchain = needed("langchain_openai")
messages = needed("langchain_core.messages")

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>'


class River(BaseModel):
    """A river."""

    name: str = Field(max_length=20)
    wet: bool


def weather(city: str, days: int) -> str:
    """What it will be like."""
    return f"say: {json.dumps(f'It rains in {city} for {days} days.')}"


def say(text: str) -> str:
    return f"say: {json.dumps(text)}"


@pytest.fixture(params=["chat", "responses"])
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Which of OpenAI's interfaces it is told to use."""
    return {"use_responses_api": request.param == "responses", "api_key": "none", "max_retries": 0}


@pytest.fixture
def scripted(scripted_server: Running, way: dict[str, Any]) -> Any:
    address = f"{scripted_server.address}/v1"
    return langchain.ChatOpenAI(model="scripted", base_url=address, stream_usage=True, **way)


@pytest.fixture
def small(small_server: Running, way: dict[str, Any]) -> Any:
    return langchain.ChatOpenAI(
        model="small", base_url=f"{small_server.address}/v1", temperature=0, max_tokens=64, **way
    )


def test_invoke(scripted: Any) -> None:
    answer = scripted.invoke([("system", "Be brief."), ("human", say("Bonjour 你好"))])
    assert answer.text == "Bonjour 你好" and answer.usage_metadata["output_tokens"] > 8
    assert [one.text for one in scripted.batch([say("a"), say("b")])] == ["a", "b"]


def test_stream(scripted: Any) -> None:
    chunks = list(scripted.stream(say("Bonjour 你好")))
    assert "".join(chunk.text for chunk in chunks) == "Bonjour 你好" and len(chunks) > 5
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.usage_metadata["output_tokens"] > 8


def test_tools_there_and_back(scripted: Any) -> None:
    bound = scripted.bind_tools([weather])
    asked = [messages.HumanMessage(say(f"I look. {CALL}"))]
    whole = None
    for chunk in bound.stream(asked):
        whole = chunk if whole is None else whole + chunk
    answer = bound.invoke(asked)
    for told in (whole, answer):
        (call,) = told.tool_calls
        assert call["name"] == "weather" and call["args"] == {"city": "Paris", "days": 2}
        result = messages.ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
        assert bound.invoke([*asked, told, result]).text == "It rains in Paris for 2 days."


def test_a_call_that_is_forced(small: Any) -> None:
    for choice in ("any", "weather"):
        (call,) = (
            small.bind_tools([weather], tool_choice=choice).invoke("How will it be in Paris?").tool_calls
        )
        assert call["name"] == "weather" and call["args"].keys() >= {"city", "days"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(small: Any, method: str) -> None:
    river = small.with_structured_output(River, method=method).invoke("The Rhine is wet.")
    assert isinstance(river, River) and river.name


def test_json_mode(scripted: Any) -> None:
    asked = say('{"name": "Rhine", "wet": true}')
    answer = scripted.with_structured_output(River, method="json_mode").invoke(asked)
    assert answer == River(name="Rhine", wet=True)


def test_embeddings(small_server: Running) -> None:
    """It sends token ids where it counts tokens itself, with OpenAI's tokenizer: users switch that off."""
    made = langchain.OpenAIEmbeddings(
        model="small", base_url=f"{small_server.address}/v1", api_key="none", check_embedding_ctx_length=False
    )
    texts = ["A cat sat on a mat.", "The cat is sitting on the mat.", "Interest rates rose by two percent."]
    cat, sitting, rates = made.embed_documents(texts)
    again = made.embed_query(texts[0])
    assert again == pytest.approx(cat, abs=3e-3) and len(cat) == 576  # read alone it is rounded otherwise

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(cat, sitting) > likeness(cat, rates)
