"""Calls read while they are written, where a grammar holds them to their format: the name as soon as it is
there, and the arguments piece by piece, as JSON.

Of the arguments, what is JSON already goes through as it is written; text in tags is put between quotes, and
Python's words become JSON's. The texts it reads follow one set of rules (``engine/call_grammar``): one space
after commas and colons, and nothing that could mean two things.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4.text.call_formats import CallFormat, Tag
from minicpm4.text.tool_call import ToolCall, written_call
from minicpm4.text.xml_calls import CDATA, CDATA_END, argument_types

__all__ = ["CallPart", "CallStream", "joined"]

_WORDS = {"True": "true", "False": "false", "None": "null"}
_PLAIN = re.compile(r'[^"{}\[\]]*')  # of JSON outside strings
_STRING = re.compile(r'[^"\\]*')
_SCALAR = re.compile(r"[\w.+-]*")

Steps = Generator[None, None, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CallPart:
    """A call begins (``name``), more of its arguments (``arguments``), or it is whole (``call``)."""

    name: str = ""
    arguments: str = ""
    call: ToolCall | None = None


class CallStream:
    """Reads calls from what comes behind ``read``, their beginning: the opening mark, or what a bare call
    begins with.

    ``done``: the block has ended, and ``rest`` is what came behind it. ``odd``: it ended because it is not as
    the grammar writes it.
    """

    def __init__(self, form: CallFormat, schemas: Mapping[str, Any], read: str = "") -> None:
        self._form, self._schemas, self._skip = form, schemas, read
        self._text, self._at = "", 0
        self._parts: list[CallPart] = []
        self._arguments: list[str] = []  # of the call under way
        self._inside = True  # a call that has not ended
        self._name = ""  # of the call that has begun and was not told yet
        self._steps = self._block()
        self.done = self.odd = False

    def push(self, text: str) -> list[CallPart]:
        """Take more text; return what is certain by now."""
        self._text = self._text[self._at :] + text
        self._at = 0
        try:
            next(self._steps)
        except StopIteration:
            self.done = True
        except _OddError:
            self.done = self.odd = True
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[CallPart]:
        """No more text will come: a call of which only the name is whole is told by it."""
        name, self._name = self._name, ""
        return [CallPart(name=name)] if name in self._schemas else []

    @property
    def cut(self) -> bool:
        """Whether the text so far ends inside a call, of whose marks those behind its end do not count."""
        return not self.done and (self._inside or not self._form.after.startswith(self.rest))

    @property
    def rest(self) -> str:
        return self._text[self._at :]

    def _block(self) -> Steps:
        form = self._form
        yield from self._literal(form.before.removeprefix(self._skip))
        while True:
            yield from self._call()
            if form.between is None or form.blocks:
                yield from self._literal(form.after)
                return
            while not self._reads(form.after):
                if not self._may_read(form.after):  # which ``between`` may be the beginning of
                    if self._reads(form.between):
                        break
                    if not self._may_read(form.between):
                        raise _OddError
                yield
            else:
                return

    def _call(self) -> Steps:
        form, self._inside = self._form, True
        while (end := self._text.find(form.middle[:1], self._at)) < 0:
            yield
        name = self._name = self._text[self._at : end]
        self._at = end
        yield from self._literal(form.middle)
        self._parts.append(CallPart(name=name))
        self._name = ""
        if form.id_after:
            yield from self._id(form.id_after)
        self._arguments = []
        schema = self._schemas.get(name)
        if form.is_json:
            yield from self._json()
        else:
            yield from self._named(schema)
        try:
            given = json.loads("".join(self._arguments), strict=False)
            if not isinstance(given, dict):
                raise _OddError
            call = written_call(name, given)
        except (ValueError, RecursionError) as error:
            raise _OddError from error
        self._parts.append(CallPart(call=call))
        self._inside = False
        if form.id_before:
            yield from self._literal(form.id_before)
            yield from self._id('"', keep=True)

    def _id(self, after: str, *, keep: bool = False) -> Steps:
        """An id, which says nothing, and what follows it; that may be kept."""
        while (end := self._text.find(after[:1], self._at)) < 0:
            yield
        self._at = end
        if not keep:
            yield from self._literal(after)

    def _named(self, schema: Any) -> Steps:
        """Arguments by their names, as an object."""
        tag, first = self._form.argument, True
        self._say("{")
        while True:
            if tag is not None:
                while not self._may_be_one(tag.before):
                    yield
                if not self._reads(tag.before):
                    break
                separator = tag.middle
            else:
                while self._at == len(self._text):
                    yield
                if self._text[self._at] == ")":
                    break
                if not first:
                    yield from self._literal(", ")
                separator = "="
            while (end := self._text.find(separator[:1], self._at)) < 0:
                yield
            key = self._text[self._at : end]
            self._at = end
            yield from self._literal(separator)
            self._say(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            first = False
            if tag is None:
                yield from self._json()
            else:
                yield from self._tagged(argument_types(schema, key), tag)
        self._say("}")

    def _tagged(self, types: frozenset[str], tag: Tag) -> Steps:
        """The value of a tag, and its end."""
        closing = tag.after
        while not self._may_be_one(CDATA):
            yield
        if "string" not in types or types - {"string", "null"}:
            yield from self._json()
            yield from self._literal(closing)
            return
        if "\n" not in tag.middle and self._reads(CDATA):
            yield from self._quoted(CDATA_END)
            yield from self._literal(closing)
            return
        for word in ("null", "None") if "null" in types else ():
            while not self._may_be_one(word + closing):
                yield
            if self._reads(word + closing):
                self._say("null")
                return
        yield from self._quoted(closing)

    def _quoted(self, closing: str) -> Steps:
        """Text up to ``closing``, which is read too, as a string."""
        self._say('"')
        while True:
            end = self._text.find(closing, self._at)
            certain = end if end >= 0 else max(self._at, len(self._text) - len(closing) + 1)
            self._say(json.dumps(self._text[self._at : certain], ensure_ascii=False)[1:-1])
            self._at = certain
            if end >= 0:
                break
            yield
        self._at += len(closing)
        self._say('"')

    def _json(self) -> Steps:
        """A value of JSON, or a word of Python's that means one."""
        while self._at == len(self._text):
            yield
        if self._text[self._at] not in '"{[':
            while (end := _end(_SCALAR, self._text, self._at)) == len(self._text):
                yield
            word = self._text[self._at : end]
            if not word:
                raise _OddError
            self._at = end
            self._say(_WORDS.get(word, word))
            return
        depth = 0
        while True:
            start = self._at
            self._at = _end(_PLAIN, self._text, self._at)
            self._say(self._text[start : self._at])
            if self._at == len(self._text):
                yield
                continue
            char = self._text[self._at]
            self._say(char)
            self._at += 1
            if char == '"':
                yield from self._string()
            else:
                depth += 1 if char in "{[" else -1
            if depth == 0:
                return

    def _string(self) -> Steps:
        """The rest of a string."""
        while True:
            start = self._at
            self._at = _end(_STRING, self._text, self._at)
            self._say(self._text[start : self._at])
            if self._text[self._at : self._at + 2] in ("", "\\"):
                yield
                continue
            length = 1 if self._text[self._at] == '"' else 2
            self._say(self._text[self._at : self._at + length])
            self._at += length
            if length == 1:
                return

    def _say(self, text: str) -> None:
        if text:
            self._arguments.append(text)
            self._parts.append(CallPart(arguments=text))

    def _literal(self, text: str) -> Steps:
        for i, part in enumerate(text.split("\n") if self._form.open_lines else [text]):
            while i and self._at == len(self._text):
                yield
            if i:
                self._reads("\n")
            while not self._reads(part):
                if not self._may_read(part):
                    raise _OddError
                yield

    def _reads(self, text: str) -> bool:
        """Go past ``text`` where it comes next."""
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _may_read(self, text: str) -> bool:
        return text.startswith(self._text[self._at :])

    def _may_be_one(self, text: str) -> bool:
        """Whether it can be told if ``text`` comes next."""
        return not text.startswith(self._text[self._at :]) or self._text.startswith(text, self._at)


class _OddError(Exception):
    """The text is not as it must be."""


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None
    return found.end()


def joined(parts: Sequence[CallPart]) -> list[CallPart]:
    """``parts`` with what follows one another of one call's arguments as one."""
    made: list[CallPart] = []
    for part in parts:
        if part.arguments and made and made[-1].arguments:
            made[-1] = CallPart(arguments=made[-1].arguments + part.arguments)
        else:
            made.append(part)
    return made
