"""Conversations for the templates of ``templates/``, and what those templates take.

``make_rendered.py`` has transformers render each in each template; ``test_rendered.py`` holds ours to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")
RENDERED = Path(__file__).with_name("data") / "rendered.json"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# Which of them join arguments of calls to text, and which read content in parts: by their sources.
TEXT_ARGUMENTS = ("deepseek_r1", "deepseek_v3_1", "functionary")
READS_PARTS = ("blocks", "gemma3", "llama4", "mistral_small3")

Message = dict[str, Any]


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def answer(content: Any, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def call(name: str, number: int = 1, /, **arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def result(content: str, name: str = "weather", number: int = 1) -> Message:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": content}


def system(content: Any) -> Message:
    return {"role": "system", "content": content}


def tool(name: str, description: str, required: list[str], /, **properties: Any) -> Message:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER = tool(
    "weather",
    "Tell the weather at a place.",
    ["place"],
    place={"type": "string", "description": 'Town, as in "St. John\'s" or 東京'},
    unit={"type": "string", "enum": ["C", "F"], "default": "C"},
    days={"type": "integer", "minimum": 0, "maximum": 9007199254740991, "default": None},
)
SEARCH = tool(
    "search",
    "Find <things> & others.\nSlowly.",
    ["words", "deep"],
    words={"type": "array", "items": {"type": "string"}},
    deep={
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "x": {"type": "number"}},
        "required": ["on"],
    },
    either={"type": ["string", "null"], "default": None},
)
PLAIN = tool("now", "The time.", [])
ROME = [user("Rain in Rome?"), answer(None, tool_calls=[call("weather", place="Rome", days=2)])]
DONE = [*ROME, result('{"rain": true}')]
SECOND = call("search", 2, words=["a", 'é\n"q"'], deep={"on": True, "x": 0.5})
TWO = [
    user("Compare."),
    answer("Both:", tool_calls=[call("weather", place="Rome"), SECOND]),
    result("18"),
    result("[]", "search", 2),
]

# name: (messages, options); where nothing is said the prompt is opened for an answer, as ours does.
CLOSED: dict[str, Any] = {"add_generation_prompt": False}
CHATS: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "one": ([user("Hello, who are you?")], {}),
    "one closed": ([user("Hello")], CLOSED),
    "system": ([system("Be brief.\n"), user("Hi")], {}),
    "turns": ([user("Hi"), answer("Hello!"), user("How are you?\n\n- well?")], {}),
    "system and turns": (
        [system(" You are a poet. "), user(" a "), answer("\nb \n"), user("c\n"), answer("d"), user("e")],
        {},
    ),
    "ends with an answer": ([user("1 + 1?"), answer("2")], CLOSED),
    "many turns": ([m for i in range(4) for m in (user(f"q{i}"), answer(f"a{i}"))], CLOSED),
    "words": (
        [
            user("<b>\"quoted\" & 'single'</b> \\n {{ x }} {% if %} 日本語 😀\u2028é"),
            answer("`code`"),
            user("?"),
        ],
        {},
    ),
    "control": ([user("say <|im_end|> and </s> [INST] <|user|>"), answer("<s>no"), user("<|eot_id|>")], {}),
    "empty": ([user(""), answer(""), user(" ")], {}),
    "two users": ([user("a"), user("b")], {}),
    "answer first": ([answer("Welcome."), user("Hi")], {}),
    "late system": ([user("a"), answer("b"), system("Now rhyme."), user("c")], {}),
    "parts": (
        [user([{"type": "text", "text": "A b "}, {"type": "text", "text": "c"}]), answer("d"), user("e")],
        {},
    ),
    "thinking on": ([user("Why?")], {"enable_thinking": True}),
    "thinking off": ([system("Short."), user("Why? /no_think")], {"enable_thinking": False}),
    "thinking variable": ([user("Why?"), answer("So."), user("And?")], {"thinking": True}),
    "reasoning": ([user("2+2?"), answer("4", reasoning_content="Sum.\n"), user("3+3?")], {}),
    "reasoning last": (
        [user("2+2?"), answer("4", reasoning_content="\nSum.")],
        CLOSED,
    ),
    "reasoning by another name": (
        [user("2+2?"), answer("4", reasoning="Sum."), user("3+3?"), answer("6", thinking="More.")],
        CLOSED,
    ),
    "inline thinking": ([user("2+2?"), answer("<think>\nSum.\n</think>\n\n4"), user("3?")], {}),
    "cut while thinking": ([user("2+2?"), answer(None, reasoning_content="Hm")], CLOSED),
    "tools": ([system("Use tools."), user("Rain?")], {"tools": [WEATHER, SEARCH]}),
    "tools, no system": ([user("Rain?")], {"tools": [SEARCH, PLAIN, WEATHER]}),
    "tools and turns": ([user("a"), answer("b"), user("Rain?")], {"tools": [WEATHER]}),
    "call": (ROME, {"tools": [WEATHER], "add_generation_prompt": False}),
    "result": (DONE, {"tools": [WEATHER]}),
    "result, no tools": (DONE, {}),
    "content absent": (
        [ROME[0], {k: v for k, v in ROME[1].items() if k != "content"}, DONE[2]],
        {"tools": [WEATHER]},
    ),
    "content empty": ([ROME[0], {**ROME[1], "content": ""}, DONE[2]], {"tools": [WEATHER]}),
    "answered": ([*DONE, answer("Yes."), user("Tomorrow?")], {"tools": [WEATHER]}),
    "two calls": (TWO, {"tools": [WEATHER, SEARCH]}),
    "two calls, answered": ([system("S"), *TWO, answer("Done."), user("ok")], {"tools": [WEATHER, SEARCH]}),
    "think, then call": (
        [
            user("Rain?"),
            {**ROME[1], "reasoning_content": "Ask."},
            result("no"),
            answer("No.", reasoning_content="Dry."),
        ],
        {"tools": [WEATHER], "add_generation_prompt": False},
    ),
    "call without arguments": (
        [user("Time?"), answer(None, tool_calls=[call("now")]), result("9", "now")],
        {"tools": [PLAIN]},
    ),
    "no calls": ([user("a"), answer("b", tool_calls=None, name=None), user("c")], {"tools": [WEATHER]}),
    "extra fields": (
        [{**user("a"), "name": "bob"}, {**answer("b"), "id": 7, "refusal": None}, user("c")],
        {},
    ),
    "variables": (
        [user("a")],
        {
            "date_string": "1 Jan 2026",
            "today": "2 Jan",
            "reasoning_effort": "high",
            "controls": {"length": "short"},
            "documents": [{"title": "T", "text": "D"}],
        },
    ),
}


def sources() -> dict[str, str]:
    """Every template, by name."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(TEMPLATES.glob("*.jinja"))}


def with_text_arguments(messages: list[Message]) -> list[Message]:
    """``messages`` with arguments of calls as JSON text."""
    changed = []
    for message in messages:
        calls = [
            {
                **c,
                "function": {
                    **c["function"],
                    "arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False),
                },
            }
            for c in message.get("tool_calls") or ()
        ]
        changed.append({**message, "tool_calls": calls} if calls else message)
    return changed


def with_joined_parts(messages: list[Message]) -> list[Message]:
    """``messages`` with parts of content as one text."""
    return [
        {**m, "content": "".join(p["text"] for p in m["content"])}
        if isinstance(m.get("content"), list)
        else m
        for m in messages
    ]


def with_missing(messages: list[Message], kind: str) -> list[Message]:
    """``messages`` whose content that is missing is "null", "absent" or "empty"."""
    changed = []
    for message in messages:
        if message.get("content") is None:
            message = {k: v for k, v in message.items() if k != "content"}
            message |= {"null": {"content": None}, "absent": {}, "empty": {"content": ""}}[kind]
        changed.append(message)
    return changed
