"""Strings that know what of them a template wrote: the same text as a str's, and the right account of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from minicpm4.text.guard import ControlGuard
from minicpm4.text.pieces import byte_of_char
from minicpm4.text.written import Written, joined

# Capital letters were written, small ones said; a blank may be either.
OWN, SAID = st.text("AB ", max_size=6), st.text("ab ", max_size=6)


@st.composite
def texts(draw: st.DrawFn) -> Written:
    return joined(
        [part for _ in range(draw(st.integers(0, 3))) for part in (Written.whole(draw(OWN)), draw(SAID))]
    )


def check(found: Any, expected: Any) -> None:
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            check(one, two)
        return
    assert str.__eq__(found, expected) and isinstance(found, Written)
    ends = [-1]
    for start, end in found.spans:
        assert ends[-1] < start < end <= len(found)
        ends.append(end)
    for at, char in enumerate(expected):
        if char != " ":
            assert found.covers(at, at + 1) == char.isupper()


PIECES = st.sampled_from(["A", "a", "Aa", " ", "bA", "B "])


@given(texts(), PIECES, st.integers(-1, 3), st.integers(-9, 9), st.integers(-9, 9))
def test_the_account_is_right_after_every_operation(
    text: Written, piece: str, count: int, start: int, stop: int
) -> None:
    plain = "".join(text)
    for chars in (None, "A ", "ab"):
        for name in ("strip", "lstrip", "rstrip"):
            check(getattr(text, name)(chars), getattr(plain, name)(chars))
    for name in ("split", "rsplit"):
        check(getattr(text, name)(piece, count), getattr(plain, name)(piece, count))
        check(getattr(text, name)(None, count), getattr(plain, name)(None, count))
    for name in ("partition", "rpartition", "removeprefix", "removesuffix"):
        check(getattr(text, name)(piece), getattr(plain, name)(piece))
    check(text[start:stop], plain[start:stop])
    check(text.replace(piece, "ab", count), plain.replace(piece, "ab", count))
    check(text.replace(piece, Written.whole("BA"), count), plain.replace(piece, "BA", count))
    check(text + "ab", plain + "ab")
    check("ab" + text, "ab" + plain)
    check(text + text, plain + plain)
    check(text.join(["ab", Written.whole("AB"), "b"]), plain.join(["ab", "AB", "b"]))
    check((text + "%s" + text) % "ab", plain + "ab" + plain)
    check((text + "%s%s") % (Written.whole("A"), "b"), plain + "Ab")
    if plain:
        check(text[0], plain[0])
        check(text[-1], plain[-1])


def test_what_is_not_accounted_for_is_said() -> None:
    text = Written.whole("AB")
    for plain in (
        text.lower(),
        text[::-1],
        text * 2,
        text.center(9),
        text.title(),
        f"{text:>5}",
    ):
        assert not getattr(plain, "spans", ())
    assert text == "AB" and {text: 1}["AB"] == 1 and "A" in text
    assert not Written("AB").covers(0, 1) and not text.covers(1, 3)
    with pytest.raises(TypeError):
        text + 1  # type: ignore[operator]
    with pytest.raises(IndexError):
        text[2]


def test_a_token_of_the_templates_may_begin_within_one_that_was_said() -> None:
    backend = Backend(models.BPE(byte_of_char(), []))
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in ("aXb", "bYc")])
    guard = ControlGuard(backend, ["aXb", "bYc"])
    text, said = guard.own_to_aliases(joined(["aX", Written.whole("bYc"), "bYc"]))
    assert text == f"aX{guard.aliases['bYc']}bYc" and said
