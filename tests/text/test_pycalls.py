"""Calls as Python writes them: what is none of them, and what is read beside them."""

from __future__ import annotations

from typing import Any

import pytest

from minicpm4.text.pycalls import CallSyntaxError, parse_calls
from tests.fuzz import calls
from tests.fuzz.additions import as_written, in_python
from tests.fuzz.calls import check_calls

LISTS = ["[f(a=1)", ",f(a=1)", "f(a=1),,f(a=2)", ",,f()", "[f(a=1)]]", "[,f()]", "f(a=1);,f()"]
LISTS += ["[f()\ng()]", "[f(); g()]", "[f() # ]", "f()\n,g()", "f();;g()", ";f()", "f()\n;g()", "[f()] g()"]
NAMES = [
    "1询()",
    "1()",
    "9f()",
    "1b.c()",
    "f.()",
    ".b.c()",
    "a..c()",
    "f-()",
    "-f()",
    "[-f()]",
    "01()",
    "²()",
]
NAMES += ["f(1='')", "f(.5=1)", "f(-b=1)", "f(b-=1)", "f(9name=1)", "f(a.=1)", "f(ﬁ=1, fi=2)"]
VALUES = ["f(--1)", "f(a=-+1)", "f(a=+(-1))", "f(a=[- -1.5])", "f(a=-True)"]
CHARACTERS = ["\x1d[é()]", "[f()]\u2028", "\xa0f()", "f())\x1d", "f() # \0", "f() # \ud83d", "\ufefff()"]


@pytest.mark.parametrize("source", [*LISTS, *NAMES, *VALUES, *CHARACTERS])
def test_what_is_no_python_is_refused(source: str) -> None:
    with pytest.raises(CallSyntaxError):
        parse_calls(source)


@pytest.mark.parametrize(
    ("source", "name", "named"),
    [
        ("get-weather(max-results=1)", "get-weather", {"max-results": 1}),
        ("mcp--fs-2.read-3(a.b-c=1)", "mcp--fs-2.read-3", {"a.b-c": 1}),
        ("class(from=1, None=2, async-for=3)", "class", {"from": 1, "None": 2, "async-for": 3}),
        ("a.import.b(ﬁ=1)", "a.import.b", {"ﬁ": 1}),
        ("f(a=[true, {'b': null}], true=false)", "f", {"a": [True, {"b": None}], "true": False}),
        ("f(a='1\r\n2\r3\n4')", "f", {"a": "1\r\n2\r3\n4"}),
        ("f(a=(1)))", "f", {"a": 1}),
        ("[f(a='x\n')) ]\n", "f", {"a": "x\n"}),
        ("  f(a=-1)", "f", {"a": -1}),
    ],
)
def test_what_is_read_beside_python(source: str, name: str, named: dict[str, Any]) -> None:
    assert parse_calls(source) == [(name, [], named)]
    assert check_calls(source)


def test_calls_may_begin_behind_blanks_in_a_line() -> None:
    for source in ("f()\n  g()", "  f()\n  g()", "[f(),\n    g(),\n  ]", "f()\n\\\n\tg()"):
        assert [call[0] for call in parse_calls(source)] == ["f", "g"]
        assert check_calls(source)


def test_line_breaks_between_three_quotes_are_left_where_others_become_escapes() -> None:
    """A raw string has no escapes, and a quotation mark behind a backslash does not end it."""
    inner = 'x\\"""\n\'y\nz\''
    assert parse_calls(f'f(a=\'1\n2\', b=r"""{inner}""")') == [("f", [], {"a": "1\n2", "b": inner})]


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("a-b.c(d-e=1)", "a_hyphen_b.c(d_hyphen_e=1)"),
        ("class ( # x\n)", "class_word_ ( # x\n)"),
        ("f(in='class()', a.b=2-1)", "f(in_word_='class()', a_dot_b=2-1)"),
        ("f(true, [null], r'true')", "f(True, [None], r'true')"),
        ("f('1\n2', '''1\n2''', '3\\\n4', r'\\n')", "f('1\\n2', '''1\n2''', '3\\\n4', r'\\n')"),
        ("f()\n \n  g(\n  1)", "f()\n\ng(\n  1)"),
        ("f(--1); 1()", "f(--1); 1()"),
    ],
)
def test_additions_alone_are_written_as_python(source: str, written: str) -> None:
    assert list(in_python(source)) == [written]
    assert as_written("a_hyphen_b_dot_class_word_") == "a-b.class"


def test_a_parenthesis_too_many_is_left_out_second() -> None:
    assert list(in_python("f(1)) ")) == ["f(1)) ", "f(1) "]
    assert list(in_python("[f(1))]")) == ["[f(1))]", "[f(1)]"]


@pytest.mark.parametrize("source", ["f(--1)", "1()", "[f()\nf()]", "f.()", "f(1='')"])
def test_reading_what_python_refuses_is_a_fault(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "parse_calls", lambda source: [("f", [1], {})])
    with pytest.raises(AssertionError, match="Python refuses it"):
        check_calls(source)
    with pytest.raises(AssertionError, match="Python has"):
        check_calls("f(2)")
    assert check_calls("f(1))")


@pytest.mark.parametrize(
    "source", ["[f(a=1), f(a=2)]", "f(a=1), f(a=2),", "f(a=1)\nf(a=2)", "f(a=1); f(a=2)"]
)
def test_calls_are_apart_by_commas_lines_and_semicolons(source: str) -> None:
    assert [call[2] for call in parse_calls(source)] == [{"a": 1}, {"a": 2}]
