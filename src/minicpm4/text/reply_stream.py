"""A reply taken apart while it is written: thought, text, and calls of tools as soon as each block ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4.text.reasoning import Marks, ReasoningSplitter, overlap
from minicpm4.text.toolcalls import CALL_MARKS, ToolCall, parse_tool_calls

__all__ = ["ReplyPart", "ReplyStream"]

MAX_ENDS = 8  # closing marks that may stand inside arguments before a block is taken for text


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyPart:
    """What has become certain: some of the thought, some of the text, or a call."""

    reasoning: str = ""
    content: str = ""
    call: ToolCall | None = None


class ReplyStream:
    """Takes the text of one reply, in pieces, and gives its parts; the result does not depend on the pieces.

    ``tools``: those that were offered; None: blocks of calls are text. ``hidden``: spellings that are left
    out. The rest is as in ``ReasoningSplitter``.
    """

    def __init__(
        self,
        *,
        marks: Sequence[Marks],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        starts_inside: bool = False,
        hidden: Sequence[str] = (),
    ) -> None:
        self._splitter = ReasoningSplitter(
            enable_thinking=enable_thinking, starts_inside=starts_inside, marks=marks
        )
        self._blocks = None if tools is None else _CallBlocks(tools)
        self._hidden = tuple(hidden)

    def push(self, text: str) -> list[ReplyPart]:
        """Take more text; return what is certain by now."""
        for spelling in self._hidden:
            text = text.replace(spelling, "")
        return self._parts(self._splitter.push(text))

    def finish(self) -> list[ReplyPart]:
        """No more text will come: return what was held back."""
        parts = self._parts(self._splitter.finish())
        return parts if self._blocks is None else parts + self._blocks.finish()

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

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._tools = tools
        self._held = ""
        self._closing = ""  # the mark that ends the block which ``_held`` begins with
        self._looked = 0  # how far it was looked for
        self._ends = 0
        self._called = False

    def push(self, text: str) -> list[ReplyPart]:
        self._held += text
        parts: list[ReplyPart] = []
        while (found := self._block() if self._closing else self._text()) is not None:
            parts += found
        return parts

    def finish(self) -> list[ReplyPart]:
        parts = []
        while self._closing:  # cut off, or without its closing mark
            calls = self._read(self._held)
            text, self._held, self._closing = self._held, "", ""
            if calls:
                return calls
            parts += self._say(text)
        if self._held.strip():
            parts += self._say(self._held)
        self._held = ""
        return parts

    def _text(self) -> list[ReplyPart] | None:
        found = [(at, pair) for pair in CALL_MARKS if (at := self._held.find(pair[0])) >= 0]
        if found:
            at, (_, self._closing) = min(found)
            before, self._held = self._held[:at].rstrip(), self._held[at:]
            self._looked = self._ends = 0
            return self._say(before)
        keep = max(overlap(self._held, opening) for opening, _ in CALL_MARKS)
        certain = self._held[: len(self._held) - keep].rstrip()
        if not certain:
            return None
        self._held = self._held[len(certain) :]
        return self._say(certain) or None

    def _block(self) -> list[ReplyPart] | None:
        """The calls of a block that ends, or its text where it is none; None: more has to come."""
        at = self._held.find(self._closing, self._looked)
        if at < 0:
            self._looked = max(len(self._held) - len(self._closing) + 1, 0)
            return None
        stop = self._looked = at + len(self._closing)
        self._ends += 1
        calls = self._read(self._held[:stop])
        if not calls and self._ends < MAX_ENDS:
            return []
        block, self._held, self._closing = self._held[:stop], self._held[stop:], ""
        return calls or self._say(block)

    def _read(self, block: str) -> list[ReplyPart]:
        calls = parse_tool_calls(block, self._tools, marks=(), starts_inside=False).calls
        self._called = self._called or bool(calls)
        return [ReplyPart(call=call) for call in calls]

    def _say(self, text: str) -> list[ReplyPart]:
        if self._called:
            text = text.lstrip()
            self._called = not text
        return [ReplyPart(content=text)] if text else []
