"""How an LLM is asked: several conversations at once, wrong names and roles, what it says of itself."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from minicpm4 import LLM, AsyncLLM, SamplingParams
from minicpm4.errors import ConfigError, RequestError
from minicpm4.testing import ScriptedEngine


def made(*answers: str) -> LLM:
    """A model that gives these answers."""
    engine = ScriptedEngine(answers)
    return LLM.over(engine, engine.text, name="parrot", description="attention: dense")


def ask(text: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def test_a_list_of_conversations_is_answered_with_a_list() -> None:
    llm = made("one", "two")
    assert [out.text for out in llm.chat([ask("a"), ask("b")])] == ["one", "two"]
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]
    outputs = llm.chat([ask("a"), ask("b")], params)
    assert [len(out.token_ids) for out in outputs] == [1, 2]
    assert llm.chat(ask("a")).text == "two"
    with pytest.raises(RequestError, match="2 prompts came with 1 params"):
        llm.chat([ask("a"), ask("b")], params[:1])
    with pytest.raises(RequestError, match="the chat has 0 messages"):
        llm.chat([])


def test_an_llm_says_what_it_is() -> None:
    assert repr(made("x")) == "<LLM parrot: attention: dense>"


@pytest.mark.parametrize("role", ["usr", "assitant", "human"])
def test_a_role_that_nobody_knows_is_refused(role: str) -> None:
    with pytest.raises(RequestError, match=rf"messages\[1\].role = '{role}' is not a role. use system"):
        made("x").chat([*ask("a"), {"role": role, "content": "b"}])


def test_a_role_that_the_template_names_is_taken() -> None:
    template = "{% for m in messages %}{% if m['role'] == 'human' %}{{ m['content'] }}{% endif %}{% endfor %}"
    engine = ScriptedEngine(["x"], chat_template=template)
    llm = LLM.over(engine, engine.text, name="parrot")
    assert llm.chat([{"role": "human", "content": "b"}]).text == "x"


def test_a_wrong_keyword_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"SamplingParams has no parameter 'temprature'. did you mean 'temp"
    ):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"LLM has no parameter 'contxt'. did you mean 'context'"):
        LLM("smollm2-135m-instruct", contxt=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        LLM()  # type: ignore[call-overload]


ASKED: list[tuple[Callable[[Any], object], str]] = [
    (lambda llm: llm.chat(ask("a"), temprature=3), "chat ~ 'temprature'. did you mean ~(temperature=...)"),
    (lambda llm: llm.generate("a", max_tokens=3), "generate ~ params=SamplingParams(max_tokens=...)"),
    (lambda llm: llm.chat(ask("a"), tool=[]), "chat ~ 'tool'. did you mean 'tools'"),
    (lambda llm: llm.stream_chat(ask("a"), progres=None), "stream_chat ~ did you mean 'progress'"),
    (lambda llm: llm.embed("a", zzz=1), "embed has no parameter 'zzz'. known: progress, prompts"),
    (lambda llm: llm.parse_reply("a", tool=[]), "parse_reply ~ 'tools'"),
]  # fmt: skip


@pytest.mark.parametrize(("ask_it", "told"), ASKED, ids=range(len(ASKED)))
def test_a_wrong_keyword_of_a_method_names_the_nearest(ask_it: Callable[[LLM], object], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("LLM." + told).replace("\\~", ".*").replace("~", ".*")):
        ask_it(made("x"))


def test_methods_with_named_keywords_keep_their_signatures_and_errors() -> None:
    assert [*inspect.signature(LLM.chat).parameters][:3] == ["self", "messages", "params"]
    assert inspect.iscoroutinefunction(AsyncLLM.embed) and not inspect.iscoroutinefunction(AsyncLLM.stream)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'messages'"):
        made("x").chat()
    with pytest.raises(ConfigError, match=r"LLM.generate has no parameter 'stopp'"):
        asyncio.run(AsyncLLM.generate(made("x"), "a", stopp="b"))


def test_text_is_no_token_ids_and_how_to_make_some_is_said() -> None:
    with pytest.raises(RequestError, match=r"of a text: llm.tokenizer.encode\(text\)"):
        made("x").nll("text")  # type: ignore[arg-type]
