"""Tool calls in a model's reply.

MiniCPM4 writes ``<|tool_call_start|>``, a fenced Python block of calls with literal arguments (or JSON), and
``<|tool_call_end|>``; Qwen and Hermes write ``<tool_call>`` JSON ``</tool_call>``. Other ways are read where
the model's template shows them (``call_formats``). All are data: nothing is evaluated. What is drafted in a
block of reasoning is no call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4.text.call_formats import CallFormat
from minicpm4.text.loose_json import JSON_BLANKS, LooseJsonError, read_value, read_values
from minicpm4.text.named_calls import read_named
from minicpm4.text.pycalls import PYTHON_BLANKS, CallSyntaxError, parse_calls
from minicpm4.text.reasoning import MARKS, Marks
from minicpm4.text.tool_call import ToolCall, written_call
from minicpm4.text.xml_calls import read_xml

__all__ = ["CALL_MARKS", "ParsedReply", "ToolCall", "call_marks", "parse_tool_calls", "schemas_of"]

MAX_REPLY_CHARS = 1 << 20
MAX_BLOCKS = 64
MAX_HEAD = 1024  # characters in which a block of code says of which tool it is a call
_MAX_ENDS = 8  # an end marker may stand inside a string argument: that many are tried
_AGAIN = 1 << 16  # characters that may be read again for that, beside as many as a reply has: time is linear
_PYTHON = ("<|tool_call_start|>", "<|tool_call_end|>")
_JSON = ("<tool_call>", "</tool_call>")
CALL_MARKS: tuple[Marks, ...] = (_PYTHON, _JSON)
FENCE = ("```json", "```")
"""A block of code, which small models write for a call: it is one where it holds a call of a known tool and
nothing else."""
_FENCED = re.compile(r'```json\s*\{\s*"name"\s*:\s*"')
Schemas = Mapping[str, Mapping[str, Any]]
_Reader = Callable[[str, Schemas, CallFormat | None], "list[ToolCall]"]
_GIVEN = ("arguments", "parameters")
_ONLY = [{one} for one in _GIVEN]
_BESIDE = {"name", *_GIVEN, "id", "type", "index"}


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
    form: CallFormat | None = None,
) -> ParsedReply:
    """Take a reply apart. Never raises: what cannot be read stays text, with a note.

    ``tools``: the functions offered (JSON schema): they name positional arguments, tell text from JSON in
    tags, and a call from other JSON where no mark does. ``marks``: what opens and closes reasoning, as
    ``marks_of`` a template finds them. ``starts_inside``: whether the prompt has opened a block of it; None:
    it has where the reply closes one that it did not open. ``form``: how the model writes calls, as
    ``call_format_of`` its template finds it; MiniCPM's and Hermes' marks are read whatever it is.
    """
    if len(text) > MAX_REPLY_CHARS:
        note = f"a reply of {len(text)} characters is over {MAX_REPLY_CHARS}: not searched for tool calls"
        return ParsedReply(content=text, notes=(note,))
    return _Parts(text, schemas_of(tools or ()), dict(marks), starts_inside, form).reply()


def call_marks(form: CallFormat | None, schemas: Schemas) -> dict[str, str]:
    """What opens and what closes a block of calls of these tools, of a model that writes them in this
    format."""
    own = {form.opening: form.closing} if form is not None and form.opening else {}
    fences = [FENCE] if schemas and (form is None or form.is_json) else []
    return {**dict(CALL_MARKS), **dict(fences), **own}


def may_be_fenced(text: str, schemas: Schemas) -> bool:
    """Whether a text that begins with FENCE may go on as a call does."""
    found = _FENCED.match(text)
    if found is None:
        return re.fullmatch(r'```json\s*(\{\s*("(n(a(m(e("(\s*(:\s*)?)?)?)?)?)?)?)?)?', text) is not None
    rest = text[found.end() :]
    return any(rest.startswith(f'{name}"') or f'{name}"'.startswith(rest) for name in schemas)


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schemas of tools' arguments, by name."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            found[function["name"]] = schema if isinstance(schema, Mapping) else {}
    return found


class _Parts:
    """A reply, from its beginning to its end: blocks of reasoning, blocks of calls, and the text between."""

    def __init__(
        self,
        text: str,
        schemas: Schemas,
        marks: Mapping[str, str],
        inside: bool | None,
        form: CallFormat | None,
    ) -> None:
        self._text, self._schemas, self._marks, self._form = text, schemas, marks, form
        self._openings = call_marks(form, schemas)
        self._inside = inside  # None: a closing mark may still tell
        self._again = len(text) + _AGAIN
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
        words = [*self._openings, *(mark for pair in self._marks.items() for mark in pair)]
        pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
        at, blocks = self._from, 0
        while (found := pattern.search(self._text, at)) is not None:
            if found[0] in self._marks:
                at = self._thought(found.start(), found[0])
            elif found[0] not in self._openings:
                at = self._closing(found.start(), found[0])
            elif blocks == MAX_BLOCKS:
                self._notes.append(f"only the first {MAX_BLOCKS} blocks of calls were read")
                break
            else:
                at, blocks = self._block(found.start(), found[0]), blocks + (found[0] != FENCE[0])
        self._content.append(self._text[self._from :])
        content = "".join(self._content)
        if self._form is not None and not self._calls:
            self._calls, content = _read_bare(content, self._form, self._schemas)
        return ParsedReply(
            content=content.strip(),
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
        pair = (opening, self._openings[opening])
        if opening == FENCE[0] and not may_be_fenced(self._text[at : at + MAX_HEAD], self._schemas):
            return at + len(opening)
        calls, stop, note = self._read_block(at, pair)
        if note and opening == FENCE[0]:  # code like any other
            return at + len(opening)
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

    def _read_block(self, at: int, pair: Marks) -> tuple[list[ToolCall], int, str]:
        """Calls of the block that begins at ``at``, where it ends, and why it failed."""
        text, (opening, closing), form = self._text, pair, self._form
        start = at + len(opening)
        if not closing and form is not None and form.is_json:
            try:
                calls, end = _read_open(text[start:], form)
            except CallSyntaxError as error:
                return [], len(text), f"a tool call could not be read: {error}"
            if calls:
                return calls, start + end, ""
        readers = _readers(opening, form)
        first, reason = 0, ""
        end = text.find(closing, start) if closing else -1
        for _ in range(_MAX_ENDS):
            stop = end + len(closing) if end >= 0 else len(text)
            if first:
                self._again -= stop - at
                if self._again < 0:
                    break
            first = first or stop
            inner = text[start : end if end >= 0 else len(text)]
            for read in readers:
                try:
                    return read(text[at:stop] if read is _read_tags else inner, self._schemas, form), stop, ""
                except CallSyntaxError as error:
                    reason = reason or str(error)
            end = text.find(closing, stop) if end >= 0 else -1
            if end < 0:
                break
        return [], first, f"a tool call could not be read: {reason}"


def _readers(opening: str, form: CallFormat | None) -> list[_Reader]:
    """How a block behind this mark may be read, the model's own way first."""
    if opening == FENCE[0]:
        return [_read_fenced]
    kind = form.kind if form is not None and form.opening == opening else ""
    if kind == "xml":
        return [_read_tags, _read_json]
    if kind == "named":
        return [_read_named, _read_json]
    if kind == "json":
        return [_read_json, _read_python] if opening == _PYTHON[0] else [_read_json]
    return [_read_python, _read_json] if kind or opening == _PYTHON[0] else [_read_json]


def _read_fenced(source: str, schemas: Schemas, form: CallFormat | None) -> list[ToolCall]:
    """The one call that a block of code is."""
    try:
        values = read_values(source)
    except LooseJsonError as error:
        raise CallSyntaxError(f"not JSON: {error}") from error
    given = values[0]
    if len(values) > 1 or not isinstance(given, dict) or given.keys() - {"name"} not in _ONLY:
        raise CallSyntaxError("no call, or more than one")
    call = _json_call(given)
    if call.name not in schemas or not isinstance(given[(given.keys() - {"name"}).pop()], dict):
        raise CallSyntaxError("no call of a tool")
    return [call]


def _read_tags(block: str, schemas: Schemas, form: CallFormat | None) -> list[ToolCall]:
    """The calls of a block with its marks, which may be those of a call themselves."""
    assert form is not None
    return [written_call(name, given) for name, given in read_xml(block, form, schemas)]


def _read_named(block: str, schemas: Schemas, form: CallFormat | None) -> list[ToolCall]:
    assert form is not None
    return [written_call(name, given) for name, given in read_named(block, form)[0]]


def _read_open(block: str, form: CallFormat) -> tuple[list[ToolCall], int]:
    """The calls that ``block`` begins with behind a mark that nothing closes, and where they end."""
    if form.kind == "named":
        named, end = read_named(block, form)
        return [written_call(name, given) for name, given in named], end
    try:
        value, end = read_value(block, 0)
        return [_json_call(one) for one in (value if isinstance(value, list) else [value])], end
    except LooseJsonError as error:
        raise CallSyntaxError(f"not JSON: {error}") from error


def _read_bare(text: str, form: CallFormat, schemas: Schemas) -> tuple[list[ToolCall], str]:
    """The calls that ``text`` is, and what is left of it: calls of tools that were offered, or JSON that is
    none. Of a model that has marks, only what is a call in its own style counts."""
    bare = form.unmarked
    if bare is None:
        return [], text
    read, blanks = (_read_python, PYTHON_BLANKS) if bare.kind == "python" else (_read_json, JSON_BLANKS)
    plain = text.strip(blanks).removeprefix(form.tag).strip(blanks)
    if plain[:1] not in ("{", "["):
        return [], text
    if not form.is_bare and not plain.startswith(tuple(bare.beginnings(schemas))):
        return [], text
    try:
        calls = read(plain, schemas, form)
    except CallSyntaxError:
        return [], text
    return ([], text) if any(call.name not in schemas for call in calls) else (calls, "")


def _read_python(source: str, schemas: Schemas, form: CallFormat | None) -> list[ToolCall]:
    calls = []
    for name, positional, named in parse_calls(_unfence(source, PYTHON_BLANKS)):
        properties = schemas.get(name, {}).get("properties")
        names = list(properties) if isinstance(properties, Mapping) else []
        if len(positional) > len(names):
            raise CallSyntaxError(f"{name} has {len(positional)} arguments without names")
        arguments = dict(zip(names, positional, strict=False))
        twice = arguments.keys() & named.keys()
        if twice:
            raise CallSyntaxError(f"{name} has the argument {min(twice)} twice")
        calls.append(written_call(name, {**arguments, **named}))
    if not calls:
        raise CallSyntaxError("the block holds no call")
    return calls


def _unfence(source: str, blanks: str) -> str:
    """What stands in a block of code, or ``source`` where it is none; ``blanks``: of its language."""
    source = source.strip(blanks)
    if source.startswith("```"):
        first_line, _, rest = source.partition("\n")
        language = first_line[3:].strip(blanks)
        source = rest if language.isalnum() or not language else source[3:]
        source = source.rstrip(blanks).removesuffix("```")
    return source


def _read_json(source: str, schemas: Schemas, form: CallFormat | None) -> list[ToolCall]:
    between = _JSON[0] if form is None else form.opening or ";"
    try:
        values = read_values(_unfence(source, JSON_BLANKS), [_JSON[0], between])
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
        try:
            values = read_values(arguments) if arguments.strip(JSON_BLANKS) else [{}]
        except LooseJsonError as error:
            raise CallSyntaxError(f"the arguments of {name} are not JSON: {error}") from error
        if len(values) > 1:
            raise CallSyntaxError(f"the arguments of {name} are {len(values)} values")
        arguments = values[0]
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f"the arguments of {name} are a {type(arguments).__name__}, not a table")
    return written_call(name, arguments)
