"""The scripted engine answers, streams, fails and stalls as it is told, through the real doors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.llm import ThreadedLLM
from minicpm4.errors import EngineError, RequestError, UnsupportedError
from minicpm4.testing import ScriptedEngine
from tests.waiting import until


@pytest.fixture(params=[LLM, ThreadedLLM])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    made: list[LLM] = []

    def over(*answers: Any, **sizes: Any) -> tuple[LLM, ScriptedEngine]:
        engine = ScriptedEngine(answers or ("ok",), **sizes)
        made.append(request.param.over(engine, engine.text, name="scripted"))
        return made[-1], engine

    yield over
    for llm in made:
        llm.close()


def test_answers_come_in_order_and_the_last_goes_on(make: Any) -> None:
    llm, engine = make("Paris.", "naïve 你好")
    assert [out.text for out in llm.generate(["France?", "b", "c"])] == ["Paris.", "naïve 你好", "naïve 你好"]
    assert engine.prompts == ["France?", "b", "c"]
    assert llm.generate("d", SamplingParams(temperature=1.5, n=2)).outputs[1].text == "naïve 你好"


def test_answers_may_depend_on_the_prompt() -> None:
    engine = ScriptedEngine(lambda prompt: prompt.upper())
    llm = LLM.over(engine, engine.text, name="scripted")
    assert "assistant" in llm.chat([{"role": "user", "content": "hi"}]).text.lower()
    assert llm.generate("shout").text == "SHOUT"


def test_what_ends_an_answer_is_as_ever(make: Any) -> None:
    llm, _ = make("one two three")
    assert llm.generate("x").finish_reason == "stop"
    assert llm.generate("x", SamplingParams(max_tokens=3)).finish_reason == "length"
    assert llm.generate("x", SamplingParams(stop=" three")).text == "one two"
    assert "".join(map(str, llm.stream("x"))) == "one two three"


def test_a_failure_of_a_request_is_its_own(make: Any) -> None:
    llm, _ = make(["half", RequestError("not this one")], "whole")
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(llm.generate, "a")
        assert "not this one" in str(bad.exception())
        assert llm.generate("b").text == "whole"


def test_a_failure_of_the_engine_carries_its_cause(make: Any) -> None:
    llm, _ = make(["half", MemoryError("full")], "whole")
    with pytest.raises((MemoryError, EngineError), match="full"):
        llm.generate("a")
    assert llm.generate("b").text == "whole"


def test_an_answer_stalls_until_it_is_let_go(make: Any) -> None:
    event = threading.Event()
    llm, engine = make(["be", event, "fore"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(llm.generate, "a")
        until(lambda: engine.prompts == ["a"])
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        event.set()
        assert waiting.result().text == "before"


def test_scores_are_those_of_a_script_that_knows_the_text(make: Any) -> None:
    llm, _ = make()
    np.testing.assert_allclose(llm.nll([1, 2, 3]), 0, atol=1e-6)
    assert llm.logits([1, 2]).shape == (2, llm.limits.vocab_size)


def test_it_has_no_configuration(make: Any) -> None:
    llm, _ = make()
    assert llm.has_chat_template and llm.sampling_defaults
    with pytest.raises(UnsupportedError, match="the engine of scripted is not ours"):
        llm.config  # noqa: B018
