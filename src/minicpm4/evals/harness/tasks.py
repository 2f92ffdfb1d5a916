"""Tasks for lm-evaluation-harness made of files that lie here: it then asks no hub for anything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from minicpm4.config.strict import require
from minicpm4.evals.rows import check_text, read_rows
from minicpm4.files import json_text, write_file

__all__ = ["Choice", "read_choices", "task_name", "write_task"]

REMEDY = 'each line has question, options ("A. …\\nB. …", or a list) and answer, one of them'
_LETTER = re.compile(r"\s*([A-Z])[.)]\s*(.*)", re.DOTALL)
_SPLITS = ("test", "validation", "dev", "train")  # names of files that say nothing of what is in them


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A question with its choices; ``gold``: which of them is right."""

    question: str
    choices: tuple[str, ...]
    gold: int


def read_choices(file: Path) -> tuple[list[Choice], int]:
    """Questions of a file of JSON lines (or .gz), and how many lines were left out, as their answer is none
    of their options, or two of those are alike. Raises ConfigError."""
    found, wrong = [], 0
    for where, row in read_rows(file, REMEDY):
        one = _choice(row, where)
        found += [] if one is None else [one]
        wrong += one is None
    require(bool(found), f"{file}: of {wrong} questions none has its answer among its options", REMEDY)
    return found, wrong


def _choice(row: Mapping[str, Any], where: str) -> Choice | None:
    question, answer = (check_text(row, name, where, REMEDY) for name in ("question", "answer"))
    passage = row.get("passage") or row.get("context") or ""
    require(isinstance(passage, str), f"{where}: passage is no text", REMEDY)
    options = row.get("options")
    if isinstance(options, str):
        options = options.strip().split("\n")
    right = isinstance(options, list) and len(options) > 1 and all(isinstance(one, str) for one in options)
    require(right, f"{where}: options are no list of texts", REMEDY)
    choices = [one.strip() for one in options or ()]
    letters, lettered = _apart(choices)
    choices = lettered or choices
    gold = _gold(choices, letters if lettered else "", answer.strip())
    if gold < 0 or not all(choices) or len(set(choices)) < len(choices):
        return None
    asked = f"{passage.strip()}\n{question.strip()}" if passage.strip() else question.strip()
    return Choice(question=asked, choices=tuple(choices), gold=gold)


def _apart(options: Sequence[str]) -> tuple[str, list[str]]:
    """The letters of options, and their texts; none where they are no A, B, C in order: the J. of J. Smith is
    no letter of an option."""
    found = [one for option in options if (one := _LETTER.fullmatch(option))]
    letters = "".join(one[1] for one in found)
    whole = len(found) == len(options) and ascii_uppercase.startswith(letters)
    return (letters, [one[2].strip() for one in found]) if whole else ("", [])


def _gold(choices: Sequence[str], letters: str, answer: str) -> int:
    """Which of ``choices`` is the answer: by its letter where it has one, since texts may have been altered;
    -1: none is, or its letter and its text say two."""
    if answer in [*letters]:
        return letters.index(answer)
    found = None if answer in choices else _LETTER.fullmatch(answer)
    letter, text = (found[1], found[2].strip()) if found else ("", answer)
    named = letters.find(letter) if letter else -1
    said = choices.index(text) if text in choices else -1
    if -1 in (named, said):
        return max(named, said)
    return named if named == said else -1


def task_name(file: Path) -> str:
    """``local_piqa`` of PIQA/validation.jsonl, ``local_clinical`` of MMLU/clinical.jsonl: the harness has a
    task piqa, which is another."""
    stem = file.name.split(".")[0]
    name = file.resolve().parent.name if stem in _SPLITS else stem
    return "local_" + (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "task")


def write_task(folder: Path, name: str, questions: Sequence[Choice]) -> None:
    """Write the task ``name`` and its data: a folder for ``--include_path``. Raises OSError."""
    data = folder.resolve() / f"{name}.jsonl"
    rows = [{"question": one.question, "choices": one.choices, "gold": one.gold} for one in questions]
    write_file(data, "".join(json_text(row, ascii_only=False) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
    write_file(folder / f"{name}.yaml", json_text(task, indent=1) + "\n")  # JSON is YAML
