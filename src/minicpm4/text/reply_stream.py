"""A reply taken apart while it is written: thought, text, and calls of tools.

A call is told piece by piece where a grammar holds the model to its format, else as soon as its block ends:
what looks like a call may still turn out to be none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4.text.call_formats import CallFormat
from minicpm4.text.call_stream import CallPart, CallStream, joined
from minicpm4.text.reasoning import Marks, ReasoningSplitter, overlap
from minicpm4.text.toolcalls import (
    FENCE,
    MAX_HEAD,
    ToolCall,
    call_marks,
    may_be_fenced,
    parse_tool_calls,
    schemas_of,
)

__all__ = ["ReplyPart", "ReplyStream", "begins_as_calls"]

MAX_ENDS = 8  # closing marks that may stand inside arguments before a block is taken for text


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyPart:
    """What has become certain: some of the thought, some of the text, or of a call.

    A call begins with its ``name``; its ``arguments``, pieces of one JSON text, are those of the call that
    began last; ``call`` is all of it, at its end. They may come in one part or in many. A call that is cut
    off has no end."""

    reasoning: str = ""
    content: str = ""
    name: str = ""
    arguments: str = ""
    call: ToolCall | None = None


class ReplyStream:
    """Takes the text of one reply, in pieces, and gives its parts; joined, they do not depend on the pieces.

    ``tools``: those that were offered; None: blocks of calls are text. ``form``: how the model writes calls;
    ``held``: a grammar sees to it that it does; ``either``: and that the answer is calls or no call stands in
    it; ``forced``: and that it is calls. The rest is as in ``ReasoningSplitter``.
    """

    def __init__(
        self,
        *,
        marks: Sequence[Marks],
        tools: Sequence[Mapping[str, Any]] | None = None,
        form: CallFormat | None = None,
        held: bool = False,
        either: bool = False,
        forced: bool = False,
        enable_thinking: bool | None = None,
        starts_inside: bool = False,
    ) -> None:
        self._splitter = ReasoningSplitter(
            enable_thinking=enable_thinking, starts_inside=starts_inside, marks=marks
        )
        self._blocks: _CallBlocks | _CallsOrText | None = None
        if tools is not None:
            self._blocks = _CallBlocks(tools, form, held, forced)
            if either and form is not None:
                self._blocks = _CallsOrText(self._blocks, form, schemas_of(tools))

    @property
    def thinks(self) -> bool | None:
        """Whether the text so far ends within the thought; None: it is not certain yet."""
        return self._splitter.thinks

    def push(self, text: str) -> list[ReplyPart]:
        """Take more text; return what is certain by now."""
        return self._parts(self._splitter.push(text))

    def finish(self, *, cut: bool = False) -> list[ReplyPart]:
        """No more text will come: return what was held back. ``cut``: the model would have gone on; what it
        began of a call that a grammar holds, is no text then."""
        parts = self._parts(self._splitter.finish())
        return parts if self._blocks is None else parts + self._blocks.finish(cut)

    @property
    def cut_call(self) -> bool:
        """Whether the text, which has ended, did so inside a call that a grammar held."""
        return self._blocks is not None and self._blocks.cut_call

    def _parts(self, pieces: Sequence[tuple[str, str]]) -> list[ReplyPart]:
        parts = []
        for kind, text in pieces:
            if kind == "reasoning":
                parts.append(ReplyPart(reasoning=text))
            elif self._blocks is None:
                parts.append(ReplyPart(content=text))
            else:
                parts += self._blocks.push(text)
        return parts


class _CallBlocks:
    """Finds blocks of calls in text. Held back are white space, which may stand before a block, the beginning
    of an opening mark, and a block until it can be read."""

    def __init__(
        self, tools: Sequence[Mapping[str, Any]], form: CallFormat | None, held: bool, forced: bool
    ) -> None:
        self._forced = forced
        self._said = False  # whether there is text since the beginning, or the last call
        self.cut_call = False
        self._tools, self._form, self._is_held = tools, form, held and form is not None
        self._schemas = schemas_of(tools)
        self._openings = call_marks(form, self._schemas)
        self._held = ""
        self._block_of: str | None = None  # the opening mark of the block which ``_held`` begins with
        self._blank = ""  # what stands before it
        self._looked = 0  # how far its end was looked for
        self._ends = 0
        self._called = False
        self._stream: CallStream | None = None  # reads a block that is held
        self._opened, self._raw = "", ""  # its mark, and the text behind it
        self._begun = False  # whether it has told of a call
        # Whether the text may turn out to be a bare call: it has not begun, or begins like one.
        self._unmarked = None if form is None else form.unmarked
        self._may_be_bare = self._unmarked is not None

    def push(self, text: str) -> list[ReplyPart]:
        self._held += text
        parts: list[ReplyPart] = []
        while (found := self._advance()) is not None:
            parts += found
        return parts

    def finish(self, cut: bool) -> list[ReplyPart]:
        parts: list[ReplyPart] = []
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self.cut_call = stream.cut
            return [_part(one) for one in stream.finish()]
        if cut and self._is_held and self._begins_call():
            self.cut_call, self._held = True, ""
            return []
        if self._may_be_bare and self._held.strip():
            return self._read(self._held) or self._say(self._held)
        while self._block_of is not None:  # cut off, or without its closing mark
            calls = self._read(self._held)
            if self._block_of == FENCE[0] and not calls:
                parts += self._say(self._code()) + self.push("")
                continue
            text, self._held, self._block_of = self._held, "", None
            if calls:
                return parts + calls
            parts += self._say(text)
        if self._held.strip():
            parts += self._say(self._held)
        self._held = ""
        return parts

    def _begins_call(self) -> bool:
        """Whether what is held back of a text that was cut off is the beginning of a call, and not of a text
        as well: by the model's own mark, of which one character may be anything, or by a bare call's form."""
        form, text = self._form, self._held.lstrip()
        if form is None or self._block_of not in (None, form.opening) or not text:
            return False
        if self._may_be_bare:
            bare = self._unmarked
            assert bare is not None
            behind = text.removeprefix(form.tag).lstrip() if form.tag else text
            if self._forced or not behind or behind.startswith(bare.before):
                return True
        marks = [mark for mark in (form.opening, form.tag) if mark]
        sure = self._forced or self._called or not self._said
        return any(mark.startswith(text) for mark in marks) and (sure or len(text) > 1)

    def _advance(self) -> list[ReplyPart] | None:
        """Parts that are certain; None: more has to come."""
        if self._stream is not None:
            return self._go_on(self._stream)
        if self._may_be_bare:
            return self._bare()
        return self._text() if self._block_of is None else self._block()

    def _bare(self) -> list[ReplyPart] | None:
        """Whether the text is a call, which nothing but its form tells."""
        form, bare, text = self._form, self._unmarked, self._held.lstrip()
        assert form is not None and bare is not None
        if form.tag and text and form.tag.startswith(text[: len(form.tag)]):
            if len(text) < len(form.tag):
                return None
            text = text.removeprefix(form.tag).lstrip()
        heads = bare.beginnings(self._schemas)
        begins = any(text.startswith(head) for head in heads)
        if begins and self._is_held:
            self._start("", text, bare)
            self._may_be_bare = False
            return []
        self._may_be_bare = begins or any(head.startswith(text) for head in heads)
        if form.is_bare and not self._is_held:  # and in any other style
            self._may_be_bare = text[:1] in ("", "{", "[")
        return None if self._may_be_bare else []

    def _text(self) -> list[ReplyPart] | None:
        found = [(at, opening) for opening in self._openings if (at := self._held.find(opening)) >= 0]
        if found:
            at, opening = min(found)
            before, block = self._held[:at].rstrip(), self._held[at:]
            form = self._form
            if self._is_held and form is not None and opening == form.opening:
                self._start(opening, block, form)
            else:
                self._blank = self._held[len(before) : at]
                self._held, self._block_of = block, opening
                self._looked = self._ends = 0
            return self._say(before)
        keep = max(overlap(self._held, opening) for opening in self._openings)
        certain = self._held[: len(self._held) - keep].rstrip()
        if not certain:
            return None
        self._held = self._held[len(certain) :]
        return self._say(certain) or None

    def _start(self, opening: str, block: str, form: CallFormat) -> None:
        """A block begins that is read while it is written."""
        self._stream = CallStream(form, self._schemas, opening)
        self._raw, self._begun = "", False
        self._held = block.removeprefix(opening)
        self._opened = opening

    def _go_on(self, stream: CallStream) -> list[ReplyPart] | None:
        text, self._held = self._held, ""
        if not text:
            return None
        if not self._begun:
            self._raw += text
        parts = [_part(one) for one in joined(stream.push(text))]
        self._begun = self._begun or bool(parts)
        if stream.done:
            self._stream = None
            if self._begun:
                self._held, self._called, self._said = stream.rest, True, False
            else:  # no call after all
                return self._say(self._opened + self._raw)
        return parts

    def _block(self) -> list[ReplyPart] | None:
        """The calls of a block that ends, or its text where it is none; None: more has to come."""
        assert self._block_of is not None
        if self._block_of == FENCE[0] and not may_be_fenced(self._held[:MAX_HEAD], self._schemas):
            return self._say(self._code())
        closing = self._openings[self._block_of]
        at = self._held.find(closing, self._looked) if closing else -1
        if at < 0:
            self._looked = max(len(self._held) - len(closing) + 1, 0)
            return None
        stop = self._looked = at + len(closing)
        self._ends += 1
        calls = self._read(self._held[:stop])
        if not calls and self._ends < MAX_ENDS:
            return []
        if not calls and self._block_of == FENCE[0]:
            return self._say(self._code())
        block, self._held, self._block_of = self._held[:stop], self._held[stop:], None
        return calls or self._say(block)

    def _code(self) -> str:
        """The beginning of a block of code that is no call; what is in it is read as any text is."""
        begun, self._held = self._blank + FENCE[0], self._held[len(FENCE[0]) :]
        self._block_of = None
        return begun

    def _read(self, block: str) -> list[ReplyPart]:
        reply = parse_tool_calls(block, self._tools, marks=(), starts_inside=False, form=self._form)
        self._called = self._called or bool(reply.calls)
        parts = [ReplyPart(name=one.name, arguments=one.arguments_text, call=one) for one in reply.calls]
        return parts + self._say(reply.content) if parts else []

    def _say(self, text: str) -> list[ReplyPart]:
        if self._called:
            text = text.lstrip()
            self._called = not text
        self._said = self._said or bool(text)
        return [ReplyPart(content=text)] if text else []


class _CallsOrText:
    """An answer that is calls, or a text, as its beginning tells: until then it is held back."""

    def __init__(self, blocks: _CallBlocks, form: CallFormat, schemas: Mapping[str, Any]) -> None:
        self._blocks, self._form, self._schemas = blocks, form, schemas
        self._held, self._are_calls = "", None if schemas else False
        self._cut = False

    def push(self, text: str) -> list[ReplyPart]:
        if self._are_calls is None:
            self._held += text
            self._are_calls = begins_as_calls(self._held, self._form, self._schemas)
            if self._are_calls is None:
                return []
            text = self._held
        return self._blocks.push(text) if self._are_calls else [ReplyPart(content=text)]

    def finish(self, cut: bool) -> list[ReplyPart]:
        if self._are_calls is None:
            mark, text = self._form.opening, self._held.strip()
            if cut and text and mark.startswith(text):
                self._cut = True
                return []
            return [ReplyPart(content=self._held)] if self._held else []
        return self._blocks.finish(cut) if self._are_calls else []

    @property
    def cut_call(self) -> bool:
        return self._cut or self._blocks.cut_call


def begins_as_calls(text: str, form: CallFormat, names: Iterable[str]) -> bool | None:
    """Whether the text of an answer that is calls of these tools, or holds none, is calls; None: it is too
    short to tell."""
    said, heads = text.lstrip(), form.heads(names)
    if said.startswith(tuple(heads)):
        return True
    return None if any(head.startswith(said) for head in heads) else False


def _part(part: CallPart) -> ReplyPart:
    return ReplyPart(name=part.name, arguments=part.arguments, call=part.call)
