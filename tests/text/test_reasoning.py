"""Reasoning apart from the answer, the same however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.text import ReasoningSplitter, prompt_opens_reasoning, split_reasoning

CASES = [
    ("<think>\nwhy\n</think>\n\nbecause", {}, ("why", "because")),
    ("\n <think>a < b</think>c", {}, ("a < b", "c")),
    ("plain answer", {}, ("", "plain answer")),
    ("  plain", {}, ("", "  plain")),
    ("see <think>x</think>", {}, ("", "see <think>x</think>")),
    ("<think>a</think>b <think>c</think>", {}, ("a", "b <think>c</think>")),
    ("<think>cut off", {}, ("cut off", "")),
    ("<think>cut off </thi", {}, ("cut off </thi", "")),
    ("<think></think>\n\nhi", {}, ("", "hi")),
    ("<thin", {}, ("", "<thin")),
    ("<|thought_start|>\nt\n<|thought_end|>\ncall", {}, ("t", "call")),
    ("more\n</think>\nanswer", {"starts_inside": True}, ("more", "answer")),
    ("no end", {"starts_inside": True}, ("no end", "")),
    ("answer", {"enable_thinking": False, "starts_inside": True}, ("", "answer")),
    ("<think>\n\n</think>\n\nanswer", {"enable_thinking": False}, ("", "answer")),
    ("<think>never closed", {"enable_thinking": False}, ("", "<think>never closed")),
    ("<think>a</think>b", {"enable_thinking": False}, ("", "<think>a</think>b")),
    ("<think>a</think>b", {"enable_thinking": True}, ("a", "b")),
    ("", {}, ("", "")),
    (" \n", {}, ("", " \n")),
]


@pytest.mark.parametrize(("text", "options", "expected"), CASES)
def test_whole_and_streamed(text, options, expected):
    assert split_reasoning(text, **options) == expected
    splitter = ReasoningSplitter(**options)
    pieces = [piece for char in text for piece in splitter.push(char)] + splitter.finish()
    assert all(part for _, part in pieces)
    got = {kind: "".join(p for k, p in pieces if k == kind) for kind in ("reasoning", "content")}
    assert (got["reasoning"], got["content"]) == expected


parts = st.sampled_from(
    ["<think>", "</think>", "<th", "</", " ", "\n", "a", "think>", "<|thought_start|>", " " * 200]
)


@settings(max_examples=300)
@given(parts=st.lists(parts, max_size=12), thinks=st.sampled_from([None, False, True]), inside=st.booleans())
def test_cuts_do_not_matter(parts, thinks, inside):
    options = {"enable_thinking": thinks, "starts_inside": inside}
    splitter = ReasoningSplitter(**options)
    pieces = [piece for part in parts for piece in splitter.push(part)] + splitter.finish()
    got = tuple("".join(p for k, p in pieces if k == kind) for kind in ("reasoning", "content"))
    assert got == split_reasoning("".join(parts), **options)


def test_reasoning_streams_at_once():
    splitter = ReasoningSplitter()
    assert splitter.push("<think>one") == [("reasoning", "one")]
    assert splitter.push(" two") == [("reasoning", " two")]
    assert splitter.push("\n</think>\n") == []
    assert splitter.push("x") == [("content", "x")]


def test_endless_white_space_is_not_held():
    splitter = ReasoningSplitter(starts_inside=True)
    splitter.push("a")
    assert sum(len(p) for _, p in splitter.push("\n" * 10_000)) == 10_000 - 256


def test_prompts_that_open_the_block():
    assert prompt_opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not prompt_opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")
