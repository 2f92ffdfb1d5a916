"""Text of HTML pages of documentation: what a reader reads, without menus, sidebars and scripts. Raised and
lowered text and formulas keep their meaning (``data/meaning.py``)."""

from __future__ import annotations

import re
from collections import Counter

from minicpm4.data.meaning import BLOCKS, RENDERED, Attributes, MeaningParser

__all__ = ["VERSION", "VOID", "html_text"]

VERSION = 3  # of what is taken from a page; in the filter hash of sets made from pages
MAX_DEPTH = 10_000
# ruff: noqa: SIM905  (words in a row are read faster than a column of strings)
VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
_HIDDEN = frozenset(
    "script style nav head header footer aside form button svg mjx-math template noscript".split()
)
_LINES = frozenset("li tr dt dd ul ol table div".split())  # blocks with no blank line around them
_ITEMS = frozenset("li dt dd td th".split())  # a paragraph at the start or end of one adds no blank line
_OPTIONAL_END = frozenset("p li dt dd tr td th".split())
_IN_HEAD = frozenset("head title base link meta style script noscript template basefont bgsound".split())
_ROLES = frozenset("navigation search banner contentinfo".split())
# Menus that are no <nav>: of Sphinx, DocBook, Publican, mdBook, SQLite.
_CHROME = frozenset(
    "sphinxsidebar related headerlink navheader navfooter docnav breadcrumb breadcrumbs sidebar "
    "toctree-wrapper toc fancy_toc footer menu skip-link tagline".split()
)
_NOT_READ = _CHROME | RENDERED
_MAIN = re.compile(r"""<main\b|\brole=["']?main\b""", re.IGNORECASE)
_NOTHING, _BLANK, _LINE, _PARAGRAPH = range(4)
_BREAKS = ("", " ", "\n", "\n\n")


def html_text(page: str) -> str:
    """The text of ``page``: a blank line between paragraphs, a line for each list item or table row,
    preformatted text as it is. Where the page marks its main part, only that."""
    marked = _MAIN.search(page) is not None
    return (_read(page, only_main=True) if marked else "") or _read(page, only_main=False)


def _read(page: str, *, only_main: bool) -> str:
    reader = _Reader(only_main=only_main)
    reader.feed(page)
    reader.close()
    return reader.text()


class _Reader(MeaningParser):
    def __init__(self, *, only_main: bool) -> None:
        super().__init__()
        # Of each open element: its tag, whether it is hidden, in the main part, preformatted.
        self._open: list[tuple[str, bool, bool, bool]] = [("", False, not only_main, False)]
        self._count: Counter[str] = Counter()  # of the open ones: a stray end tag costs no search
        self._parts: list[str] = []
        self._break = _NOTHING  # what goes before the next text
        self._fresh = ""  # the item or <pre> that has just begun

    def start(self, tag: str, given: Attributes) -> None:
        if self._count["head"] and tag not in _IN_HEAD and not self._count["noscript"]:
            self.end("head")  # whose end may be left out
        if tag in VOID:
            self._raise(_LINE if tag == "br" else _level(tag))
            return
        if tag in _OPTIONAL_END and self._open[-1][0] == tag:
            self.end(tag)  # the next one ends it
        about = dict(given)
        _, hidden, inside, pre = self._open[-1]
        role, classes = about.get("role") or "", (about.get("class") or "").split()
        # Of a whole page such a class only says that it has a menu.
        chrome = tag not in ("html", "body", "main") and not _NOT_READ.isdisjoint(classes)
        hidden = hidden or tag in _HIDDEN or role in _ROLES or chrome
        if len(self._open) <= MAX_DEPTH:
            inside = inside or tag == "main" or role == "main"
            self._open.append((tag, hidden, inside, pre or tag == "pre"))
            self._count[tag] += 1
        if not (self._fresh in _ITEMS and tag in ("p", "div")):
            self._raise(_level(tag))
        self._fresh = tag if tag in _ITEMS or tag == "pre" else self._fresh

    def end(self, tag: str) -> None:
        if not self._count[tag]:
            return
        closed = ""
        while closed != tag:
            closed = self._open.pop()[0]
            self._count[closed] -= 1
        # The last paragraph of an item ends with it.
        self._break = min(self._break, _level(tag)) if tag in _ITEMS else self._break
        self._raise(_level(tag))

    def words(self, data: str) -> None:
        if self._open[-1][0] == "head" and data.strip():
            self.end("head")
        _, hidden, inside, pre = self._open[-1]
        if hidden or not inside or data.strip() == "\u00b6":
            return
        if pre:
            self._write(data.removeprefix("\n") if self._fresh == "pre" else data)
            return
        words = data.split()
        if not words or data[0].isspace():
            self._raise(_BLANK)
        if words:
            self._write(" ".join(words))
            self._break = _BLANK if data[-1].isspace() else _NOTHING

    def _raise(self, level: int) -> None:
        self._break = max(self._break, level)

    def _write(self, text: str) -> None:
        while self._break >= _LINE and self._parts:  # blanks and lines that <pre> ends with
            if last := self._parts[-1].rstrip():
                self._parts[-1] = last
                break
            self._parts.pop()
        self._parts += [_BREAKS[self._break] if self._parts else "", text]
        self._break, self._fresh = _NOTHING, ""

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in "".join(self._parts).split("\n")).strip("\n")


def _level(tag: str) -> int:
    if tag in ("td", "th"):
        return _BLANK
    return _NOTHING if tag not in BLOCKS else _LINE if tag in _LINES else _PARAGRAPH
