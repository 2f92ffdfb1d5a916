"""Problems of mathematics and their right answers: from files, or made by reasoning-gym."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.evals.rows import MAX_CHARS, check_text, read_rows

__all__ = ["Problem", "make_problems", "read_problems"]

_FINAL = re.compile(r"####[ \t]*(\S[^\n]*)")  # where GSM8K's solutions say their answer
_EXPONENT = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?[eE][+-]?\d{1,3}", re.ASCII)
# By which names files have a question, its answer and its number.
QUESTIONS, ANSWERS, NUMBERS = ("question", "problem", "prompt"), ("answer", "expected"), ("task_id", "id")
REMEDY = "each line is a table with question and answer, as GSM8K's"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """``answer``: the right one, as a number or in LaTeX."""

    task: str
    question: str
    answer: str


def read_problems(file: Path) -> list[Problem]:
    """JSON lines, gzip or not, with ``question`` and ``answer``: a number, LaTeX, or a solution that ends
    in "#### " and the answer. Raises ConfigError with the line."""
    found = []
    for number, (where, row) in enumerate(read_rows(file, REMEDY)):
        question = check_text(row, _named(row, QUESTIONS), where, REMEDY)
        task = next((str(row[name])[:200] for name in NUMBERS if name in row), str(number))
        found.append(Problem(task=task, question=question, answer=_answer(row, where)))
    tasks = {one.task for one in found}
    require(len(tasks) == len(found), f"{file} has a number of a problem twice", "give each its own id")
    return found


def _named(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in row), names[0])


def _answer(row: Mapping[str, Any], where: str) -> str:
    value = row.get(_named(row, ANSWERS))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _in_digits(str(value))
    right = isinstance(value, str) and 0 < len(value.strip()) <= MAX_CHARS
    require(right, f"{where}: answer is no number, and no text", REMEDY)
    ends = _FINAL.findall(str(value))
    return _in_digits((ends[-1] if ends else str(value)).strip())


def _in_digits(number: str) -> str:
    """1e-05 as 0.00001: of the first math-verify reads no more than the 1."""
    return f"{Decimal(number):f}" if _EXPONENT.fullmatch(number) else number


def make_problems(name: str, count: int, seed: int) -> list[Problem]:
    """The first ``count`` of reasoning-gym's set ``name``. Raises UnsupportedError where it is not installed,
    ConfigError for a set that it does not have, or that has answers in words."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        remedy = "pip install reasoning-gym==0.1.25, or give --problems"
        raise UnsupportedError("--gym needs the package reasoning-gym", remedy) from None
    require(name in DATASETS, f"reasoning-gym has no set {name!r}", suggest(name, list(DATASETS)))
    found = []
    for number, entry in enumerate(reasoning_gym.create_dataset(name, size=count, seed=seed)):
        answer = str(entry["answer"]).strip()
        told = f"reasoning-gym's {name} has answers that are no mathematics, as {answer!r:.40}"
        if not any(char.isdigit() for char in answer):
            raise ConfigError(told, "take one with numbers, such as gsm_symbolic or basic_arithmetic")
        found.append(Problem(task=f"{name} {number}", question=str(entry["question"]), answer=answer))
    return found
