"""How a model writes its calls of tools: found from its chat template, by rendering some.

A call is its tool's name, what stands between name and arguments, and the arguments; around it are marks.
Name and arguments may be members of a JSON object (Hermes, Qwen, Llama, MiniCPM4, Mistral), or stand
between marks of their own, the arguments as JSON (Mistral, since version 11 of its tokenizer); or the
arguments are Python's keyword arguments, in a fenced block (MiniCPM3, MiniCPM4's tool turns) or a list
(Llama's pythonic way), or a tag for each (MiniCPM5's XML, Qwen3-Coder). A call may have an id (Mistral).
Names of models say nothing here: a template that writes calls in none of these ways, or none at all, has no
format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from minicpm4.errors import Minicpm4Error
from minicpm4.text.probes import ASKED, CALL_ID, KEY, NAME, TOOL, USER, VALUE, calls_of, rendered
from minicpm4.text.reasoning import MARKS, Marks
from minicpm4.text.template import ChatTemplate

__all__ = ["HERMES", "ID_CHARS", "PLAIN", "CallFormat", "Tag", "call_format_of", "wants_short_ids"]

MAX_PART = 256  # characters of what a template puts around a call: more is no format
PYTHON_TAG = "<|python_tag|>"  # Llama may write it before a call
_OTHER, _FIRST, _SECOND = "qzother", "Qzfirst", "Qzsecond"
_NAME_HEAD = re.compile(r"(?P<mark>.*?)\s*\[?\s*\{\s*\"name\"\s*:\s*\"", re.DOTALL)
_GIVEN = rf'\{{\s*"{KEY}"\s*:\s*"{VALUE}"\s*\}}'
ID_CHARS = 9  # of a call's id, where a format has some
_ID_BEHIND = re.compile(rf'(?P<before>\s*,\s*"id"\s*:\s*"){CALL_ID}')
_MARK, _LAST_MARK = re.compile(r"\[[^\[\]<>]+\]|<[^\[\]<>/]+>"), re.compile(r"(\[[^\[\]<>]+\]|<[^<>]+>)\s*$")
_NAME_TAIL = re.compile(r"\"\s*,\s*\"(?:arguments|parameters)\"\s*:\s*")


@dataclass(frozen=True, slots=True)
class Tag:
    """What stands before the name of an argument, between it and the value, and after the value."""

    before: str
    middle: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFormat:
    """Calls are ``before`` name ``middle`` arguments ``after``; another follows the arguments of the one
    before it by ``between`` (None: an answer has one call). ``opening`` is the mark that only calls begin
    with, ``closing`` the one that they end with; without them (Llama) a call is the whole answer, maybe
    behind ``tag``. ``id_before``: what stands between the arguments and an id behind them, on which ``after``
    and ``between`` follow; ``id_after``: what stands between an id that follows ``middle`` and the arguments.
    ``argument``: of the kind "xml". ``python_words``: true is written True. ``open_lines``: line breaks in it
    may be left out."""

    kind: Literal["json", "named", "python", "xml"]
    before: str
    middle: str
    after: str
    between: str | None = None
    opening: str = ""
    closing: str = ""
    tag: str = ""
    id_before: str = ""
    id_after: str = ""
    argument: Tag | None = None
    python_words: bool = False
    open_lines: bool = False

    @property
    def is_bare(self) -> bool:
        """Whether nothing but its own form tells a call from text."""
        return not self.opening

    @property
    def is_json(self) -> bool:
        """Whether the arguments are one JSON object."""
        return self.kind in ("json", "named")

    @property
    def has_ids(self) -> bool:
        """Whether calls have ids, which are ID_CHARS letters or digits."""
        return bool(self.id_before or self.id_after)

    @property
    def unmarked(self) -> CallFormat | None:
        """A call alone, as models write it that forget their marks; None where it could be anything."""
        if self.is_bare or self.kind != "json":
            return self if self.is_bare else None
        return replace(
            self, before='{"name": "', after="}", between=None, opening="", closing="", id_before=""
        )

    def beginnings(self, names: Iterable[str]) -> list[str]:
        """What calls of these tools begin with, of a format without marks."""
        return [self.before + name + self.middle[:1] for name in names]

    def heads(self, names: Iterable[str]) -> list[str]:
        """What tells that an answer is calls of these tools, and no text, as soon as it begins with it."""
        if not self.is_bare:
            bare = None if self.has_ids else self.unmarked
            return [self.opening, *([] if bare is None else bare.heads(names))]
        tags = ("", self.tag) if self.tag else ("",)
        return [tag + self.before + name + self.middle for name in names for tag in tags]

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that tokens of the format may be part of."""
        own = () if self.argument is None else (self.argument.before, self.argument.after)
        parts = (self.before, self.middle, self.id_after, self.after, self.closing, self.tag, *own)
        return tuple(mark for mark in parts if mark)

    @property
    def blocks(self) -> bool:
        """Whether each call of several has marks of its own."""
        return self.between is not None and self.between.startswith(self.after)


HERMES = CallFormat(
    kind="json",
    before='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</tool_call>",
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    opening="<tool_call>",
    closing="</tool_call>",
    open_lines=True,
)
"""What a model is taken to write whose template shows nothing."""
PLAIN = CallFormat(kind="json", before='{"name": "', middle='", "arguments": ', after="}")
"""What such a model is made to write: nobody knows of a mark that would help it."""


def call_format_of(
    template: ChatTemplate, ends: Collection[str] = (), marks: Sequence[Marks] = MARKS
) -> CallFormat | None:
    """The format in which ``template`` writes calls, None where it is none that is known. ``ends``: spellings
    of what ends a turn; ``marks``: of reasoning, which may come before."""
    one = _said(template, [(NAME, {KEY: VALUE})], ends, marks)
    before, name, rest = one.partition(NAME)
    before = before.lstrip()
    if not name or len(before) > MAX_PART or len(rest) > MAX_PART:
        return None
    found = _json(before, rest) or _named(before, rest) or _python(before, rest) or _xml(before, rest)
    if found is None or found.opening.startswith("</") or "><" in found.opening:
        return None
    return _with_more(found, template, ends, marks)


def wants_short_ids(template: ChatTemplate) -> bool:
    """Whether ``template`` refuses calls whose ids have more than ID_CHARS letters and digits."""
    short, long = (
        rendered(template, [USER, calls_of((NAME, {KEY: VALUE}), number=number)], tools=[TOOL])
        for number in (CALL_ID, f"call_{CALL_ID * 2}")
    )
    return bool(short) and not long


def _said(
    template: ChatTemplate,
    calls: Sequence[tuple[str, dict[str, object]]],
    ends: Collection[str],
    marks: Sequence[Marks],
) -> str:
    """What the model writes to make ``calls``; empty where the template refuses them."""
    text = rendered(template, [USER, calls_of(*calls)], tools=[TOOL])
    asked = text.rpartition(ASKED)[2] if ASKED in text else ""
    try:
        prompt = template.render([USER], tools=[TOOL]).rpartition(ASKED)[2]
    except Minicpm4Error:
        return ""
    head = prompt.rstrip()
    if not asked.startswith(head):  # it opens a thought where calls have none: what lines they share tells
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(asked, prompt, strict=False))
        head = "".join(a for a, _ in alike).rpartition("\n")[0]
    said = asked[len(head) :]
    first = said.find(calls[0][0])
    for _, closing in marks:  # an empty thought, which some templates write
        at = said.find(closing, 0, max(first, 0))
        if at >= 0:
            said = said[at + len(closing) :]
            first = said.find(calls[0][0])
    last = max((said.rfind(str(value)) for _, given in calls for value in given.values()), default=-1)
    stops = [at for end in ends if end and (at := said.find(end, max(last, 0))) >= 0]
    return said[: min(stops)].rstrip() if stops else said.rstrip()


def _json(before: str, rest: str) -> CallFormat | None:
    given = re.search(_GIVEN, rest)
    head = _NAME_HEAD.fullmatch(before)
    if given is None or head is None or not _NAME_TAIL.fullmatch(rest[: given.start()]):
        return None
    after = rest[given.end() :]
    number = _ID_BEHIND.match(after)
    if number is not None:
        after = after[number.end() :]
    plain = after.removeprefix('"') if number is not None else after
    closing = plain.lstrip().lstrip("}] \n").rpartition("\n")[2].strip()
    if not plain.lstrip().startswith("}") or '"' in plain:
        return None  # more of the call
    opening = head["mark"].partition("\n")[0].strip()
    middle = rest[: given.start()]
    return CallFormat(
        kind="json",
        before=before,
        middle=middle,
        after=after,
        opening=opening,
        closing=closing,
        id_before="" if number is None else number["before"],
    )


def _named(before: str, rest: str) -> CallFormat | None:
    given = re.search(_GIVEN, rest)
    opening, closing = _MARK.match(before), None
    if given is None or opening is None or before.rstrip()[-1] not in "]>":
        return None
    middle, id_after = rest[: given.start()], ""
    if CALL_ID in middle:
        middle, _, id_after = middle.partition(CALL_ID)
    after = rest[given.end() :]
    for part in (middle, id_after) if id_after else (middle,):
        if _MARK.match(part) is None or any(char in part for char in "\"'="):
            return None
    if after.strip() and (closing := _LAST_MARK.search(after)) is None:
        return None
    return CallFormat(
        kind="named",
        before=before,
        middle=middle,
        after=after,
        opening=opening[0],
        closing="" if closing is None else closing[0],
        id_after=id_after,
    )


def _python(before: str, rest: str) -> CallFormat | None:
    given = re.match(rf"\(\s*{KEY}\s*=\s*([\"']){VALUE}\1", rest)
    if given is None or not before.strip():
        return None
    opening, after = before.split()[0].rstrip("["), rest[given.end() :]
    closing = after.split()[-1].lstrip(")]") if opening and after.split() else ""
    return CallFormat(kind="python", before=before, middle="(", after=after, opening=opening, closing=closing)


def _xml(before: str, rest: str) -> CallFormat | None:
    given = re.search(rf"(<[^<>]*){KEY}([^<>]*>\s*){VALUE}(\s*</[^<>]+>\s*)", rest)
    start = before.rfind("<")
    if given is None or start < 0 or ">" in before[start:]:
        return None
    middle, after = rest[: given.start()], rest[given.end() :]
    tag = Tag(given[1], given[2], given[3])
    outer = before[:start].split()
    closing = re.findall(r"</[^<>]+>", after)
    if not closing or ">" not in middle:
        return None
    return CallFormat(
        kind="xml",
        before=before,
        middle=middle,
        after=after,
        opening=outer[0] if outer else before.rstrip("\"'"),
        closing=closing[-1],
        argument=tag,
    )


def _with_more(
    found: CallFormat, template: ChatTemplate, ends: Collection[str], marks: Sequence[Marks]
) -> CallFormat:
    """``found`` with what other calls show: several in one answer, and how true is written."""
    two = _said(template, [(NAME, {KEY: _FIRST}), (_OTHER, {KEY: _SECOND})], ends, marks)
    first = _arguments(found, _FIRST)
    end = two.find(first)
    between: str | None = None
    if end >= 0 and (other := two.find(_OTHER, end)) >= 0 and other - end < MAX_PART:
        between = two[end + len(first) : other]
        if found.id_before:
            between = between.removeprefix(found.id_before).removeprefix(CALL_ID)
    words = _said(template, [(NAME, {KEY: True, "qzlast": VALUE})], ends, marks)
    tagged = found.is_bare and any(PYTHON_TAG in text for text in template.sources.values())
    return replace(
        found,
        between=between,
        tag=PYTHON_TAG if tagged else "",
        python_words=not found.is_json and "True" in words.partition(NAME)[2],
    )


def _arguments(form: CallFormat, value: str) -> str:
    """What the template writes of one argument, as far as it is sure."""
    if form.argument is not None:
        return value + form.argument.after
    return json.dumps(value) + ("}" if form.is_json else "")
