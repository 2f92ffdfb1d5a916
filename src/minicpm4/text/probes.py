"""Chats of words that no template writes by itself: rendered, they show what a template does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minicpm4.errors import Minicpm4Error
from minicpm4.text.call_messages import call_message, result_message
from minicpm4.text.template import ChatTemplate

__all__ = [
    "ASKED",
    "CALLS",
    "CALL_ID",
    "KEY",
    "NAME",
    "RESULTS",
    "SAID",
    "TOOL",
    "USER",
    "VALUE",
    "calls_of",
    "rendered",
    "shows_tools",
    "switches_thinking",
]

ASKED, SAID, NAME, KEY, VALUE, RESULT = "Qzask", "Qzsay", "qzname", "qzkey", "Qzvalue", "Qzresult"
CALL_ID = "qzcall123"  # nine letters or digits, as Mistral's templates ask
USER = {"role": "user", "content": ASKED}


def calls_of(*given: tuple[str, Mapping[str, Any]], number: str = CALL_ID) -> dict[str, Any]:
    """An answer that calls tools: of names and arguments."""
    return call_message([(number, name, dict(arguments)) for name, arguments in given])


TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "d",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "d"}}},
    },
}
CALLS = calls_of((NAME, {KEY: VALUE}))
RESULTS = result_message(CALL_ID, NAME, RESULT)


def rendered(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Empty where the template refuses."""
    try:
        return template.render(messages, **{"add_generation_prompt": False, **options})
    except Minicpm4Error:
        return ""


def switches_thinking(template: ChatTemplate) -> bool:
    """Whether prompts differ where ``enable_thinking`` is set."""
    plain, *set_to = [
        rendered(template, [USER], add_generation_prompt=True, **given)
        for given in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    return any(one != plain for one in set_to)


def shows_tools(template: ChatTemplate) -> bool:
    """Whether ``template`` writes the tools that it is given into prompts."""
    return NAME in rendered(template, [USER], tools=[TOOL])
