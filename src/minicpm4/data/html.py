"""Text of HTML pages of documentation: what a reader reads, without menus, sidebars and scripts."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

__all__ = ["VERSION", "html_text"]

VERSION = 1  # of what is taken from a page; in the filter hash of sets made from pages
MAX_DEPTH = 10_000
# ruff: noqa: SIM905  (words in a row are read faster than a column of strings)
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
_HIDDEN = frozenset(
    "script style nav head header footer aside form button svg math template noscript".split()
)
_BLOCKS = frozenset(
    "address article blockquote body dd div dl dt fieldset figure h1 h2 h3 h4 h5 h6 hr li main ol p pre "
    "section table tr ul".split()
)
_LINES = frozenset("li tr dt dd ul ol table div".split())  # blocks with no blank line around them
_ITEMS = frozenset("li dt dd td th".split())  # a paragraph at the start or end of one adds no blank line
_OPTIONAL_END = frozenset("p li dt dd tr td th".split())
_ROLES = frozenset("navigation search banner contentinfo".split())
# Menus that are no <nav>: of Sphinx, DocBook, Publican, mdBook, SQLite.
_CHROME = frozenset(
    "sphinxsidebar related headerlink navheader navfooter docnav breadcrumb breadcrumbs sidebar "
    "toctree-wrapper toc fancy_toc footer menu skip-link tagline".split()
)
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


class _Reader(HTMLParser):
    def __init__(self, *, only_main: bool) -> None:
        super().__init__(convert_charrefs=True)
        # Of each open element: its tag, whether it is hidden, in the main part, preformatted.
        self._open: list[tuple[str, bool, bool, bool]] = [("", False, not only_main, False)]
        self._count: Counter[str] = Counter()  # of the open ones: a stray end tag costs no search
        self._parts: list[str] = []
        self._break = _NOTHING  # what goes before the next text
        self._fresh = ""  # the item or <pre> that has just begun

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self._raise(_LINE if tag == "br" else _level(tag))
            return
        if tag in _OPTIONAL_END and self._open[-1][0] == tag:
            self.handle_endtag(tag)  # the next one ends it
        given = dict(attrs)
        _, hidden, inside, pre = self._open[-1]
        role, classes = given.get("role") or "", (given.get("class") or "").split()
        # Of a whole page such a class only says that it has a menu.
        chrome = tag not in ("html", "body", "main") and not _CHROME.isdisjoint(classes)
        hidden = hidden or tag in _HIDDEN or role in _ROLES or chrome
        if len(self._open) <= MAX_DEPTH:
            inside = inside or tag == "main" or role == "main"
            self._open.append((tag, hidden, inside, pre or tag == "pre"))
            self._count[tag] += 1
        if not (self._fresh in _ITEMS and tag in ("p", "div")):
            self._raise(_level(tag))
        self._fresh = tag if tag in _ITEMS or tag == "pre" else self._fresh

    def handle_endtag(self, tag: str) -> None:
        if not self._count[tag]:
            return
        closed = ""
        while closed != tag:
            closed = self._open.pop()[0]
            self._count[closed] -= 1
        # The last paragraph of an item ends with it.
        self._break = min(self._break, _level(tag)) if tag in _ITEMS else self._break
        self._raise(_level(tag))

    def handle_data(self, data: str) -> None:
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

    def updatepos(self, i: int, j: int) -> int:
        return j  # nobody asks where in the page something stands; counting lines takes a tenth of the time

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in "".join(self._parts).split("\n")).strip("\n")


def _level(tag: str) -> int:
    if tag in ("td", "th"):
        return _BLANK
    return _NOTHING if tag not in _BLOCKS else _LINE if tag in _LINES else _PARAGRAPH
