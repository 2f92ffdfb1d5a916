"""Real models of a size that people use, where they are (`make models` fetches them)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import LLM, SamplingParams, zoo
from minicpm4.errors import ModelNotFoundError

pytestmark = pytest.mark.models

NAMES = ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct")
GREEDY = SamplingParams(max_tokens=80, temperature=0.0)
EXAMPLES = Path(__file__).parents[2] / "examples"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module", params=NAMES)
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with load(request.param, context=2048, prefix_cache=False) as made:
        yield made


def load(name: str, **options: Any) -> LLM:
    try:
        zoo.resolve(name)
    except ModelNotFoundError:
        pytest.skip(f"{name} is not here: make models fetches it")
    return LLM(name, **options)


def ask(llm: LLM, question: str, **options: Any) -> str:
    return llm.chat([{"role": "user", "content": question}], GREEDY, **options).text


def test_it_answers_in_english_and_chinese(llm: LLM) -> None:
    assert "Paris" in ask(llm, "What is the capital of France? One word.")
    assert "巴黎" in ask(llm, "法国的首都是哪里?")


def test_it_writes_code_that_runs(llm: LLM) -> None:
    text = ask(llm, "Write a Python function add(a, b) that returns their sum. Code only.")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert compile(code, "answer", "exec") and "def add(" in code and "return" in code


def test_it_asks_for_a_tool(llm: LLM) -> None:
    text = ask(llm, "What is the weather in Paris?", tools=[WEATHER])
    call = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert call["name"] == "get_weather" and call["arguments"]["city"].startswith("Paris")


def test_what_nobody_chose_makes_sense(llm: LLM) -> None:
    for seed in range(3):
        said = llm.chat([{"role": "user", "content": "Hello, who are you?"}], SamplingParams(seed=seed)).text
        assert any(word in said for word in ("Qwen", "assistant", "AI", "Alibaba")), said


@pytest.mark.parametrize("options", [{}, {"attention": "sparse", "sparse": {"topk": 24, "window_size": 512}}])
def test_it_finds_a_name_in_a_long_text(options: dict[str, Any]) -> None:
    text, question = (
        (EXAMPLES / name).read_text(encoding="utf-8") for name in ("how_sqlite_is_tested.txt", "question.txt")
    )
    with load(NAMES[0], context=6000, **options) as made:
        out = made.chat([{"role": "user", "content": f"{text}\n\n{question}"}], GREEDY)
    assert "Manuel Rigger" in out.text
    assert out.metrics.attention == ("sparse" if options else "dense") and out.metrics.prompt_tokens > 4500
