"""Conversations out of documentation: each heading, term or function of a page asks, and the first paragraph
below it answers. Plain, but real text that the page's own authors wrote for that very heading: enough to
teach a small model the form of a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from minicpm4.data.html import MAX_DEPTH
from minicpm4.errors import ConfigError

__all__ = ["page_conversations"]

MAX_PAGE = 1 << 24  # bytes
ASKED = (3, 80)  # characters of a heading that makes a question
ANSWERED = (40, 700)  # characters of an answer
_HEADINGS = ("h1", "h2", "h3", "h4", "dt")
_SKIPPED = frozenset(
    ("script", "style", "nav", "header", "footer", "aside", "form", "table", "pre", "svg", "math")
)
# What heads a part of a page without being a subject.
_NO_SUBJECT = re.compile(
    r"^(see also|note|notes|example|examples|contents|index|introduction|overview|summary|table of contents|"
    r"warning|description|synopsis|name|references|license|copyright|background|new features|what.s new.*)$",
    re.IGNORECASE,
)
_KINDS = re.compile(r"^(class|exception|async|classmethod|staticmethod|abstractmethod|property)\s+")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_NUMBER = re.compile(r"^[0-9A-Z]?[0-9]*(\.[0-9]+)*\.?\s+")


def page_conversations(file: Path) -> Iterator[tuple[str, Any]]:
    """(where, messages) of the questions that the page in ``file`` answers; files that are no HTML have none.

    Raises ConfigError for a page that is too long."""
    if not file.name.endswith((".html", ".htm", ".xhtml")):
        return
    size = file.stat().st_size
    if size > MAX_PAGE:
        raise ConfigError(f"{file} has {size:,} bytes", f"a page of questions has at most {MAX_PAGE:,}")
    reader = _Pairs()
    reader.feed(file.read_bytes().decode("utf-8", "replace"))
    reader.close()
    for number, (tag, head, answer) in enumerate(reader.pairs):
        question = _question(tag, head)
        if question and ANSWERED[0] <= len(answer) <= ANSWERED[1]:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield f"{file}, question {number}", messages


def _question(tag: str, head: str) -> str:
    """What ``head`` asks; empty: nothing."""
    subject = _NUMBER.sub("", head).strip(" \u00b6:.")
    if subject.endswith("?"):
        return subject
    if tag == "dt":
        subject = subject.partition("(")[0].strip()
        subject = _KINDS.sub("", subject)
        if not _NAME.fullmatch(subject):
            return ""
    right_length = ASKED[0] <= len(subject) <= ASKED[1]
    if not right_length or not (subject[0].isalpha() or subject[0] == "_") or _NO_SUBJECT.match(subject):
        return ""
    return f"What is {subject}?" if tag != "dt" else f"What does {subject} do?"


class _Pairs(HTMLParser):
    """Collects (tag, heading, first paragraph after it)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pairs: list[tuple[str, str, str]] = []
        self._skipping = 0
        self._head: tuple[str, str] | None = None
        self._inside: str | None = None
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skipping = min(self._skipping + 1, MAX_DEPTH)
        elif tag in _HEADINGS:
            self._inside, self._text, self._head = tag, [], None
        elif tag == "p" and self._head is not None and not self._skipping:
            self._inside, self._text = "p", []

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skipping = max(self._skipping - 1, 0)
        elif tag == self._inside:
            text = " ".join("".join(self._text).split())
            if tag != "p":
                self._head = (tag, text)
            elif self._head is not None:
                self.pairs.append((*self._head, text))
                self._head = None
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None and not self._skipping:
            self._text.append(data)
