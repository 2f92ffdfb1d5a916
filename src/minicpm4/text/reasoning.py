"""Telling a model's reasoning (``<think>…</think>``) from its answer, whole or as it streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from minicpm4.errors import Minicpm4Error
from minicpm4.text.template import ChatTemplate

__all__ = [
    "MARKS",
    "Marks",
    "ReasoningSplitter",
    "marks_of",
    "overlap",
    "prompt_opens_reasoning",
    "split_reasoning",
    "unasked_reasoning",
]

Kind = Literal["reasoning", "content"]
Piece = tuple[Kind, str]
Marks = tuple[str, str]

MARKS: tuple[Marks, ...] = (
    ("<think>", "</think>"),
    ("<|thought_start|>", "<|thought_end|>"),  # MiniCPM4's tool turns
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratch_pad>", "</scratch_pad>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
)
"""What opens and closes a block of reasoning, as models write it."""
_MAX_BLANK = 256  # white space held back while it may belong to a tag
_PROBE = ("thought-7f3a", "answer-7f3a")
_MAX_MARK = 64  # characters: what a template puts around a thought beyond that is no mark


class ReasoningSplitter:
    """Splits streamed text into ("reasoning", text) and ("content", text) pieces.

    Reasoning is a tagged block at the very beginning; tags later in the text are content. White
    space just inside the tags and after the block is dropped. The result does not depend on where
    the text was cut into pieces.

    ``enable_thinking``: as given to the chat template. False: everything is content, only an empty
    tagged block at the beginning is dropped. ``starts_inside``: the prompt has opened the block
    already (``prompt_opens_reasoning``). ``marks``: of the model, where it has others than usual.
    """

    def __init__(
        self,
        *,
        enable_thinking: bool | None = None,
        starts_inside: bool = False,
        marks: Sequence[Marks] = MARKS,
    ) -> None:
        self._thinks = enable_thinking is not False
        self._marks = tuple(marks)
        self._closing = tuple(closing for _, closing in marks)  # any, until one was opened here
        self._state: Literal["start", "inside", "after", "content"] = "start"
        if starts_inside and self._thinks:
            self._state = "inside"
        self._said = False  # whether any reasoning was emitted
        self._held = ""

    @property
    def thinks(self) -> bool | None:
        """Whether the text so far ends within the block; None: it is not certain yet."""
        return None if self._state == "start" else self._state == "inside"

    def push(self, text: str) -> list[Piece]:
        """Take more text; return the pieces that are certain, none empty."""
        pieces: list[Piece] = []
        if self._state == "start":
            text = self._begin(text)
        self._held += text
        state = None
        while self._held and state != self._state:
            state = self._state
            piece = self._advance()
            if piece and piece[1]:
                pieces.append(piece)
        return pieces

    def _begin(self, text: str) -> str:
        """Take ``text`` while it is not certain what it begins with; return the rest. A character at a time,
        so that how much white space is too much does not depend on how text is cut."""
        for at, char in enumerate(text, 1):
            self._held += char
            piece = self._at_start()
            if piece is not None:  # content, and so is all that follows
                self._held = piece[1]
            if self._state != "start":
                return text[at:]
        return ""

    def finish(self) -> list[Piece]:
        """No more text will come: return what was held back."""
        held, self._held = self._held, ""
        if self._state == "inside":
            held = held.rstrip() if self._said else held.strip()
            return [("reasoning", held)] if held else []
        return [("content", held)] if held and self._state != "after" else []

    def _advance(self) -> Piece | None:
        if self._state == "start":
            return None
        if self._state == "inside":
            return self._inside()
        if self._state == "after":
            self._held = self._held.lstrip()
            if not self._held:
                return None
            self._state = "content"
        held, self._held = self._held, ""
        return "content", held

    def _at_start(self) -> Piece | None:
        text = self._held.lstrip()
        undecided = False
        for opening, closing in self._marks:
            if text.startswith(opening):
                inner = text[len(opening) :]
                if self._thinks:
                    self._state, self._closing, self._held = "inside", (closing,), inner
                    return None
                if inner.lstrip().startswith(closing):
                    self._state, self._held = "after", inner.lstrip()[len(closing) :]
                    return None
                undecided = undecided or closing.startswith(inner.lstrip())
            else:
                undecided = undecided or opening.startswith(text)
        if undecided and len(self._held) <= _MAX_BLANK:
            return None
        self._state = "content"
        held, self._held = self._held, ""
        return "content", held

    def _inside(self) -> Piece | None:
        if not self._said:
            self._held = self._held.lstrip()
        ends = [(end, len(mark)) for mark in self._closing if (end := self._held.find(mark)) >= 0]
        if ends:
            end, length = min(ends)
            text = self._held[:end]
            blank = _trailing_blank(text)
            self._state, self._held = "after", self._held[end + length :]
            self._said = True
            return "reasoning", text[: len(text) - blank]
        keep = max((overlap(self._held, mark) for mark in self._closing), default=0)
        keep += _trailing_blank(self._held[: len(self._held) - keep])
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._said = self._said or bool(certain)
        return "reasoning", certain


def _trailing_blank(text: str) -> int:
    tail = text[-_MAX_BLANK:]
    return len(tail) - len(tail.rstrip())


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def split_reasoning(
    text: str,
    *,
    enable_thinking: bool | None = None,
    starts_inside: bool = False,
    marks: Sequence[Marks] = MARKS,
) -> tuple[str, str]:
    """(reasoning, answer) of a whole reply; the first is empty when there is none."""
    splitter = ReasoningSplitter(enable_thinking=enable_thinking, starts_inside=starts_inside, marks=marks)
    pieces = splitter.push(text) + splitter.finish()
    reasoning, content = (
        "".join(part for kind, part in pieces if kind == wanted) for wanted in ("reasoning", "content")
    )
    return reasoning, content


def prompt_opens_reasoning(prompt: str, marks: Sequence[Marks] = MARKS) -> bool:
    """Whether a rendered prompt ends inside a reasoning block that the reply has to close."""
    tail = prompt[-_MAX_BLANK:].rstrip()
    return any(tail.endswith(opening) for opening, _ in marks)


def marks_of(template: ChatTemplate) -> tuple[Marks, ...]:
    """``MARKS`` and, before them, those that ``template`` writes around the thought of an answer."""
    question, (thought, answer) = {"role": "user", "content": "q"}, _PROBE
    told = {"role": "assistant", "content": answer, "reasoning_content": thought, "reasoning": thought}
    for thinks in (None, True):
        try:
            text = template.render([question, told], add_generation_prompt=False, enable_thinking=thinks)
            prompt = template.render([question], enable_thinking=thinks)
        except Minicpm4Error:
            continue
        start, end = text.find(thought), text.rfind(answer)
        if not 0 <= start < end:
            continue
        before = text[:start].rstrip()
        opening = before.removeprefix(prompt.rstrip()).strip()
        if not opening or opening == before:  # the prompt opens it, or goes another way: the line tells
            opening = before.rpartition("\n")[2].strip()
        closing = text[start + len(thought) : end].strip()
        if opening and closing and len(opening) <= _MAX_MARK and len(closing) <= _MAX_MARK:
            found = (opening, closing)
            return MARKS if found in MARKS else (found, *MARKS)
    return MARKS


def unasked_reasoning(template: ChatTemplate, marks: Sequence[Marks] = MARKS) -> tuple[str, Marks] | None:
    """How ``template`` ends a prompt whose answer may open a block of reasoning by itself, and its marks:
    told not to think, the template closes an empty block there. None: no answer of this model does."""
    question = {"role": "user", "content": _PROBE[0]}
    try:
        prompt, told = (template.render([question], enable_thinking=thinks) for thinks in (None, False))
    except Minicpm4Error:
        return None
    end = prompt.rpartition(_PROBE[0])[2]
    for opening, closing in marks:
        before, empty, after = told.rpartition(opening)
        if empty and not after.replace(closing, "", 1).strip() and closing in after:
            return (end, (opening, closing)) if end and before.rstrip().endswith(end.rstrip()) else None
    return None
