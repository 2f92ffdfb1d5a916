"""What transformers 5.23 renders of many chats in many shapes of templates, ours renders too.

``data/rendered.json`` is made by ``make_rendered.py``. Chats are given in every form that says the same:
arguments of calls as a table and as text, the template's words traced or not.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from minicpm4.errors import TextError
from minicpm4.text import ChatTemplate
from minicpm4.text.messages import check_messages, check_tools
from tests.text.chats import CHATS, RENDERED, TOKENS, Message, sources, with_text_arguments

EXPECTED: dict[str, dict[str, dict[str, str]]] = json.loads(RENDERED.read_text(encoding="utf-8"))
SOURCES = sources()


def test_there_are_enough() -> None:
    texts = [one["text"] for every in EXPECTED.values() for one in every.values() if "text" in one]
    assert EXPECTED.keys() == SOURCES.keys() and all(
        every.keys() == CHATS.keys() for every in EXPECTED.values()
    )
    assert all(sum("text" in one for one in every.values()) > 20 for every in EXPECTED.values())
    assert len(EXPECTED) >= 40 and len(texts) > 1500 and len(set(texts)) > 1000


def same(
    template: ChatTemplate, messages: list[Message], options: dict[str, Any], expected: dict[str, str]
) -> None:
    if "text" in expected:
        assert template.render(messages, **options) == expected["text"]
        tools = check_tools(options.get("tools"))
        rest = {"add_generation_prompt": True, **{k: v for k, v in options.items() if k != "tools"}}
        assert "".join(template.trace_checked(check_messages(messages), tools, **rest)) == expected["text"]
        return
    with pytest.raises(TextError) as caught:
        template.render(messages, **options)
    assert expected["error"] in str(caught.value)


@pytest.mark.parametrize("name", SOURCES)
def test_chats_are_rendered_as_transformers_does(name: str) -> None:
    template = ChatTemplate(SOURCES[name], tokens=TOKENS)
    for chat, (messages, options) in CHATS.items():
        try:
            same(template, messages, options, EXPECTED[name][chat])
            same(template, with_text_arguments(messages), options, EXPECTED[name][chat])
        except AssertionError as error:
            raise AssertionError(f"{name}, {chat}") from error
