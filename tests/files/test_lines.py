"""Files of lines: texts hold characters at which ``str.splitlines`` would cut a line in two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm4.agents.mcp.evaluate import read_samples
from minicpm4.agents.mcp.tasks.task import FILE, read_tasks
from minicpm4.agents.mcp.transcript import Transcript
from minicpm4.cli.mcp_data import _queries
from minicpm4.data.rows import json_lines
from minicpm4.evals.rows import read_rows
from minicpm4.files import json_text, lines_of
from minicpm4.train.metrics import read_metrics
from minicpm4.train.saved import LOG

CUTS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # ends of lines to str.splitlines alone
TEXTS = st.text(st.sampled_from(CUTS + '\r\n a"\\é'), max_size=12)


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_each_value_is_a_line_whatever_its_text(texts: list[str], end: str) -> None:
    made = "".join(json_text({"a": text}, ascii_only=False) + end for text in texts)
    assert [json.loads(line)["a"] for line in lines_of(made) if line] == texts


def test_lines_end_as_in_text_files() -> None:
    assert lines_of(f"a\r\nb\rc{CUTS}\n\nd") == ["a", "b", f"c{CUTS}", "", "d"]


@pytest.mark.parametrize("cut", CUTS)
def test_readers_of_conversations_take_such_characters(tmp_path: Path, cut: str) -> None:
    text, file = f"one{cut}two", tmp_path / "x.jsonl"
    function = {"name": "s__f", "arguments": {"a": text}}
    talk = Transcript(model="m")
    talk.messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": function}]},
    ]
    talk.tools = [{"type": "function", "function": {"name": "s__f", "parameters": {"type": "object"}}}]
    file.write_text(talk.as_training() * 2, encoding="utf-8")
    samples = read_samples(file)
    assert [(one.messages[0]["content"], one.calls) for one in samples] == [
        (text, [("s__f", {"a": text})])
    ] * 2
    assert [row["messages"][0]["content"] for _, row in json_lines(file, print)] == [text] * 2  # type: ignore[arg-type]
    assert [row["messages"][0]["content"] for _, row in read_rows(file, "")] == [text] * 2


@pytest.mark.parametrize("cut", CUTS)
def test_every_other_reader_of_json_lines_takes_such_characters(tmp_path: Path, cut: str) -> None:
    text, file = f"one{cut}two", tmp_path / "x.jsonl"
    queries = json_text({"query": text, "answer": text}, ascii_only=False)
    assert [(one.text, one.answer) for one in _queries(file, f"{queries}\n{text}\n")] == [
        (text, text),
        (text, ""),
    ]

    task = json.loads(lines_of(FILE.read_text(encoding="utf-8"))[0])
    task["task"] = text
    file.write_text(json_text(task, ascii_only=False) + "\n", encoding="utf-8")
    assert len(read_tasks(file)) == 1

    line = {"step": 1, "loss": 2.0, "note": text}
    (tmp_path / LOG).write_text(json_text(line, ascii_only=False) + "\n", encoding="utf-8")
    assert read_metrics(tmp_path) == [line]
