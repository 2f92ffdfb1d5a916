"""Prompts out of a corpus: the same each time, of every source, none twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm4.data.asks import asks, corpora_of
from minicpm4.errors import ConfigError

PROSE = "\n\n".join(
    f"Paragraph {i} tells of a harbour, its {i} boats and the wind there. " * 4 for i in range(9)
)
CODE = "\n\n\n".join(f"def add_{i}(a, b):\n    total = a + b + {i}\n    return total\n" * 3 for i in range(9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.md").write_text(PROSE)
    (tmp_path / "b.py").write_text(CODE)
    (tmp_path / "c.bin").write_bytes(b"\x00")
    return tmp_path


def test_passages_are_asked_about_in_an_order_of_their_own(folder: Path) -> None:
    found = asks(corpora_of([str(folder)]), 100)
    assert found == asks(corpora_of([str(folder), str(folder / "a.md")]), 100), "none twice"
    marks = [ask.mark for ask in found]
    assert marks == sorted(set(marks)) and len(marks) > 12
    texts = [ask.messages[-1]["content"] for ask in found]
    code = [text for text in texts if "```" in text]
    assert code and all("def add_" in text for text in code)
    assert any("harbour" in text for text in texts)
    assert asks(corpora_of([str(folder)]), 5) == found[:5]


def test_a_conversation_is_asked_up_to_its_last_question(tmp_path: Path) -> None:
    talk = [{"role": r, "content": c} for r, c in (("user", "One?"), ("assistant", "1"), ("user", "Two?"))]
    rows = [{"messages": [*talk, {"role": "assistant", "content": "2"}]}, {"messages": talk[1:2]}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [ask.messages for ask in asks(corpora_of([str(tmp_path / "t.jsonl")]), 9)] == [talk]


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no files to ask about"):
        corpora_of([str(tmp_path)])
