"""Calls written as Python: Python's own values, or refused; and no block is read again and again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.text import parse_tool_calls, toolcalls
from minicpm4.text.loose_json import read_values
from minicpm4.text.pycalls import parse_calls
from tests.fuzz.calls import check_calls, draw_calls, pythons_own


@settings(max_examples=400)
@given(st.randoms(use_true_random=False))
def test_what_is_read_is_what_python_reads(rng: Random) -> None:
    check_calls(draw_calls(rng))


def test_drawn_calls_are_read_and_refused() -> None:
    """Else the test above would say nothing."""
    sources = [draw_calls(Random(i)) for i in range(500)]
    read = [check_calls(source) for source in sources if pythons_own(source) is not None]
    assert sum(read) > 30 and any(not check_calls(source) for source in sources)


@pytest.mark.parametrize("blank", ["\r", "\r\n", "\x0c", "\r\r", "\n\r"])
def test_blanks_are_no_argument(blank: str) -> None:
    assert parse_calls(f"f({blank}){blank}") == [("f", [], {})]
    assert parse_calls(f"f({blank}a={blank}1{blank},)") == [("f", [], {"a": 1})]


CALLS = ['{"name": "f", "arguments": {', "}}", "f(a=", ")", "'", '"', "[1", ",a", "x", "</think>"]
MARKS = ["<tool_call>", "</tool_call>", "<|tool_call_start|>", "<|tool_call_end|>", "```json", "```"]
PARTS = st.sampled_from([*CALLS, *MARKS])
SOME = st.lists(PARTS, min_size=1, max_size=5)


@settings(max_examples=200)
@given(told=SOME, unit=SOME, times=st.integers(1, 99))
def test_no_character_is_read_again_and_again(told: list[str], unit: list[str], times: int) -> None:
    """Readers of blocks get a text's characters a few times at most, whatever closes them, or does not."""
    read: list[int] = []
    text = "".join(told) + "".join(unit) * times + "".join(told[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolcalls, "_AGAIN", 0)
        for reader in (parse_calls, read_values):

            def counted(source: str, *more: Any, reader: Callable[..., Any] = reader) -> Any:
                read.append(len(source))
                return reader(source, *more)

            patch.setattr(toolcalls, reader.__name__, counted)
        parse_tool_calls(text, [{"name": "f"}])
    assert sum(read) <= 10 * len(text) + 64
