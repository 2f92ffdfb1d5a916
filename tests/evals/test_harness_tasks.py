"""Files with choices become tasks for lm-evaluation-harness."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from minicpm4.cli import run

ROWS = [
    {"question": "Which?", "options": "\nA. one\nB. two\nC. three", "answer": "B. two"},
    {"passage": "Read this.", "question": "What?", "options": ["x", "y"], "answer": "y"},
    {"question": "None?", "options": "A. one\nB. two", "answer": "C. three"},
    {"question": "Alike?", "options": "A. one\nB. one", "answer": "A. one"},
    {"question": "By its letter?", "options": "A) a. b\nB) c", "answer": "A"},
    {"question": "Altered?", "options": "A. one\nB. two", "answer": "B. TWO"},
    {"question": "Which of both?", "options": "A. one\nB. two", "answer": "B. one"},
    {"question": "Who?", "options": ["J. Smith", "J. Jones", "K. Lee"], "answer": "J. Jones"},
    {"question": "And who?", "options": ["A. Smith", "B. Jones", "Nobody"], "answer": "C. Lee"},
    {"question": "With a letter?", "options": ["x", "y"], "answer": "B. y"},
]


def test_tasks_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "PIQA" / "validation.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(map(json.dumps, ROWS)))
    other = tmp_path / "More Sets.jsonl"
    other.write_text(json.dumps(ROWS[0]))
    assert run(["eval", "tasks", str(file), str(other), "--to", str(tmp_path / "my tasks")]) == 0
    out = capsys.readouterr().out
    assert f"--include_path '{tmp_path}/my tasks' --tasks local_piqa,local_more_sets" in out and [
        "local_piqa",
        "6",
        "4",
    ] in [line.split() for line in out.splitlines()]
    found = [
        json.loads(line) for line in (tmp_path / "my tasks" / "local_piqa.jsonl").read_text().splitlines()
    ]
    assert found == [
        {"question": "Which?", "choices": ["one", "two", "three"], "gold": 1},
        {"question": "Read this.\nWhat?", "choices": ["x", "y"], "gold": 1},
        {"question": "By its letter?", "choices": ["a. b", "c"], "gold": 0},
        {"question": "Altered?", "choices": ["one", "two"], "gold": 1},
        {"question": "Who?", "choices": ["J. Smith", "J. Jones", "K. Lee"], "gold": 1},
        {"question": "With a letter?", "choices": ["x", "y"], "gold": 1},
    ]
    task = json.loads((tmp_path / "my tasks" / "local_piqa.yaml").read_text())
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "my tasks" / "local_piqa.jsonl")


def test_a_disk_that_is_full_leaves_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(ROWS[0]))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr("minicpm4.evals.harness.tasks.write_file", full)
    assert run(["eval", "tasks", str(file), "--to", str(tmp_path / "tasks")]) == 2
    assert "No space left" in capsys.readouterr().err and not (tmp_path / "tasks").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no lines"),
        ("{]", "line 1"),
        ('{"question": "a?", "answer": "b"}', "options are no list"),
        ('{"question": "a?", "options": ["b"], "answer": "b"}', "options are no list"),
        ('{"question": "a", "options": ["b\\udc00", "c"], "answer": "c"}', "line 1 holds a lone surrogate"),
        ('{"question": 1, "options": ["b", "c"], "answer": "b"}', "question is no text"),
        ('{"question": "a?", "options": ["b", "c"], "answer": "d"}', "none has its answer"),
    ],
)
def test_wrong_files_are_refused(
    tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    assert run(["eval", "tasks", str(file), "--to", str(tmp_path / "tasks")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "tasks").exists()
    assert run(["eval", "tasks", str(file), str(file), "--to", str(tmp_path / "tasks")]) == 2
    assert "two files would be the task local_x" in capsys.readouterr().err
