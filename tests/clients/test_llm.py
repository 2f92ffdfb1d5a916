"""Simon Willison's `llm`, by its own command, with models of extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import needed
from tests.serve.processes import Running

needed("llm")

CALL = '<tool_call>{"name": "times", "arguments": {"a": 6, "b": 7}}</tool_call>'
# Its result asks the scripted model for its next words.
TIMES = 'def times(a: int, b: int) -> str:\n    """The product."""\n    return f\'say: "It is {a * b}."\''


@pytest.fixture
def llm(scripted_server: Running, small_server: Running, tmp_path: Path) -> Callable[..., str]:
    """``llm(*arguments)``: what the command prints. Each model is there by both of OpenAI's interfaces."""
    known = [
        {
            "model_id": name + way,
            "model_name": name,
            "api_base": f"{server.address}/v1",
            "supports_tools": True,
            "supports_schema": True,
            "responses": way != "",
        }
        for name, server in (("scripted", scripted_server), ("small", small_server))
        for way in ("", "-responses")
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(known), encoding="utf-8")  # JSON is YAML

    def run(*arguments: str) -> str:
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "llm", *arguments]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr[-3000:]
        return found.stdout

    return run


def say(text: str) -> str:
    return f"say: {json.dumps(text)}"


@pytest.mark.parametrize("way", ["", "-responses"])
@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_answers(llm: Any, way: str, stream: tuple[str, ...]) -> None:
    model = ("-m", f"scripted{way}")
    assert llm(*model, *stream, "-s", "Be brief.", say("Bonjour 你好")) == "Bonjour 你好\n"
    assert llm("-c", *stream, say("Two.")) == "Two.\n"
    first, second = json.loads(llm("logs", "--json"))
    assert [first["response"], second["response"]] == ["Bonjour 你好", "Two."]
    assert second["input_tokens"] > first["input_tokens"] > 0 and first["output_tokens"] > 8


@pytest.mark.parametrize("way", ["", "-responses"])
@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_tools(llm: Any, way: str, stream: tuple[str, ...]) -> None:
    said = llm("-m", f"scripted{way}", *stream, "--functions", TIMES, say(f"I count. {CALL}"))
    assert said.rstrip().endswith("It is 42.")


@pytest.mark.parametrize("way", ["", "-responses"])
def test_schemas(llm: Any, way: str) -> None:
    """The embedded model, held to it."""
    said = llm(
        "-m", f"small{way}", "-o", "temperature", "0", "--schema", "wet bool, length int", "The Rhine."
    )
    answer = json.loads(said)
    assert (
        answer.keys() == {"wet", "length"} and type(answer["wet"]) is bool and type(answer["length"]) is int
    )
