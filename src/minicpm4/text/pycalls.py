"""Reading lines such as ``search-files(path="/a", from=[1, -2], deep=None)`` without running them.

Python's own lexer finds the calls, so strings, brackets and comments are right; each value goes
through ``ast`` and only literals are accepted. What is read is what Python reads, or this beside it, which is
why whole calls are not simply parsed:

- names of tools and arguments with hyphens (``get-weather``, ``fs-2``), of arguments with dots, and Python's
  own words for both (``class``, ``from``, ``None``); names stay as written, ligatures too;
- JSON's ``true``, ``false`` and ``null``;
- line breaks as they are in strings between single quotation marks, but for raw ones;
- a parenthesis too many at the end, or before the ``]`` of a list;
- blanks before a call in its line.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import re
import tokenize
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

__all__ = ["PYTHON_BLANKS", "CallSyntaxError", "is_call_name", "parse_calls"]

MAX_SOURCE_CHARS = 1 << 18
MAX_CALLS = 128
MAX_NAME_CHARS = 256
MAX_DEPTH = 64

Call: TypeAlias = tuple[str, list[Any], dict[str, Any]]
_SKIPPED = {tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_WORDS = {"true": True, "false": False, "null": None}  # JSON's spellings, which models mix in
PYTHON_BLANKS = " \t\r\n\f"  # as Python has them: str.strip knows more
_NO_PYTHON = re.compile("[\\0\ud800-\udfff]")  # nowhere: not even in a comment

# Not "*+": behind one, Python 3.11.2 (Debian 12's) loses the group that follows.
_STRING_OR_COMMENT = re.compile(
    r"""\#[^\r\n]*|(?P<prefix>\b[A-Za-z]{1,2}|)(?P<quote>"{3}|'{3}|["'])"""
    r"""(?>(?:\\.|(?!(?P=quote))[^\\])*)(?P<end>(?P=quote)?)""",
    re.DOTALL,
)
_BREAKS = {"\n": "\\n", "\r": "\\r"}
_LINE_END = re.compile(r"\r\n?")
_BREAK = re.compile(r"(?P<escape>\\(?:\r\n|.))|[\r\n]", re.DOTALL)


class CallSyntaxError(ValueError):
    """The source is not a list of calls with literal arguments."""


def parse_calls(source: str) -> list[Call]:
    """(name, positional values, named values) of every call, in order; they may be a list.
    Raises CallSyntaxError."""
    if len(source) > MAX_SOURCE_CHARS:
        raise CallSyntaxError(f"{len(source)} characters of calls are over {MAX_SOURCE_CHARS}")
    if (found := _NO_PYTHON.search(source)) is not None:
        raise CallSyntaxError(f"{found[0]!r} stands in no Python")
    try:
        return _parse(source)
    except CallSyntaxError as error:
        for other in _meant(source):
            try:
                return _parse(other)
            except CallSyntaxError:
                continue
        raise error


def _meant(source: str) -> Iterator[str]:
    """What else ``source`` may mean, if it is no Python."""
    escaped = _escape_breaks(source)
    for text in [source, *([] if escaped in (None, source) else [escaped])]:
        if text is not source:
            yield text
        kept, end = text.rstrip(PYTHON_BLANKS), ""
        if kept.endswith("]"):
            kept, end = kept[:-1].rstrip(PYTHON_BLANKS), "]"
        if kept.endswith("))"):
            yield kept[:-1] + end


def _escape_breaks(source: str) -> str | None:
    """``source`` with line breaks in strings as escapes; None where a string does not end, or is a raw one
    that has some."""
    parts, at = [], 0
    while (found := _STRING_OR_COMMENT.search(source, at)) is not None:
        text = found[0]
        if found["quote"] is not None and not found["end"]:
            return None
        if found["quote"] is None or len(found["quote"]) == 3:  # a comment, or what may have line breaks
            parts += [source[at : found.start()], text]
        else:
            written = _BREAK.sub(lambda m: m["escape"] or _BREAKS[m[0]], text)
            if written != text and "r" in found["prefix"].lower():
                return None
            parts += [source[at : found.start()], written]
        at = found.end()
    return "".join([*parts, source[at:]])


def _parse(source: str) -> list[Call]:
    # As Python's parser does first of all. The lexer takes a lone \r for no blank before Python 3.12: alone
    # between parentheses it was an argument, the empty tuple.
    source = _LINE_END.sub("\n", source)
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in _SKIPPED]
    except (tokenize.TokenError, SyntaxError, ValueError) as error:
        raise CallSyntaxError(f"not Python: {error.args[0] if error.args else error}") from error
    lines = list(io.StringIO(source))  # as the lexer counts them: str.splitlines knows ten more ends of lines
    in_list = bool(tokens) and tokens[0].string == "["
    if in_list:
        tokens = [token for token in tokens[1:] if token.type != tokenize.NEWLINE]
        if not tokens or tokens.pop().string != "]":
            raise CallSyntaxError("the list of calls is not closed")
    calls: list[Call] = []
    at, before = 0, ""  # what is before, in the line: "", a "call" or its ","
    while at < len(tokens):
        token = tokens[at]
        between = "\n" if token.type == tokenize.NEWLINE else token.string
        if between in ("\n", ";", ","):
            if not before if between == ";" else between == "," and before != "call":
                raise CallSyntaxError(f"a {between!r} stands where a call should")
            if between == ";" and in_list:
                raise CallSyntaxError("a ';' stands in a list of calls")
            before = between if between == "," else ""
            at += 1
            continue
        if before == "call":
            raise CallSyntaxError(f"{token.string!r:.40} follows the call of {calls[-1][0]}")
        if len(calls) == MAX_CALLS:
            raise CallSyntaxError(f"more than {MAX_CALLS} calls")
        call, at = _parse_call(tokens, at, lines)
        calls.append(call)
        before = "call"
    return calls


def _parse_call(tokens: list[tokenize.TokenInfo], at: int, lines: list[str]) -> tuple[Call, int]:
    start = at
    while at < len(tokens) and tokens[at].string != "(" and tokens[at].type != tokenize.NEWLINE:
        at += 1
    if at == len(tokens) or tokens[at].string != "(":
        raise CallSyntaxError(f"{_joined(tokens[start:at])!r:.80} is not a call")
    name = _name(tokens[start:at])
    groups: list[list[tokenize.TokenInfo]] = [[]]
    depth, at = 1, at + 1
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if depth == 0:
                if token.string != ")":
                    raise CallSyntaxError(f"the call of {name} ends in {token.string!r}")
                break
            if depth == 1 and token.string == ",":
                groups.append([])
                continue
        groups[-1].append(token)
    if depth:
        raise CallSyntaxError(f"the call of {name} is not closed")
    return (name, *_arguments(name, groups, lines)), at


def _arguments(
    name: str, groups: list[list[tokenize.TokenInfo]], lines: list[str]
) -> tuple[list[Any], dict[str, Any]]:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    seen: set[str] = set()
    if not groups[-1]:
        groups = groups[:-1]  # no arguments, or a comma after the last
    for group in groups:
        equals = _equals_sign(group)
        if equals is None:
            if named or not group:
                raise CallSyntaxError(f"{name} has an argument without a name or value")
            positional.append(_value(group, lines))
            continue
        key = _name(group[:equals])
        if (plain := unicodedata.normalize("NFKC", key)) in seen:  # one name for Python
            raise CallSyntaxError(f"{name} has the argument {key} twice")
        seen.add(plain)
        named[key] = _value(group[equals + 1 :], lines)
    return positional, named


def _equals_sign(group: list[tokenize.TokenInfo]) -> int | None:
    for i, token in enumerate(group):
        if token.string == "=" and token.type == tokenize.OP:
            return i
        if token.type == tokenize.STRING or token.string in ("(", "[", "{"):
            return None
    return None


def _joined(tokens: list[tokenize.TokenInfo]) -> str:
    return "".join(token.string for token in tokens)


def _name(tokens: list[tokenize.TokenInfo]) -> str:
    text = _joined(tokens)
    apart = any(a.end != b.start for a, b in itertools.pairwise(tokens))
    if apart or not is_call_name(text):
        raise CallSyntaxError(f"{text!r:.80} is not a name")
    return text


def is_call_name(text: str) -> bool:
    """Whether a tool or an argument may be called so: parts between dots, each an identifier (Python's own
    words are some) in which hyphens may stand."""
    return len(text) <= MAX_NAME_CHARS and all(
        part.replace("-", "_").isidentifier() and not part.startswith("-") and not part.endswith("-")
        for part in text.split(".")
    )


def _value(tokens: list[tokenize.TokenInfo], lines: list[str]) -> Any:
    if not tokens:
        raise CallSyntaxError("an argument has no value")
    if tokens[-1].string == "\\":  # before the line end below it would go on there: alone, be the empty tuple
        raise CallSyntaxError("a value ends in a lone backslash")
    (row, column), (last_row, last_column) = tokens[0].start, tokens[-1].end
    rows = lines[row - 1 : last_row]
    rows[-1] = rows[-1][:last_column]
    rows[0] = rows[0][column:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a string such as "\d" only warns: take it as Python does
            tree = ast.parse("(" + "".join(rows) + "\n)", mode="eval")
        return _literal(tree.body, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise CallSyntaxError(f"{''.join(rows)!r:.80} is not a literal: {error}") from error


def _literal(node: ast.expr, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested over {MAX_DEPTH} levels deep")
    if isinstance(node, ast.List | ast.Tuple):
        items = [_literal(item, depth + 1) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("** is not allowed")
        keys = [_literal(key, depth + 1) for key in node.keys if key is not None]
        values = [_literal(value, depth + 1) for value in node.values]
        table = dict(zip(keys, values, strict=True))
        if len(table) != len(keys):
            for key, value in zip(keys, values, strict=True):
                if repr(value) != repr(table[key]):  # 1 is no True
                    raise ValueError(f"it gives {key!r:.40} two values")
        return table
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        if not isinstance(node.operand, ast.Constant) or type(node.operand.value) not in (int, float):
            raise ValueError("a sign stands before something that is no number")
        value = _literal(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise ValueError("a number is out of range")
        return node.value
    raise ValueError(f"{type(node).__name__} is not allowed")
