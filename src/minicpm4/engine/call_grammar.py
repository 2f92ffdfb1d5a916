"""Grammars of calls: a format of calls and the tools' schemas as text that llguidance reads (Lark).

A schema is followed whole where arguments are one JSON object. Where each stands for itself (Python's keyword
arguments, tags), the schema must be an object with properties: those that it declares are written in its
order, each once, each valid by its own schema; others never. Keywords that say more of the whole object are
refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.engine.calls import Calls
from minicpm4.engine.grammar_text import JSON_STYLE, plain_schema
from minicpm4.engine.tag_grammar import tagged_value
from minicpm4.errors import RequestError
from minicpm4.text.call_formats import ID_CHARS, CallFormat
from minicpm4.text.guard import alternatives
from minicpm4.text.pycalls import is_call_name
from minicpm4.text.xml_calls import resolved, types_of

__all__ = ["Opening", "forced_grammar", "openings", "schemas_under"]

MAX_GRAMMAR_CHARS = 8 << 20
# What else may stand beside the properties of an object whose arguments are written one by one.
_BESIDE = {
    *("type", "properties", "required", "additionalProperties", "$defs", "definitions", "$ref"),
    *("title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "deprecated"),
    *("strict", "nullable", "readOnly", "writeOnly"),
}
# Names that can be written as they are in each kind of format.
_NAMES: dict[str, Callable[[str], object]] = {
    "json": re.compile(r"[^\"\\\x00-\x1f]+").fullmatch,
    "named": re.compile(r"[\w.:-]+").fullmatch,
    "python": is_call_name,
    "xml": re.compile(r"[^\"'<>&=\\\s\x00-\x1f][^\"'<>&=\\\x00-\x1f]*").fullmatch,
}
_ID = f"/[a-zA-Z0-9]{{{ID_CHARS}}}/"


@dataclass(frozen=True, slots=True)
class Opening:
    """What a model writes to begin a call, and the grammar of what follows. ``first``: it counts only where
    the answer begins with it, and only if that grammar can go on; then the answer ends with it."""

    text: str
    grammar: str
    first: bool = False


def forced_grammar(
    form: CallFormat, calls: Calls, control: Mapping[str, int], *, loosely: bool = False
) -> str:
    """An answer that is calls. ``control``: spellings that are tokens of their own; ``loosely``: also as
    models write them by themselves, behind the tag that the format may have, or one without its marks. Raises
    RequestError."""
    writer, bare = _Writer(form, calls, control), form.unmarked
    tag = f"({writer.literal(form.tag)})? " if loosely and form.tag else ""
    other = ""
    if loosely and bare is not None and not form.is_bare and not form.has_ids:
        other = f" | {writer.literal(bare.before)} tool {writer.literal(bare.after)}"
    return writer.grammar(tag + writer.literal(form.before), several=calls.several, other=other)


def openings(form: CallFormat, calls: Calls, control: Mapping[str, int]) -> list[Opening]:
    """How an answer may come to a call; each block of calls is held from there. Raises RequestError."""
    writer, bare = _Writer(form, calls, control), form.unmarked
    found = []
    if not form.is_bare:
        rest = writer.literal(form.before.removeprefix(form.opening))
        found = [Opening(form.opening, writer.grammar(rest, several=calls.several and not form.blocks))]
    if bare is not None:
        heads = zip(bare.beginnings(calls.schemas), calls.schemas, strict=True)
        found += [Opening(head, _Writer(bare, calls, control).rest(name), first=True) for head, name in heads]
    if form.tag and form.tag in control:
        found.append(Opening(form.tag, writer.grammar(writer.literal(form.before), several=calls.several)))
    return found


class _Writer:
    """Writes the rules of one grammar."""

    def __init__(self, form: CallFormat, calls: Calls, control: Mapping[str, int]) -> None:
        self._form, self._calls, self._control = form, calls, control
        self._spelled = alternatives(control)
        self._rules: list[str] = []
        self._size = 0
        self._added: dict[str, str] = {}  # their names

    def grammar(self, before: str, *, several: bool, other: str = "") -> str:
        """``before`` and calls of any tool, the last with its end; or as ``other`` says."""
        return self._text(f"start: {before} tool {self._end(several)}{other}", self._tool())

    def rest(self, name: str) -> str:
        """What follows the name of a tool, but for the first character."""
        first = f"{self.literal(self._form.middle[1:])} {self._given(name, len(self._calls.schemas))}"
        end = self._end(self._calls.several)
        return self._text(f"start: {first} {end}", *([self._tool()] if " tool" in end else []))

    def _tool(self) -> str:
        tools = [
            f"{self.literal(self._name(name) + self._form.middle)} {self._given(name, i)}"
            for i, name in enumerate(self._calls.schemas)
        ]
        return "tool: " + " | ".join(tools)

    def _end(self, several: bool) -> str:
        """More calls, and the end of the last."""
        form = self._form
        more = ""
        if several and form.between is not None:
            more = f"({self.literal(form.between)} tool)*"
        return f"{more} {self.literal(form.after)}"

    def _text(self, *rules: str) -> str:
        return "\n".join([*rules, *self._rules])

    def _rule(self, text: str) -> None:
        self._rules.append(text)
        self._size += len(text)
        if self._size > MAX_GRAMMAR_CHARS:
            raise RequestError(f"they make a grammar of over {MAX_GRAMMAR_CHARS:,} characters")

    def add(self, body: str, *, terminal: bool = False, suffix: str | None = None) -> str:
        """See Rules."""
        head = "" if suffix is None else f"[suffix={quoted(suffix)}]"
        key = f"{head}: {body}"
        name = self._added.get(key)
        if name is None:
            name = self._added[key] = f"{'T' if terminal else 't'}{len(self._added)}"
            self._rule(name + key)
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        """A value of a schema, as JSON."""
        return "%json " + json.dumps({**plain_schema(schema), "x-guidance": JSON_STYLE})

    def literal(self, text: str) -> str:
        """``text``, in which spellings of control tokens are those tokens."""
        parts = [text] if self._spelled is None else self._spelled.split(text)
        written = [
            f"<[{self._control[part]}]>" if i % 2 else self._plain(part)
            for i, part in enumerate(parts)
            if part
        ]
        return " ".join(written) or '""'

    def _plain(self, text: str) -> str:
        lines = text.split("\n") if self._form.open_lines else [text]
        return " /\\n?/ ".join(quoted(one) for one in lines)

    def _name(self, name: str) -> str:
        if not _NAMES[self._form.kind](name):
            raise RequestError(
                f"tools: the name {name!r:.80} cannot be written in this model's format of calls"
            )
        return name

    def _given(self, name: str, number: int) -> str:
        """The arguments of a tool, and the call's id where it has one."""
        form, arguments = self._form, self._arguments(name, number)
        before = f"{_ID} {self.literal(form.id_after)} " if form.id_after else ""
        return f"{before}{arguments}" + (f" {self.literal(form.id_before)} {_ID}" if form.id_before else "")

    def _arguments(self, name: str, number: int) -> str:
        """A rule for the arguments of a tool."""
        self._name(name)
        rule, schema = f"a{number}", self._calls.schema(name)
        if self._form.is_json:
            self._rule(f"{rule}: {self.json(schema)}")
        else:
            self._each(rule, schema, name)
        return rule

    def _each(self, rule: str, schema: Mapping[str, Any], tool: str) -> None:
        """Rules for arguments that are written one by one: the rest from each on, where some were written
        before and where none was."""
        given = resolved(schema, schema)
        beside = sorted(given.keys() - _BESIDE)
        if beside or types_of(given) - {"object"}:
            place = beside[0] if beside else "type"
            raise RequestError(f"at #/{place}: this is not followed where arguments stand one by one")
        properties = _table(given.get("properties"))
        if tool in self._calls.loose:  # whoever reads them knows no more than their types
            own = self._calls.schemas[tool]
            known = {key: sorted(types_of(one, own)) for key, one in _table(own.get("properties")).items()}
            properties = {key: {"type": types} if types else {} for key, types in known.items()}
        said = given.get("required") or ()
        if not isinstance(said, list | tuple):
            raise RequestError(f"at #/required: {said!r:.40} is no list of names")
        required = [key for key in said if isinstance(key, str)]
        every = {**properties, **{key: {} for key in required if key not in properties}}
        under = schemas_under(schema)
        comma = '", " ' if self._form.kind == "python" else ""
        for i, (key, value) in enumerate(every.items()):
            one = f"{rule}v{i}"
            self._rule(f"{one}: {self._argument(key, value, under)}")
            left_out = key not in required
            for kind, mark in (("f", ""), ("x", comma)):
                rest = f"{mark}{one} {rule}x{i + 1}"
                self._rule(f"{rule}{kind}{i}: {rest}" + (f" | {rule}{kind}{i + 1}" if left_out else ""))
        for last in (f'{rule}f{len(every)}: ""', f'{rule}x{len(every)}: ""', f"{rule}: {rule}f0"):
            self._rule(last)

    def _argument(self, key: str, schema: Any, under: Callable[[Any], dict[str, Any]]) -> str:
        form = self._form
        if not _NAMES[form.kind](key):
            raise RequestError(f"at #/properties: the name {key!r:.80} cannot be written as an argument's")
        if form.argument is not None:
            value = tagged_value(under(schema), form, self)
            return f"{self.literal(form.argument.before + key + form.argument.middle)} {value}"
        types = types_of(under(schema))
        value = self.json(under(schema))
        if form.python_words and types in ({"boolean"}, {"null"}) and not {"enum", "const"} & {*schema}:
            value = '"True" | "False"' if types == {"boolean"} else '"None"'
        return f"{quoted(key + '=')} ({value})"


def quoted(text: str) -> str:
    """A text as Lark's literal."""
    return json.dumps(text, ensure_ascii=False)


def schemas_under(root: Mapping[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """What makes a schema of its own of a part of ``root``, whose references lead from the root on."""
    if not _refers(root):
        return lambda part: dict(part) if isinstance(part, Mapping) else {}
    moved = _moved(root, "#/$defs/root")

    def under(part: Any) -> dict[str, Any]:
        part = _moved(part, "#/$defs/root") if isinstance(part, Mapping) else {}
        return {**part, "$defs": {"root": moved}}

    return under


def _refers(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return "$ref" in schema or any(map(_refers, schema.values()))
    return isinstance(schema, list) and any(map(_refers, schema))


def _moved(schema: Any, root: str) -> Any:
    """``schema`` with the paths in it from ``root`` on, where it now stands."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema


def _table(properties: Any) -> Mapping[str, Any]:
    """The properties of a schema. Raises RequestError."""
    if properties is not None and not isinstance(properties, Mapping):
        raise RequestError(f"at #/properties: {properties!r:.40} is no table")
    return properties or {}
