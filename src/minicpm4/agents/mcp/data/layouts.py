"""Tool-use sets of others as conversations of ours: the layouts of xlam, Glaive and ToolBench."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.data.records import records
from minicpm4.agents.mcp.data.talks import Dropped, Talk
from minicpm4.agents.mcp.data.types import schema_of
from minicpm4.config.strict import require, shown
from minicpm4.errors import ConfigError
from minicpm4.files import parse_json
from minicpm4.text.call_messages import call_message, result_message

__all__ = ["LAYOUTS", "converted"]

MAX_LITERAL = 1 << 20  # characters that are read as a literal of Python
_WRONG = (LookupError, TypeError, ValueError, AttributeError, SyntaxError, MemoryError, RecursionError)
_TURN = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_QUOTED = re.compile(r"\{\s*\"name\"\s*:\s*\"([^\"]+)\"\s*,\s*\"arguments\"\s*:\s*'(.*)'\s*\}", re.DOTALL)


def converted(layout: str, files: Iterable[Path]) -> Iterator[Talk | Dropped]:
    """What each record says, or that it is not of the layout. Raises ConfigError, OSError."""
    read = LAYOUTS[layout]
    for where, record in records(files):
        try:
            require(isinstance(record, Mapping), "it is no table")
            yield read(record, where)
        except (ConfigError, *_WRONG) as error:
            yield Dropped(reason="layout", where=where, why=_told(error)[:500])


def _told(error: Exception) -> str:
    """What was wrong with a record, in words."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, KeyError):
        return f"it lacks {shown(error.args[0])}"
    return f"a part of it is not as the layout has it: {error}"


def _xlam(record: Mapping[str, Any], where: str) -> Talk:
    """``query``, ``tools`` and ``answers``, the latter two as JSON text; there are no results."""
    answers, tools = _json(record["answers"]), _json(record["tools"])
    calls = [(f"call_{i}", _text(one["name"]), one["arguments"]) for i, one in enumerate(answers)]
    messages = [{"role": "user", "content": _text(record["query"])}]
    messages += [call_message(calls)] if calls else []
    return Talk(messages=messages, tools=_functions(tools), where=where)


def _glaive(record: Mapping[str, Any], where: str) -> Talk:
    """``system``, in which functions stand as JSON, and ``chat`` with USER, ASSISTANT and FUNCTION RESPONSE
    before turns; a call is ``<functioncall> {"name": …, "arguments": '…'}``."""
    messages: list[dict[str, Any]] = []
    for role, said in _turns(_text(record["chat"])):
        if role == "USER":
            messages.append({"role": "user", "content": said})
        elif role == "FUNCTION RESPONSE":
            messages.append(_response(messages, said))
        else:
            text, called, call = said.partition("<functioncall>")
            if called:
                made = (f"call_{len(messages)}", *_glaive_call(call.strip()))
                messages.append(call_message([made], text.strip()))
            else:
                messages.append({"role": "assistant", "content": said})
    return Talk(messages=messages, tools=_functions(_objects(_text(record["system"]))), where=where)


def _turns(chat: str) -> Iterator[tuple[str, str]]:
    parts = _TURN.split(chat)
    require(not parts[0].strip() and len(parts) > 1, "its chat does not begin with USER:")
    for role, said in zip(parts[1::2], parts[2::2], strict=True):
        yield role, said.replace("<|endoftext|>", "").strip()


def _response(messages: list[dict[str, Any]], said: str) -> dict[str, Any]:
    """What a function says to the call that was made last."""
    calls = messages[-1].get("tool_calls") if messages else None
    require(bool(calls), "a function responds that was not called")
    assert calls
    return result_message(calls[0]["id"], calls[0]["function"]["name"], said)


def _glaive_call(text: str) -> tuple[str, Any]:
    if found := _QUOTED.fullmatch(text):
        return found[1], _json(found[2].replace("\\'", "'"))
    call = _json(text)
    return _text(call["name"]), _json(call.get("arguments") or {})


def _objects(text: str) -> list[Any]:
    """Tables of JSON among words."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (start := text.find("{", at)) >= 0:
        value, at = decoder.raw_decode(text, start)
        found.append(value)
    return found


def _toolbench(record: Mapping[str, Any], where: str) -> Talk | Dropped:
    """``conversations`` of ``from`` and ``value``: APIs as a literal of Python in what the system says,
    answers as Thought, Action and Action Input, ``Finish`` at the end."""
    turns = [(_text(one["from"]), _text(one["value"])) for one in record["conversations"]]
    require(bool(turns) and turns[0][0] == "system", "its conversation does not begin with the system")
    tools = _apis(turns[0][1])
    messages: list[dict[str, Any]] = []
    for role, said in turns[1:]:
        if role == "user":
            messages.append({"role": "user", "content": said.strip().removesuffix("Begin!").strip()})
        elif role == "function":
            messages.append(_response(messages, said))
        else:
            thought, name, given = _action(said)
            if name == "Finish":
                if given.get("return_type") != "give_answer":
                    return Dropped(reason="gave up", where=where)
                messages.append({"role": "assistant", "content": _text(given["final_answer"])})
            else:
                messages.append(call_message([(f"call_{len(messages)}", name, given)], thought))
    if messages and messages[-1]["role"] != "assistant":
        return Dropped(reason="not answered", where=where)
    return Talk(messages=messages, tools=tools, where=where)


def _action(said: str) -> tuple[str, str, Any]:
    """Thought, Action and Action Input of an answer."""
    before, marked, given = said.partition("Action Input:")
    thought, called, name = before.rpartition("Action:")
    right = marked and called and len(name.split()) == 1
    require(bool(right), f"an answer has no Action: {said[:80]!r}")
    return thought.strip().removeprefix("Thought:").strip(), name.strip(), _json(given.strip())


def _apis(system: str) -> list[dict[str, Any]]:
    text = system[system.index("[{") :].strip()
    require(len(text) <= MAX_LITERAL, f"its APIs are {len(text):,} characters")
    try:
        listed = parse_json(text, "its list of APIs", ConfigError)
    except ConfigError:  # single quotes: a literal of Python
        listed = ast.literal_eval(text)
    return _functions([one for one in listed if one["name"] != "Finish"])


def _functions(listed: Any) -> list[dict[str, Any]]:
    """Tools as an API of OpenAI's kind has them, each name once."""
    require(isinstance(listed, list), "its tools are no list")
    made: dict[str, dict[str, Any]] = {}
    for one in listed:
        inner = one.get("function", one)
        name, told = _text(inner["name"]), _text(inner.get("description") or "")
        schema = schema_of(inner.get("parameters") or {})
        function = {"name": name, "description": told, "parameters": schema}
        made.setdefault(name, {"type": "function", "function": function})
    return list(made.values())


def _json(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    return parse_json(given, "a part of it", ConfigError, constants=True)


def _text(given: Any) -> str:
    require(isinstance(given, str), f"{given!r:.60} is no text")
    return str(given)


LAYOUTS: dict[str, Callable[[Mapping[str, Any], str], Talk | Dropped]] = {
    "xlam": _xlam,
    "glaive": _glaive,
    "toolbench": _toolbench,
}
