"""Calls of tools as Python, drawn at random, and Python's own reading of them."""

from __future__ import annotations

import ast
import unicodedata
import warnings
from itertools import chain
from random import Random
from typing import Any

from minicpm4.text.pycalls import Call, CallSyntaxError, parse_calls
from tests.fuzz.additions import as_written, in_python

# What str.splitlines takes for the end of a line, beside what a lexer may trip over.
ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r\n\t\0\ufeff\u00a0\u200b\U0001f600é"
_PLAIN = "abz019 _-.,;:#=()[]{}<>|\\'\"%@`$&*+/?!^~" + ODD
_BLANKS = ["", " ", "\t", "\n", "\r\n", "\x0c", " # a, b)\n", " # \u2028 ' \n", "\\\n", "  "]
_NAMES = ["f", "read_file", "get-weather", "a.b.c", "查询", "é", "ﬁ", "class", "x1", "print"]
_KEYS = ["a", "b", "from", "max-results", "é", "ﬁ", "name", "x2"]
_PREFIXES = ["", "", "", "r", "R", "u", "b", "f", "rb", "bR"]
_NUMBERS = ["0", "1", "-1", "+2", "- 3", "1_000", "0x_ff", "0o17", "0b1", "1e5", "1E-3", ".5", "5.", "1j"]
_OTHERS = [
    "00",
    "1e400",
    "True",
    "False",
    "None",
    "true",
    "null",
    "...",
    "x",
    "f()",
    "1+2",
    "not 1",
    "--1",
    "\\",
    "1\\",
]


def draw_calls(rng: Random) -> str:
    """Source of one call or more, most of it right, some of it nearly."""
    calls = [_call(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    text = rng.choice(["\n", "; ", ", ", "\r\n", "\n# \u2028 it's\n", "\n\x0c"]).join(calls)
    text = f"[{text}]" if rng.random() < 0.2 else text
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_PLAIN) * rng.choice([0, 1]) + text[at + rng.choice([0, 1]) :]
    return text


def _call(rng: Random) -> str:
    positional = [_value(rng, 0) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    keys = rng.sample(_KEYS, rng.randrange(4))
    named = [f"{key}{_blank(rng)}={_blank(rng)}{_value(rng, 0)}" for key in keys]
    inner = ("," + _blank(rng)).join(part + _blank(rng) for part in positional + named)
    return f"{rng.choice(_NAMES)}({_blank(rng)}{inner}{',' * (rng.random() < 0.1)})"


def _blank(rng: Random) -> str:
    return rng.choice(_BLANKS) if rng.random() < 0.3 else ""


def _value(rng: Random, depth: int) -> str:
    kind = rng.random()
    if kind < 0.5 or depth > 3:
        return _blank(rng).join(_string(rng) for _ in range(rng.choice([1, 1, 1, 2])))
    if kind < 0.65:
        return rng.choice(_NUMBERS if rng.random() < 0.8 else _OTHERS)
    items = [_value(rng, depth + 1) + _blank(rng) for _ in range(rng.randrange(4))]
    if kind < 0.9:
        opening, closing = rng.choice(["[]", "()", "{}"])
        return opening + _blank(rng) + ("," + _blank(rng)).join(items) + closing
    return "{" + ", ".join(f"{_value(rng, 4)}:{_blank(rng)}{item}" for item in items) + "}"


def _string(rng: Random) -> str:
    text = "".join(rng.choice(_PLAIN) for _ in range(rng.randrange(8)))
    way = rng.random()
    if way < 0.4:
        return repr(text)
    quote = rng.choice(["'", '"', "'''", '"""'])
    raw = text.replace(quote[0], "\\" + quote[0]) if way < 0.8 else text.replace(quote[0], "")
    raw = raw if len(quote) == 3 or way > 0.95 else raw.replace("\n", "\\\n").replace("\r", "\\r")
    return rng.choice(_PREFIXES) + quote + raw.rstrip("\\") + quote


def pythons_own(source: str) -> list[tuple[str, list[Any], dict[str, Any]]] | None:
    """The calls as ``ast`` reads them, their values by ``ast.literal_eval``; None where it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            calls = [_own(node) for node in _expressions(ast.parse(source.lstrip(" \t\r\n")))]
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return None if any(call is None for call in calls) else [call for call in calls if call is not None]


def _expressions(tree: ast.Module) -> list[ast.expr]:
    found: list[ast.expr] = []
    for statement in tree.body:
        if not isinstance(statement, ast.Expr):
            raise ValueError("a statement")
        value = statement.value
        found += value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    return found


def _own(node: ast.expr) -> tuple[str, list[Any], dict[str, Any]] | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute | ast.BinOp):
        return None
    if any(keyword.arg is None for keyword in node.keywords):
        return None
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    if len(named) != len(node.keywords):
        return None
    return ast.unparse(node.func), [ast.literal_eval(value) for value in node.args], named


def check_calls(source: str) -> bool:
    """Whether ``source`` was read. AssertionError where it was, and Python reads other values, or none of it
    though the reader's additions are written as Python has them."""
    try:
        found: list[Call] = parse_calls(source)
    except CallSyntaxError:
        return False
    if not found:
        return False
    # Of what Python reads as it stands nothing is replaced.
    readings = (pythons_own(text) for text in chain([source], in_python(source)))
    own = next((reading for reading in readings if reading is not None), None)
    assert own is not None, f"{found!r} is read, Python refuses it"
    # repr tells 1 from True, and -0.0 from 0.0.
    assert _normal(own) == _normal(found), f"{found!r} is read, Python has {own!r}"
    return True


def _normal(calls: list[tuple[str, list[Any], dict[str, Any]]]) -> list[str]:
    """For comparing: names as Python's parser has them, which makes one letter of a ligature's several."""

    def normal(name: str) -> str:
        return unicodedata.normalize("NFKC", as_written(name))

    return [
        repr((normal(name), values, {normal(key): value for key, value in named.items()}))
        for name, values, named in calls
    ]
