"""Telling a model's reasoning (``<think>…</think>``) from its answer, whole or as it streams."""

from __future__ import annotations

from typing import Literal

__all__ = ["ReasoningSplitter", "prompt_opens_reasoning", "split_reasoning"]

Kind = Literal["reasoning", "content"]
Piece = tuple[Kind, str]

# MiniCPM4's tool turns write their thought between tags of their own.
_TAGS = (("<think>", "</think>"), ("<|thought_start|>", "<|thought_end|>"))
_MAX_BLANK = 256  # white space held back while it may belong to a tag


class ReasoningSplitter:
    """Splits streamed text into ("reasoning", text) and ("content", text) pieces.

    Reasoning is a tagged block at the very beginning; tags later in the text are content. White
    space just inside the tags and after the block is dropped. The result does not depend on where
    the text was cut into pieces.

    ``enable_thinking``: as given to the chat template. False: everything is content, only an empty
    tagged block at the beginning is dropped. ``starts_inside``: the prompt has opened the block
    already (``prompt_opens_reasoning``).
    """

    def __init__(self, *, enable_thinking: bool | None = None, starts_inside: bool = False) -> None:
        self._thinks = enable_thinking is not False
        self._close = _TAGS[0][1]
        self._state: Literal["start", "inside", "after", "content"] = "start"
        if starts_inside and self._thinks:
            self._state = "inside"
        self._said = False  # whether any reasoning was emitted
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        """Take more text; return the pieces that are certain, none empty."""
        self._held += text
        pieces: list[Piece] = []
        state = None
        while self._held and state != self._state:
            state = self._state
            piece = self._advance()
            if piece and piece[1]:
                pieces.append(piece)
        return pieces

    def finish(self) -> list[Piece]:
        """No more text will come: return what was held back."""
        held, self._held = self._held, ""
        if self._state == "inside":
            held = held.rstrip() if self._said else held.strip()
            return [("reasoning", held)] if held else []
        return [("content", held)] if held and self._state != "after" else []

    def _advance(self) -> Piece | None:
        if self._state == "start":
            return self._at_start()
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
        for opening, closing in _TAGS:
            if text.startswith(opening):
                inner = text[len(opening) :]
                if self._thinks:
                    self._state, self._close, self._held = "inside", closing, inner
                    return None
                if inner.lstrip().startswith(closing):
                    self._state, self._held = "after", inner.lstrip()[len(closing) :]
                    return None
                undecided = closing.startswith(inner.lstrip())
            else:
                undecided = opening.startswith(text)
            if undecided and len(self._held) <= _MAX_BLANK:
                return None
        self._state = "content"
        held, self._held = self._held, ""
        return "content", held

    def _inside(self) -> Piece | None:
        if not self._said:
            self._held = self._held.lstrip()
        end = self._held.find(self._close)
        if end >= 0:
            text = self._held[:end]
            blank = _trailing_blank(text)
            self._state, self._held = "after", self._held[end + len(self._close) :]
            self._said = True
            return "reasoning", text[: len(text) - blank]
        keep = _overlap(self._held, self._close)
        keep += _trailing_blank(self._held[: len(self._held) - keep])
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._said = self._said or bool(certain)
        return "reasoning", certain


def _trailing_blank(text: str) -> int:
    tail = text[-_MAX_BLANK:]
    return len(tail) - len(tail.rstrip())


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def split_reasoning(
    text: str, *, enable_thinking: bool | None = None, starts_inside: bool = False
) -> tuple[str, str]:
    """(reasoning, answer) of a whole reply; the first is empty when there is none."""
    splitter = ReasoningSplitter(enable_thinking=enable_thinking, starts_inside=starts_inside)
    pieces = splitter.push(text) + splitter.finish()
    reasoning, content = (
        "".join(part for kind, part in pieces if kind == wanted) for wanted in ("reasoning", "content")
    )
    return reasoning, content


def prompt_opens_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends inside a reasoning block that the reply has to close."""
    tail = prompt[-_MAX_BLANK:].rstrip()
    return any(tail.endswith(opening) for opening, _ in _TAGS)
