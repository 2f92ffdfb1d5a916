"""Text that is broken between words, however it comes in pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from minicpm4.cli.wrapping import Wrapped

SAID = "It traveled from the North Atlantic Ocean."
CODE = "Do this:\n\n```python\nprint('a line of code that is long')\n```\nand then you are done with it\n"


def wrapped(text: str, columns: int, pieces: int = 1) -> str:
    """``text`` in pieces of so many characters at most, at a terminal of so many columns."""
    by = Wrapped(lambda: columns)
    return "".join(by.add(text[at : at + pieces]) for at in range(0, len(text), pieces)) + by.flush()


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        (SAID, 20, "It traveled from the\nNorth Atlantic\nOcean."),
        (SAID, 19, "It traveled from\nthe North Atlantic\nOcean."),
        (SAID, 0, SAID),  # a terminal that does not tell
        (SAID, 200, SAID),
        ("a  b", 4, "a  b"),
        ("a  b", 3, "a\nb"),
        ("  - indented item\n", 10, "  -\nindented\nitem\n"),
        ("    four\n\n\tfive six seven", 14, "    four\n\n\tfive\nsix seven"),
        ("ends in blanks  \nb", 16, "ends in blanks  \nb"),
        ("ends in blanks  \nb", 15, "ends in blanks\nb"),
        ("see https://x.yz/a-long-name ok", 10, "see\nhttps://x.yz/a-long-name ok"),
        ("https://x.yz/a-long-name", 10, "https://x.yz/a-long-name"),
        ("ab https://x.yz/a-lon ok now", 10, "ab\nhttps://x.yz/a-lon\nok now"),
        ("法国的首都是巴黎。它在塞纳河上", 10, "法国的首都是巴黎。它在塞纳河上"),  # the terminal breaks it
        ("法国的首都是 Paris 巴黎", 16, "法国的首都是\nParis 巴黎"),
        ("法国的首都是 Paris 巴黎", 18, "法国的首都是 Paris\n巴黎"),
        ("a 法国的首都Paris", 16, "a 法国的首都\nParis"),
        ("法国的首都Paris", 12, "法国的首都Paris"),
        ("cafe\u0301 cafe\u0301", 9, "cafe\u0301 cafe\u0301"),
        ("cafe\u0301 cafe\u0301", 8, "cafe\u0301\ncafe\u0301"),
        (CODE, 16, CODE.replace("are done", "are\ndone")),
        ("```a``` is code in a line", 12, "```a``` is\ncode in a\nline"),
        (
            "````\n```\nthree are not four\n````\nfour are, so",
            8,
            "````\n```\nthree are not four\n````\nfour\nare, so",
        ),
        ("", 5, ""),
    ],
)
def test_lines_end_between_words_however_the_text_comes(text: str, columns: int, shown: str) -> None:
    for pieces in (1, 2, 3, 7, len(text) or 1):
        assert wrapped(text, columns, pieces) == shown


def test_random_texts_have_the_same_words_and_no_line_too_long() -> None:
    draw = random.Random(3)
    for _ in range(100):
        words = ["x" * draw.randint(1, 9) for _ in range(draw.randint(1, 40))]
        text = "".join(word + draw.choice([" ", " ", "  ", "\n"]) for word in words)
        whole = wrapped(text, 12)
        assert whole.split() == words and max(map(len, whole.split("\n"))) <= 12
        assert wrapped(text, 12, draw.randint(1, 9)) == whole


def test_any_text_is_shown_the_same_however_it_comes() -> None:
    draw = random.Random(4)
    for _ in range(100):
        text = "".join(draw.choices("ab`.\u0301世 \n\t", (5, 5, 2, 1, 1, 3, 5, 1, 1), k=draw.randint(1, 120)))
        whole = wrapped(text.replace("`", "```"), 9)
        assert wrapped(text.replace("`", "```"), 9, draw.randint(2, 30)) == whole
        assert "".join(whole.split()) == "".join(text.replace("`", "```").split())
        bare = text.replace(" ", "").replace("\t", "")
        assert wrapped(bare, 9) == bare


def test_a_word_is_held_until_it_ends_or_is_longer_than_a_line() -> None:
    by = Wrapped(lambda: 8)
    assert [by.add(one) for one in ("Nort", "h", " ", "At", " ")] == ["", "", "North", "", " At"]
    assert [by.add("x" * 8), by.add("x"), by.add("x"), by.add(" y")] == ["", "\n" + "x" * 9, "x", ""]
    assert by.flush() == " y"
    assert by.flush() == ""


def test_what_was_flushed_is_gone_on_with() -> None:
    by = Wrapped(lambda: 10)
    assert by.add("one tw") + by.flush() + by.add("o three") + by.flush() == "one two\nthree"


def test_each_line_has_the_width_that_the_terminal_has_then() -> None:
    widths: Iterator[int] = iter([10, 8, 12, 3, 9])
    by = Wrapped(lambda: next(widths))
    said = by.add("aaa bbb ccc ddd eee fff ggg\nhhh i") + by.flush()
    assert said == "aaa bbb\nccc ddd\neee fff ggg\nhhh\ni"


def test_code_comes_at_once() -> None:
    by = Wrapped(lambda: 80)
    assert by.add("```py\nx = 1") == "```py\nx = 1"
