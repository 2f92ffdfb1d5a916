"""Messages in the shape that a chat template takes, where templates differ in what they take.

Arguments of tool calls are JSON text for some templates and a table for others; a message without content
has None, "" or no such key; content in parts is read as a list or as one text. No template says which, and
the wrong one fails, or stands in the prompt as a quoted string, a Python table or the word "None". So the
chat itself is rendered in each shape, that in which the caller gave it first, with arguments and parts that
can be found again, and the first that comes out well is taken. A template may also read content in parts
alone: plain text, which it would leave out without a word, is then given as one part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, cast

from minicpm4.errors import RequestError, TextError
from minicpm4.text.messages import parsed_arguments

__all__ = ["as_parts", "shaped"]

Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]

_KEY, _VALUE, _PART, _SAID = "qzkey", "qzvalue", "Qzpart", "qz{}said"  # what a probe is known by


@dataclass(frozen=True, slots=True)
class Shape:
    """``arguments`` of calls, content that is ``missing``, and whether ``parts`` stay a list."""

    arguments: Literal["text", "table"]
    missing: Literal["null", "absent", "empty"]
    parts: bool

    def of(self, messages: Messages) -> Messages:
        """``messages`` in this shape. Raises RequestError for arguments that are no table and must be."""
        return [self._message(message, f"messages[{i}]") for i, message in enumerate(messages)]

    def _message(self, message: dict[str, Any], where: str) -> dict[str, Any]:
        content = message.get("content")
        if content is None:
            if self.missing == "absent":
                message = {k: v for k, v in message.items() if k != "content"}
            else:  # in its place: some templates write out all of a message
                message = {**message, "content": None if self.missing == "null" else ""}
        elif isinstance(content, list) and not self.parts:
            message = {**message, "content": "".join(part["text"] for part in content)}
        calls = message.get("tool_calls")
        if not calls:
            return message
        changed = [self._call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
        return {**message, "tool_calls": changed}

    def _call(self, call: dict[str, Any], where: str) -> dict[str, Any]:
        given = _given(call)
        if self.arguments == "table":
            return _with_arguments(call, parsed_arguments(given, where))
        return _with_arguments(
            call, given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        )


def shaped(messages: Messages, render: Render) -> Messages:
    """``messages`` (checked) in the shape that suits the template behind ``render``.

    Where a template shows nothing of it, as the caller gave them. Raises RequestError for arguments that a
    template wants as a table and that are none, TextError where it refuses every shape.
    """
    shapes = _shapes(messages)
    if len(shapes) == 1:
        return shapes[0].of(messages)
    probe = _probe(messages)
    refusal: TextError | None = None
    best: tuple[tuple[int, int], Shape] | None = None
    for order, shape in enumerate(shapes):
        try:
            faults = _faults(render(shape.of(probe)), shape, probe)
        except TextError as error:
            refusal = error  # the last one's: of the shape in which least can go wrong
            continue
        if best is None or (faults, order) < best[0]:
            best = (faults, order), shape
        if not faults:
            break
    if best is None:
        assert refusal is not None
        raise refusal
    (faults, _), shape = best
    if faults >= _UNSEEN:
        # Nothing tells that text which is no JSON suits this template: it is a mistake, as for most.
        Shape("table", shape.missing, shape.parts).of(messages)
    return shape.of(messages)


def as_parts(messages: Messages, text: str, render: Render) -> Messages | None:
    """``messages`` (shaped) with the content of some roles as lists of one part: where nothing that a role
    says stands in the rendered ``text``, would not if more were said, and does when given so. Else None."""
    said: dict[str, list[str]] = {}
    for message in messages:
        if isinstance(content := message.get("content"), str) and (words := content.strip()):
            said.setdefault(str(message["role"]), []).append(words)
    hidden = [role for role, words in said.items() if not any(one in text for one in words)]
    if not hidden:
        return None
    marks = {role: _SAID.format(number) for number, role in enumerate(hidden)}
    try:
        plain = render([_said(m, marks, ()) for m in messages])
    except TextError:
        plain = ""
    hidden = [role for role in hidden if marks[role] not in plain]
    for roles in (hidden, *([role] for role in hidden if len(hidden) > 1)):
        try:
            found = render([_said(m, marks, roles) for m in messages])
        except TextError:
            continue
        shown = [role for role in roles if marks[role] in found and not _is_quoted(found, marks[role])]
        if shown:
            return [_said(m, {}, shown) for m in messages]
    return None


def _said(message: dict[str, Any], marks: Mapping[str, str], lists: Collection[str]) -> dict[str, Any]:
    """``message`` with the mark of its role at its end, as a list where the role is one of ``lists``."""
    content, role = message.get("content"), message["role"]
    if not isinstance(content, str) or not content.strip() or not (role in marks or role in lists):
        return message
    content += marks.get(role, "")
    return {**message, "content": [{"type": "text", "text": content}] if role in lists else content}


def _is_quoted(text: str, mark: str) -> bool:
    """Whether ``mark`` stands in ``text`` as the end of a table that was written out."""
    return any(mark + quote + "}" in text for quote in "'\"")


_IN_TABLE = "'arguments': '"  # where a template writes out the table of a whole call
_UNSEEN = 1 << 40  # of arguments that are not in the output as they should be


def _faults(text: str, shape: Shape, probe: Messages) -> int:
    """How much of ``probe`` stands in the rendered ``text`` as no template would want it."""
    faults = text.count("None")
    given = _arguments(probe)
    if given and shape.arguments == "text":
        texts = [json.dumps(table, ensure_ascii=False) for table in given]
        faults += _UNSEEN * all(one not in text.replace(_IN_TABLE + one, "") for one in texts)
    elif given:
        quoted = f"{_KEY}': '{_VALUE}" in text or f'\\"{_KEY}' in text
        faults += _UNSEEN * (quoted or _VALUE not in text)
    if any(isinstance(message.get("content"), list) for message in probe):
        faults += (1 << 30) * (_is_quoted(text, _PART) or _PART not in text)
    return faults


def _shapes(messages: Messages) -> Sequence[Shape]:
    """The shapes that make a difference to ``messages``, the caller's own first."""
    given = _arguments(messages)
    contents = [message.get("content") for message in messages]
    arguments = ["text", "table"] if all(isinstance(a, str) for a in given) else ["table", "text"]
    null = any("content" in message for message in messages if message.get("content") is None)
    missing = ["null", "absent", "empty"] if null else ["absent", "null", "empty"]
    parts = [True, False]
    return [
        Shape(cast(Any, one), cast(Any, two), three)
        for three, one, two in product(
            parts if any(isinstance(content, list) for content in contents) else parts[:1],
            arguments if given else arguments[:1],
            missing if None in contents else missing[:1],
        )
    ]


def _probe(messages: Messages) -> Messages:
    """``messages`` with arguments and parts that can be found in what is rendered of them."""
    probe = []
    for message in messages:
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            marked = [{**part, "text": part["text"] + _PART} for part in content]
            message = {**message, "content": marked}
        if calls:
            message = {**message, "tool_calls": [_with_arguments(c, _marked(_given(c))) for c in calls]}
        probe.append(message)
    return probe


def _marked(arguments: Any) -> dict[str, Any]:
    """A table with the keys of ``arguments``."""
    try:
        keys = list(parsed_arguments(arguments, ""))
    except RequestError:
        keys = []
    return dict.fromkeys([*keys, _KEY], _VALUE)


def _arguments(messages: Messages) -> list[Any]:
    return [_given(call) for message in messages for call in message.get("tool_calls", ())]


def _given(call: dict[str, Any]) -> Any:
    return call.get("function", call)["arguments"]


def _with_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    if "function" not in call:
        return {**call, "arguments": arguments}
    return {**call, "function": {**call["function"], "arguments": arguments}}
