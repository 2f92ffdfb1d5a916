"""Streaming equals decoding at once, cut at the first completed stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.errors import RequestError
from minicpm4.testing import SPECIALS, byte_text
from minicpm4.text import StopMatcher, StreamDecoder, cut_at_stop
from tests.growth import is_linear

stops = st.lists(st.text("ab\n é", min_size=1, max_size=4), max_size=4)


def _first_completed(text: str, stop: list[str]) -> str:
    """By definition: the least end of any stop, and of those that end there the longest."""
    ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
    return text if not ends else text[: sum(min(ends))]


def _stream(tokenizer, ids, stop=(), **options) -> tuple[str, StreamDecoder]:
    decoder = StreamDecoder(tokenizer, stop, **options)
    text = "".join([decoder.push(i) for i in ids])
    return text + decoder.finish(), decoder


def push_all(decoder: StreamDecoder, ids) -> str:
    return "".join([decoder.push(i) for i in ids])


@settings(max_examples=300)
@given(text=st.text("ab\n é", max_size=40), stop=stops, cuts=st.lists(st.integers(1, 5), max_size=40))
def test_stop_matcher_by_definition(text, stop, cuts):
    assert cut_at_stop(text, stop)[0] == _first_completed(text, stop)
    matcher, at, out = StopMatcher(stop), 0, ""
    for n in [*cuts, len(text)]:
        out += matcher.feed(text[at : at + n])
        at += n
        assert text.startswith(out)
    assert out + matcher.flush() == _first_completed(text, stop)


@pytest.mark.parametrize("which", ["smollm", "sp_tokenizer"])
@settings(max_examples=150)
@given(data=st.data())
def test_pieces_join_to_the_decoded_text(request, which, data):
    tokenizer = request.getfixturevalue(which)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    options = {"continuation": data.draw(st.booleans()), "skip_special_tokens": data.draw(st.booleans())}
    whole = tokenizer.decode(ids, **options)
    text, _ = _stream(tokenizer, ids, **options)
    assert text == whole
    at = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    stop = [s for s in (whole[at : at + 3], whole[at + 1 : at + 2]) if s]
    text, decoder = _stream(tokenizer, ids, stop, **options)
    assert text == cut_at_stop(whole, stop)[0] == _first_completed(whole, stop)
    assert decoder.stopped == bool(stop)


@pytest.mark.parametrize("which", ["smollm", "sp_tokenizer"])
@pytest.mark.parametrize("text", ["日本語 😀👩‍👩‍👧 é!", " two  spaces\n\tand tabs "])
def test_no_half_characters(request, which, text):
    tokenizer = request.getfixturevalue(which)
    decoder = StreamDecoder(tokenizer)
    seen = ""
    for token in tokenizer.encode(text):
        seen += decoder.push(token)
        assert text.startswith(seen) and "\ufffd" not in seen
    assert seen == text and decoder.finish() == ""


def test_bytes_that_never_become_a_character(sp_tokenizer):
    byte = [sp_tokenizer.token_to_id(f"<0x{b:02X}>") for b in "é€".encode()]
    decoder = StreamDecoder(sp_tokenizer)
    assert decoder.push(byte[2]) == ""
    assert decoder.push(byte[0]) == "\ufffd"
    assert decoder.push(byte[1]) == "é"
    assert decoder.push(byte[2]) == "" and decoder.finish() == "\ufffd"


def test_sentencepiece_spaces(sp_tokenizer):
    ids = sp_tokenizer.encode("json encode json", add_special_tokens=False)
    assert _stream(sp_tokenizer, ids)[0] == "json encode json"
    assert _stream(sp_tokenizer, ids, continuation=True)[0] == " json encode json"
    assert _stream(sp_tokenizer, [1, *ids])[0] == "json encode json"


def test_stop_string_over_several_tokens(smollm):
    ids = smollm.encode("The answer is 42.\n\nUser: more")
    text, decoder = _stream(smollm, ids, ["\n\nUser:"])
    assert text == "The answer is 42."
    assert (decoder.stopped, decoder.stop_reason, decoder.matched) == (True, "stop_string", "\n\nUser:")
    assert decoder.push(ids[0]) == "" and decoder.finish() == ""
    text, decoder = _stream(smollm, ids, ["\n\nUser: none"])
    assert text == "The answer is 42.\n\nUser: more" and not decoder.stopped


def test_text_is_held_only_while_a_stop_may_follow(smollm):
    decoder = StreamDecoder(smollm, ["###"])
    a, sharp = smollm.encode("a"), smollm.encode("#")
    assert [push_all(decoder, ids) for ids in (a, sharp, sharp, a)] == ["a", "", "", "##a"]


BYTES = byte_text().tokenizer
WORDS = ["a", "b", "<", "s>", *SPECIALS[:3]]


MARK = SPECIALS[1]


def _cut_by_definition(words: list[tuple[str, bool]], stops: list[str]) -> tuple[str, str, str | None]:
    """The shown text before the first stop that is completed in it or, where the stop names a hidden word, in
    all of the text; the same with ``MARK`` where it stood; and that stop. ``words``: with whether each is
    hidden."""
    whole, shown = "", ""
    where: list[int] = []  # of each character of the whole text: how many were shown before it
    marks: list[tuple[int, int]] = []  # of each: how many characters were before it, of all and shown

    def marked(text: str, end: int) -> str:
        for _, at in reversed([one for one in marks if one[0] < end and one[1] <= len(text)]):
            text = text[:at] + MARK + text[at:]
        return text

    for word, hidden in words:
        if hidden and word == MARK:
            marks.append((len(whole), len(shown)))
        for char in word:
            where.append(len(shown))
            whole, shown = whole + char, shown if hidden else shown + char
            for stop in sorted(stops, key=len, reverse=True):
                end = len(whole) - len(stop)
                if not hidden and shown.endswith(stop):
                    text = shown[: len(shown) - len(stop)]
                    return text, marked(text, end), stop
                if whole.endswith(stop) and any(name in stop for name in SPECIALS):
                    text = shown[: where[end]]
                    return text, marked(text, end), stop
    return shown, marked(shown, len(whole)), None


@settings(max_examples=500)
@given(
    words=st.lists(st.sampled_from(WORDS), max_size=14),
    plain=st.lists(st.booleans(), min_size=14, max_size=14),
    stop=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("".join), max_size=3),
)
def test_stops_that_name_special_tokens(words, plain, stop):
    ids, told = [], []
    for word, spelled in zip(words, plain, strict=False):
        hidden = word in SPECIALS and not spelled
        ids += BYTES.encode(word, add_special_tokens=False, parse_special=hidden)
        told.append((word, hidden))
    assert (BYTES.decode(ids) == "".join(w for w, hidden in told if not hidden)) or not told
    expected, marked, matched = _cut_by_definition(told, stop)
    text, decoder = _stream(BYTES, ids, stop)
    assert (text, decoder.matched) == (expected, matched)
    (mark,) = BYTES.encode(MARK, add_special_tokens=False, parse_special=True)
    text, decoder = _stream(BYTES, ids, stop, shown=[mark])
    assert (text, decoder.matched) == (marked, matched)


def test_special_tokens_in_the_text():
    ids = BYTES.encode("a<|im_start|>b</s>", add_special_tokens=False)
    text, decoder = _stream(BYTES, ids, stop_token_ids=[ids[-1]], skip_special_tokens=False)
    assert (text, decoder.stop_reason) == ("a<|im_start|>b", "stop_token")
    assert _stream(BYTES, ids, ["<|im_start|>"], skip_special_tokens=False)[0] == "a"


def test_stop_tokens(smollm):
    decoder = StreamDecoder(smollm, ["##"], smollm.eos_token_ids)
    assert push_all(decoder, [*smollm.encode("Hi#"), 2, 99]) == "Hi#"
    assert (decoder.stop_reason, decoder.matched) == ("stop_token", 2)


def test_a_stop_string_completed_by_the_last_flush(sp_tokenizer):
    half = sp_tokenizer.token_to_id("<0xC3>")
    text, decoder = _stream(sp_tokenizer, [half, 2], ["\ufffd"], stop_token_ids=[2])
    assert (text, decoder.stop_reason) == ("", "stop_string")


@pytest.mark.parametrize(
    ("stop", "message"),
    [([""], "stop string '' is not usable"), ([3], "stop string 3"), (["x" * 5000], "1 to 4096 characters")],
)
def test_unusable_stops(smollm, stop, message):
    with pytest.raises(RequestError, match=message):
        StreamDecoder(smollm, stop)


def test_too_many_stops_and_a_bare_string(smollm):
    with pytest.raises(RequestError, match="65 stop strings were given, the limit is 64"):
        StreamDecoder(smollm, ["x"] * 65)
    assert cut_at_stop("abc", "bc") == ("a", "bc")


def test_cost_does_not_grow_with_the_output(smollm):
    ids = smollm.encode("some words, again and again ")

    def decoded(ids):
        push_all(StreamDecoder(smollm, ["\n\nUser:", "</s>"]), ids)

    assert is_linear(lambda count: ids * count, decoded, 500)
