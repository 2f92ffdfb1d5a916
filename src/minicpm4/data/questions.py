"""Conversations out of documentation: each heading, term or function of a page asks, and the first paragraph
below it answers. Plain, but real text that the page's own authors wrote for that very heading: enough to
teach a small model the form of a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from minicpm4.data.html import MAX_DEPTH, VOID
from minicpm4.data.meaning import RENDERED, Attributes, MeaningParser
from minicpm4.data.sources import UNDECODED, Conversation, Skip
from minicpm4.errors import ConfigError
from minicpm4.files import UndecodableError, decode_page, read_bytes

__all__ = ["page_conversations"]

MAX_PAGE = 1 << 24  # bytes
_REMEDY = f"a page of questions can be read, and has at most {MAX_PAGE:,} bytes"
ASKED = (3, 80)  # characters of a heading that makes a question
ANSWERED = (40, 700)  # characters of an answer
_HEADINGS = ("h1", "h2", "h3", "h4", "dt")
_SKIPPED = frozenset(
    ("script", "style", "nav", "header", "footer", "aside", "form", "table", "pre", "svg", "mjx-math")
)
# What heads a part of a page without being a subject.
_NO_SUBJECT = re.compile(
    r"^(see also|note|notes|example|examples|contents|index|introduction|overview|summary|table of contents|"
    r"warning|description|synopsis|name|references|license|copyright|background|new features|what.s new.*)$",
    re.IGNORECASE,
)
_KINDS = re.compile(r"^(class|exception|async|classmethod|staticmethod|abstractmethod|property)\s+")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
# A letter alone is a word ("C API"), with digits a name ("V8 engine", "X.509 certificates"): it numbers a
# part only with a dot after it, or with short numbers after dots.
_NUMBER = re.compile(r"^(?:[A-Z][0-9]*(?:(?:\.[0-9]{1,2})+\.?|\.)|[0-9]+(?:\.[0-9]+)*\.?)\s+")


def page_conversations(file: Path, skip: Skip) -> Iterator[Conversation]:
    """The questions that the page in ``file`` answers; files that are no HTML have none. ``skip`` is told of
    a page that does not decode.

    Raises ConfigError for a page that is too long or cannot be read."""
    if not file.name.endswith((".html", ".htm", ".xhtml")):
        return
    reader = _Pairs()
    try:
        reader.feed(decode_page(read_bytes(file, MAX_PAGE, ConfigError, _REMEDY)))
    except UndecodableError as error:
        skip(UNDECODED, f"{file} is {error}")
        return
    reader.close()
    for number, (tag, head, answer) in enumerate(reader.pairs):
        question = _question(tag, head)
        if question and ANSWERED[0] <= len(answer) <= ANSWERED[1]:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield Conversation(f"{file}, question {number}", messages)


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


class _Pairs(MeaningParser):
    """Collects (tag, heading, first paragraph after it)."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[str, str, str]] = []
        self._skipping = 0
        self._head: tuple[str, str] | None = None
        self._inside: str | None = None
        self._text: list[str] = []
        self._drawn: list[str] = []  # open elements of a formula that a script drew

    def start(self, tag: str, given: Attributes) -> None:
        if self._drawn or not RENDERED.isdisjoint((dict(given).get("class") or "").split()):
            self._drawn += [tag] if len(self._drawn) < MAX_DEPTH and tag not in VOID else []
            return
        if tag in _SKIPPED:
            self._skipping = min(self._skipping + 1, MAX_DEPTH)
        elif tag in _HEADINGS:
            self._inside, self._text, self._head = tag, [], None
        elif tag == "p" and self._head is not None and not self._skipping:
            self._inside, self._text = "p", []

    def end(self, tag: str) -> None:
        if self._drawn:
            if tag in self._drawn:
                del self._drawn[len(self._drawn) - 1 - self._drawn[::-1].index(tag) :]
                return
            self._drawn.clear()  # it never ended
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

    def words(self, data: str) -> None:
        if self._drawn:
            return
        if self._inside is not None and not self._skipping:
            self._text.append(data)
