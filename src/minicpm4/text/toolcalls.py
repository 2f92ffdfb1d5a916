"""Tool calls in a model's reply.

MiniCPM4 writes ``<|tool_call_start|>``, a fenced Python block of calls with literal arguments, and
``<|tool_call_end|>``; Qwen and Hermes write ``<tool_call>`` JSON ``</tool_call>``. Both are read as
data: nothing is evaluated. What is drafted in a block of reasoning is no call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4.text.loose_json import LooseJsonError, read_values
from minicpm4.text.pycalls import CallSyntaxError, parse_calls
from minicpm4.text.reasoning import MARKS, Marks

__all__ = ["CALL_MARKS", "ParsedReply", "ToolCall", "parse_tool_calls"]

MAX_REPLY_CHARS = 1 << 20
MAX_BLOCKS = 64
_MAX_ENDS = 8  # an end marker may stand inside a string argument: that many are tried
_PYTHON = ("<|tool_call_start|>", "<|tool_call_end|>")
_JSON = ("<tool_call>", "</tool_call>")
CALL_MARKS: tuple[Marks, ...] = (_PYTHON, _JSON)
_OPENINGS = dict(CALL_MARKS)
_GIVEN = ("arguments", "parameters")
_BESIDE = {"name", *_GIVEN, "id", "type", "index"}


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


def parse_tool_calls(
    text: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    marks: Sequence[Marks] = MARKS,
    starts_inside: bool | None = None,
) -> ParsedReply:
    """Take a reply apart. Never raises: what cannot be read stays text, with a note.

    ``tools``: the functions offered (JSON schema); only needed to name positional arguments. ``marks``: what
    opens and closes reasoning, as ``marks_of`` a template finds them. ``starts_inside``: whether the prompt
    has opened a block of it; None: it has where the reply closes one that it did not open.
    """
    if len(text) > MAX_REPLY_CHARS:
        note = f"a reply of {len(text)} characters is over {MAX_REPLY_CHARS}: not searched for tool calls"
        return ParsedReply(content=text, notes=(note,))
    return _Parts(text, _parameter_names(tools or ()), dict(marks), starts_inside).reply()


class _Parts:
    """A reply, from its beginning to its end: blocks of reasoning, blocks of calls, and the text between."""

    def __init__(
        self, text: str, parameters: Mapping[str, list[str]], marks: Mapping[str, str], inside: bool | None
    ) -> None:
        self._text, self._parameters, self._marks = text, parameters, marks
        self._inside = inside  # None: a closing mark may still tell
        self._missing: set[str] = set()  # closing marks that do not come any more
        self._from = 0  # where the text begins that is in no part yet
        self._looked, self._blank = 0, True  # how far lines were looked at, and whether this one is blank
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._thoughts: list[str] = []
        self._notes: list[str] = []

    def reply(self) -> ParsedReply:
        if self._inside:
            self._end_thought(min(self._closings(0), default=(len(self._text), "")))
        words = [opening for opening, _ in CALL_MARKS] + [
            mark for pair in self._marks.items() for mark in pair
        ]
        pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
        at, blocks = self._from, 0
        while (found := pattern.search(self._text, at)) is not None:
            if found[0] in self._marks:
                at = self._thought(found.start(), found[0])
            elif found[0] not in _OPENINGS:
                at = self._closing(found.start(), found[0])
            elif blocks == MAX_BLOCKS:
                self._notes.append(f"only the first {MAX_BLOCKS} blocks of calls were read")
                break
            else:
                at, blocks = self._block(found.start(), found[0]), blocks + 1
        self._content.append(self._text[self._from :])
        return ParsedReply(
            content="".join(self._content).strip(),
            calls=tuple(self._calls),
            thought="\n\n".join(thought for part in self._thoughts if (thought := part.strip())),
            notes=tuple(self._notes),
        )

    def _thought(self, at: int, opening: str) -> int:
        """A block of reasoning is opened; where to go on."""
        text, closing = self._text, self._marks[opening]
        start = at + len(opening)
        end = -1 if closing in self._missing else text.find(closing, start)
        if end < 0:
            self._missing.add(closing)
            if not self._begins_line(at):
                return start  # in the middle of a line and never closed: it is only spoken of
            end, closing = len(text), ""  # cut off while thinking
        self._content.append(text[self._from : at])
        self._thoughts.append(text[start:end])
        self._inside, self._from = False, end + len(closing)
        return self._from

    def _begins_line(self, at: int) -> bool:
        """Whether nothing but blanks is before ``at`` in its line; asked in ascending order."""
        start = self._text.rfind("\n", self._looked, at) + 1
        blank = not self._text[start or self._looked : at].strip()
        self._looked, self._blank = at, blank and (start > 0 or self._blank)
        return self._blank

    def _closing(self, at: int, mark: str) -> int:
        """A block is closed that was not opened: all before it was reasoning, if that can be."""
        if self._inside is None:
            self._end_thought((at, mark))
        return max(at + len(mark), self._from)

    def _end_thought(self, end: tuple[int, str]) -> None:
        at, mark = end
        thought = self._text[:at].lstrip()
        again = next((opening for opening in self._marks if thought.startswith(opening)), "")
        self._content, self._calls, self._notes = [], [], []
        self._thoughts = [thought.removeprefix(again)]  # some open again what the prompt has opened
        self._inside, self._from = False, at + len(mark)

    def _closings(self, start: int, stop: int | None = None) -> list[tuple[int, str]]:
        """Where each closing mark comes first."""
        return [
            (at, mark) for mark in self._marks.values() if (at := self._text.find(mark, start, stop)) >= 0
        ]

    def _block(self, at: int, opening: str) -> int:
        """A block of calls is opened; where to go on."""
        pair = (opening, _OPENINGS[opening])
        calls, used, note = _read_block(self._text[at:], pair, self._parameters)
        stop = at + used
        if note:
            # It may have been spoken of while thinking.
            ends = self._closings(at, stop) if self._inside is None else []
            if ends:
                return min(ends)[0]
            self._notes.append(note)
            return stop
        self._content.append(self._text[self._from : at])
        self._calls += calls
        self._from = stop
        return stop


def _read_block(
    text: str, pair: tuple[str, str], parameters: Mapping[str, list[str]]
) -> tuple[list[ToolCall], int, str]:
    """Calls of the block that ``text`` begins with, the characters it takes, and why it failed."""
    opening, closing = pair
    read = _read_python if pair == _PYTHON else _read_json
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
        values = read_values(_unfence(source), [_JSON[0]])
        items = [item for value in values for item in (value if isinstance(value, list) else [value])]
        if not items:
            raise CallSyntaxError("the block holds no call")
        return [_json_call(item) for item in items]
    except LooseJsonError as error:
        raise CallSyntaxError(f"not JSON: {error}") from error


def _json_call(item: Any) -> ToolCall:
    inner = item.get("function") if isinstance(item, dict) and "name" not in item else None
    item = inner if isinstance(inner, dict) else item
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name:
        raise CallSyntaxError("the JSON has no name")
    given = [item[key] for key in _GIVEN if key in item]
    if not given and (other := sorted(item.keys() - _BESIDE)):
        raise CallSyntaxError(f"the JSON of {name} has no arguments, but {other[0]!r:.40}")
    if len(given) == 2 and given[0] != given[1]:
        raise CallSyntaxError(f"the JSON of {name} has both arguments and parameters")
    arguments = given[0] if given else None
    if isinstance(arguments, str):
        values = read_values(arguments) if arguments.strip() else [{}]
        if len(values) > 1:
            raise CallSyntaxError(f"the arguments of {name} are {len(values)} values")
        arguments = values[0]
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f"the arguments of {name} are a {type(arguments).__name__}, not a table")
    return ToolCall(name=name, arguments=arguments)


def _parameter_names(tools: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if isinstance(properties, Mapping) and isinstance(function.get("name"), str):
            names[function["name"]] = list(properties)
    return names
