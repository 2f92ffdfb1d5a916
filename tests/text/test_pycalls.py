"""Calls as Python writes them: what is no list of them."""

from __future__ import annotations

import pytest

from minicpm4.text.pycalls import CallSyntaxError, parse_calls


@pytest.mark.parametrize(
    "source", ["[f(a=1)", ",f(a=1)", "f(a=1),,f(a=2)", ",,f()", "[f(a=1)]]", "[,f()]", "f(a=1);,f()"]
)
def test_lists_that_are_none_are_refused(source: str) -> None:
    with pytest.raises(CallSyntaxError):
        parse_calls(source)


@pytest.mark.parametrize(
    "source", ["[f(a=1), f(a=2)]", "f(a=1), f(a=2),", "f(a=1)\nf(a=2)", "f(a=1); f(a=2)"]
)
def test_calls_are_apart_by_commas_lines_and_semicolons(source: str) -> None:
    assert [call[2] for call in parse_calls(source)] == [{"a": 1}, {"a": 2}]
