"""What an error says is of a size, and can be written anywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minicpm4.errors import ConfigError, Minicpm4Error, shortened


@given(st.text(max_size=50), st.integers(1, 4000))
def test_messages_are_of_a_size(text: str, times: int) -> None:
    for error in (Minicpm4Error(text * times, text * times), ConfigError(f"x = {[text] * times!r}")):
        assert len(str(error)) <= 1100
        str(error).encode()
        assert str(error).startswith(error.condition)


def test_no_more_than_300_characters_in_a_row_are_a_strangers_where_nothing_marks_them() -> None:
    words = " ".join(f"word{i}" for i in range(2000))
    said = str(Minicpm4Error(f"a server answered with error 5: {words}", "ask another"))
    assert len(said) < 460 and said.endswith(". ask another")
    assert words[:250] in said and not any(words[at : at + 301] in said for at in range(100))


def test_of_a_long_path_the_name_stays_and_a_remedy_can_be_followed() -> None:
    folder = "/home/someone/" + "a-folder-of-a-long-name/" * 15
    error = Minicpm4Error(f"{folder}last.json: no space left", f"rm -r {folder}, or another --output")
    assert error.condition.startswith(folder[:120])
    assert error.condition.endswith(f"last.json ({len(folder) + 9} characters): no space left")
    assert error.remedy == f"rm -r {folder}, or another --output"


def test_what_is_short_stays() -> None:
    text = "config.json vocab_size = 5 is outside 1 to 3"
    assert str(Minicpm4Error(text, "fetch it again")) == f"{text}. fetch it again"
    assert "x" * 200 + "… (70000 characters)" in str(Minicpm4Error("name " + "x" * 70_000 + " is long"))
    assert "[… 17,600 characters left out …]" in str(Minicpm4Error("a " * 9000))
    nested = repr({f"key{i}": [i, {i: (i,)}] for i in range(60)})  # no part of which is long
    for quoted in (
        repr("two words " * 90),
        repr("x" * 400 + " and more" * 20),
        repr([1] * 5000),
        repr(dict.fromkeys(range(900))),
        nested,
    ):
        said = str(Minicpm4Error(f"config.json x = {quoted} is no number"))
        assert len(said) < 270 and "characters)" in said, said
    assert shortened("0123456789", 4, "-") == "012-[… 6 characters left out …]-9"
