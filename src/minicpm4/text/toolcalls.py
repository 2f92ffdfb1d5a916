"""Tool calls in a model's reply.

MiniCPM4 writes ``<|tool_call_start|>``, a fenced Python block of calls with literal arguments, and
``<|tool_call_end|>``; Qwen and Hermes write ``<tool_call>`` JSON ``</tool_call>``. Both are read as
data: nothing is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4.text.pycalls import CallSyntaxError, parse_calls

__all__ = ["ParsedReply", "ToolCall", "parse_tool_calls"]

MAX_REPLY_CHARS = 1 << 20
MAX_BLOCKS = 64
_MAX_ENDS = 8  # an end marker may stand inside a string argument: that many are tried
_PYTHON = ("<|tool_call_start|>", "<|tool_call_end|>")
_JSON = ("<tool_call>", "</tool_call>")
_THOUGHT = ("<|thought_start|>", "<|thought_end|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call: the tool's name and its arguments (JSON-like values; tuples stay tuples)."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedReply:
    """A reply taken apart: text outside the blocks, the calls in order, the thought before them, and
    notes on blocks that could not be read (those stay in ``content``)."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    thought: str = ""
    notes: tuple[str, ...] = ()


def parse_tool_calls(text: str, tools: Sequence[Mapping[str, Any]] | None = None) -> ParsedReply:
    """Take a reply apart. Never raises: what cannot be read stays text, with a note.

    ``tools``: the functions offered (JSON schema); only needed to name positional arguments.
    """
    if len(text) > MAX_REPLY_CHARS:
        note = f"a reply of {len(text)} characters is over {MAX_REPLY_CHARS}: not searched for tool calls"
        return ParsedReply(content=text, notes=(note,))
    thought, text = _take_thought(text)
    parameters = _parameter_names(tools or ())
    content: list[str] = []
    calls: list[ToolCall] = []
    notes: list[str] = []
    for _ in range(MAX_BLOCKS):
        starts = [(at, pair) for pair in (_PYTHON, _JSON) if (at := text.find(pair[0])) >= 0]
        if not starts:
            break
        at, pair = min(starts)
        content.append(text[:at])
        found, used, note = _read_block(text[at:], pair, parameters)
        if note:
            notes.append(note)
            content.append(text[at : at + used])
        calls += found
        text = text[at + used :]
    content.append(text)
    return ParsedReply(
        content="".join(content).strip(), calls=tuple(calls), thought=thought, notes=tuple(notes)
    )


def _take_thought(text: str) -> tuple[str, str]:
    start = text.find(_THOUGHT[0])
    end = text.find(_THOUGHT[1], start)
    if start < 0 or end < 0:
        return "", text
    inner = text[start + len(_THOUGHT[0]) : end]
    return inner.strip(), text[:start] + text[end + len(_THOUGHT[1]) :]


def _read_block(
    text: str, pair: tuple[str, str], parameters: Mapping[str, list[str]]
) -> tuple[list[ToolCall], int, str]:
    """Calls of the block that ``text`` begins with, the characters it takes, and why it failed."""
    opening, closing = pair
    read = _read_python if pair is _PYTHON else _read_json
    first, reason = 0, ""
    end = text.find(closing)
    for _ in range(_MAX_ENDS):
        inner = text[len(opening) : end if end >= 0 else len(text)]
        used = end + len(closing) if end >= 0 else len(text)
        first = first or used
        try:
            return read(inner, parameters), used, ""
        except CallSyntaxError as error:
            reason = reason or str(error)
        if end < 0:
            break
        end = text.find(closing, used)
        if end < 0:
            break
    return [], first, f"a tool call could not be read: {reason}"


def _read_python(source: str, parameters: Mapping[str, list[str]]) -> list[ToolCall]:
    calls = []
    for name, positional, named in parse_calls(_unfence(source)):
        names = parameters.get(name, [])
        if len(positional) > len(names):
            raise CallSyntaxError(f"{name} has {len(positional)} arguments without names")
        arguments = dict(zip(names, positional, strict=False))
        twice = arguments.keys() & named.keys()
        if twice:
            raise CallSyntaxError(f"{name} has the argument {min(twice)} twice")
        calls.append(ToolCall(name=name, arguments={**arguments, **named}))
    if not calls:
        raise CallSyntaxError("the block holds no call")
    return calls


def _unfence(source: str) -> str:
    source = source.strip()
    if source.startswith("```"):
        first_line, _, rest = source.partition("\n")
        source = rest if first_line[3:].strip().isalnum() or not first_line[3:].strip() else source[3:]
        source = source.rstrip().removesuffix("```")
    return source


def _read_json(source: str, parameters: Mapping[str, list[str]]) -> list[ToolCall]:
    try:
        value = json.loads(source, parse_constant=_refuse_constant)
        items = value if isinstance(value, list) else [value]
        if not items:
            raise CallSyntaxError("the block holds no call")
        return [_json_call(item) for item in items]
    except (ValueError, RecursionError) as error:
        raise CallSyntaxError(f"not JSON: {error}") from error


def _json_call(item: Any) -> ToolCall:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name:
        raise CallSyntaxError("the JSON has no name")
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=_refuse_constant) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f"the arguments of {name} are a {type(arguments).__name__}, not a table")
    return ToolCall(name=name, arguments=arguments)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _parameter_names(tools: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if isinstance(properties, Mapping) and isinstance(function.get("name"), str):
            names[function["name"]] = list(properties)
    return names
