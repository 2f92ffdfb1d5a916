"""Text of HTML pages of documentation: what a reader reads, without menus, sidebars and scripts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["html_text"]

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
# Menus that are no <nav>: of Sphinx, DocBook, Publican, mdBook.
_CHROME = re.compile(
    r"\b(sphinxsidebar|related|headerlink|navheader|navfooter|docnav|breadcrumbs?|sidebar|toctree-wrapper|"
    r"toc|footer|menu|skip-link)\b"
)
_MAIN = re.compile(r"""<main\b|\brole=["']?main\b""", re.IGNORECASE)


def html_text(page: str) -> str:
    """The text of ``page``: a blank line between paragraphs, a line for each list item or table row,
    preformatted text as it is. Where the page marks its main part, only that."""
    reader = _Reader(only_main=_MAIN.search(page) is not None)
    reader.feed(page)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    def __init__(self, *, only_main: bool) -> None:
        super().__init__(convert_charrefs=True)
        self._only_main = only_main
        # Of each open element: its tag, whether it is hidden, in the main part, preformatted.
        self._open: list[tuple[str, bool, bool, bool]] = []
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self._parts.append("\n")
        if tag in _VOID:
            return
        if tag in ("p", "li", "dt", "dd", "tr"):
            self._close_open(tag)
        given = dict(attrs)
        _, hidden, inside, pre = self._open[-1] if self._open else ("", False, not self._only_main, False)
        role = given.get("role") or ""
        hidden = hidden or tag in _HIDDEN or role in ("navigation", "search", "banner", "contentinfo")
        hidden = hidden or _CHROME.search(given.get("class") or "") is not None
        inside = inside or tag == "main" or role == "main"
        if len(self._open) < MAX_DEPTH:
            self._open.append((tag, hidden, inside, pre or tag == "pre"))
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self._open) - 1, -1, -1):
            if self._open[depth][0] == tag:
                self._break(tag)
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        _, hidden, inside, pre = self._open[-1] if self._open else ("", False, not self._only_main, False)
        if not hidden and inside:
            self._parts.append(data if pre else re.sub(r"\s+", " ", data))

    def _close_open(self, tag: str) -> None:
        # <p> and the like need no end tag: the next one ends it.
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def _break(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._parts.append("\n" if tag in _LINES else "\n\n")
        elif tag in ("td", "th"):
            self._parts.append(" ")

    def text(self) -> str:
        lines = [line.rstrip() for line in "".join(self._parts).replace("\u00b6", "").split("\n")]
        # Outside <pre> a line begins with at most one blank, left by the white space before its text.
        lines = [line[1:] if line.startswith(" ") and not line.startswith("  ") else line for line in lines]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
