"""Questions out of pages: what a heading asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.data.questions import page_conversations
from minicpm4.data.sources import untold

ANSWER = "A paragraph that is long enough to be the answer to a question."


def asked(folder: Path, head: str) -> str:
    (folder / "page.html").write_text(f"<h2>{head}</h2><p>{ANSWER}</p>")
    (one,) = page_conversations(folder / "page.html", untold)
    question, answer = one.messages
    assert answer["content"] == ANSWER
    return str(question["content"])


@pytest.mark.parametrize(
    "head", ["C API", "R packages", "A quick tour", "X Window System", "V8 engine", "X.509 certificates"]
)
def test_words_and_names_of_one_letter_stay(tmp_path: Path, head: str) -> None:
    assert asked(tmp_path, head) == f"What is {head}?"


@pytest.mark.parametrize("number", ["3", "3.", "3.12", "3.1.2.", "A.", "A.1", "B.2.10.", "A1.", "A1.2"])
def test_numbers_of_parts_are_left_out(tmp_path: Path, number: str) -> None:
    assert asked(tmp_path, f"{number} Coroutines") == "What is Coroutines?"
