"""Calls with what their reader takes beside Python (``minicpm4.text.pycalls`` names it) written as Python."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\f]+)|(?P<break>\r\n?|\n)|(?P<skip>\#[^\r\n]*|\\(?:\r\n?|\n))
    |(?P<prefix>(?<!\w)[A-Za-z]{1,2})?(?P<quote>\"{3}|'{3}|["'])(?P<inner>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)
    |(?P<number>\.?\d[\w.]*)|(?P<word>[^\W\d][\w·]*(?:-+[\w·]+)*(?:\.[^\W\d][\w·]*(?:-+[\w·]+)*)*)|(?P<sign>.)""",
    re.DOTALL | re.VERBOSE,
)
_RAW_BREAK = re.compile(r"(\\(?:\r\n|.))|([\r\n])", re.DOTALL)
_JSON_WORDS = {"true": "True", "false": "False", "null": "None"}
_HYPHEN, _DOT, _WORD = "_hyphen_", "_dot_", "_word_"


def in_python(source: str) -> Iterator[str]:
    """``source`` with the additions alone replaced, then without the last of two parentheses at its end."""
    found = list(_TOKEN.finditer(source))
    seen = [i for i, token in enumerate(found) if token.lastgroup not in ("blank", "break", "skip")]
    texts = [_string(token) if token["quote"] else token[0] for token in found]
    for at, i in enumerate(seen):
        if found[i]["word"]:
            texts[i] = _word(texts[i], "".join(texts[after] for after in seen[at + 1 : at + 2]))
    depth, begins = 0, True
    for i, token in enumerate(found):
        depth += (token[0] in "([{") - (token[0] in ")]}") if token["sign"] else 0
        if begins and token["blank"]:
            texts[i] = ""
        begins = depth <= 0 and bool(token["break"] or (begins and (token["blank"] or token["skip"])))
    yield "".join(texts)
    if seen and (texts[seen[0]], texts[seen[-1]]) == ("[", "]"):
        seen.pop()
    if [texts[i] for i in seen[-2:]] == [")", ")"]:
        texts[seen[-1]] = ""
        yield "".join(texts)


def as_written(name: str) -> str:
    """The name that ``in_python`` replaced."""
    return name.replace(_HYPHEN, "-").replace(_DOT, ".").replace(_WORD, "")


def _word(text: str, following: str) -> str:
    if following not in ("(", "="):
        return _JSON_WORDS.get(text, text)
    parts = [f"{part}{_WORD}" if keyword.iskeyword(part) else part for part in text.split(".")]
    return (_DOT if following == "=" else ".").join(parts).replace("-", _HYPHEN)


def _string(token: re.Match[str]) -> str:
    """With line breaks as escapes, in strings for which they mean the same."""
    if len(token["quote"]) == 3 or (token["prefix"] or "").lower() not in ("", "u"):
        return token[0]
    inner = _RAW_BREAK.sub(lambda m: m[1] or {"\n": "\\n", "\r": "\\r"}[m[2]], token["inner"])
    return f"{token['prefix'] or ''}{token['quote']}{inner}{token['quote']}"
