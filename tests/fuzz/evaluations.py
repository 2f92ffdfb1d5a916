"""Readers of what evaluations begin with and leave: problems, results, logs of lm-evaluation-harness."""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from minicpm4.cli.eval_compare import _groups, _picture
from minicpm4.evals import code, maths
from minicpm4.evals.harness.tasks import read_choices, task_name, write_task
from minicpm4.evals.result_files import read_results
from minicpm4.files import finite, json_text
from tests.evals.test_code import PROMPT, TESTS
from tests.evals.test_compare import result
from tests.evals.test_harness_logs import DATE, SCORES, log
from tests.evals.test_harness_tasks import ROWS
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import dumped, mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import Reader

_CODE = {"task_id": "T/0", "prompt": PROMPT, "test": TESTS, "entry_point": "twice"}
_MATHS: list[dict[str, Any]] = [
    {"question": "1 + 1?", "answer": "It is so. #### 2"},
    {"problem": "x?", "expected": 1e-05, "id": 7},
    {"task_id": "b", "prompt": "y?", "answer": "\\frac{1}{2}"},
]
_PROBLEMS = {"code": [_CODE, _CODE | {"task_id": "T/1"}], "math": _MATHS, "tasks": ROWS}


def _lines(rng: Random, rows: list[Any]) -> bytes:
    """JSON lines, one of them odd, packed or not, seldom of odd bytes."""
    rows = list(rows)
    at = rng.randrange(len(rows))
    rows[at] = mutated_value(rng, rows[at])
    content = "".join(dumped(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        content = mutated_bytes(rng, content, len(content))
    if rng.random() < 0.1:
        content = mutated_bytes(rng, gzip.compress(content, mtime=0), len(content))
    return content


def _draw_problems(rng: Random) -> bytes:
    kind = rng.choice(list(_PROBLEMS))
    return kind.encode() + b"\n" + _lines(rng, _PROBLEMS[kind])


def _read_problems(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    file = folder / "a.jsonl"
    file.write_bytes(content)
    if kind == b"code":
        code.read_problems(file)
    elif kind == b"math":
        maths.read_problems(file)
    else:
        (folder / "tasks").mkdir()
        write_task(folder / "tasks", task_name(file), read_choices(file)[0])


def _draw_results(rng: Random) -> bytes:
    one = result(weights={"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.5} if rng.random() < 0.5 else {}, cut=3)
    other = result(model="two", engine={"kv": "int8"}, weights=one.weights)
    first, second = (json.loads(json_text({"results": [each.as_dict()]})) for each in (one, other))
    if rng.random() < 0.7:  # of what is no reason not to compare
        key = rng.choice(["items", "engine", "weights", "model", "seconds", "cut", "memory", "machine"])
        second["results"][0][key] = mutated_value(rng, second["results"][0][key])
        content = dumped(second).encode("utf-8", "surrogatepass")
    else:
        content = mutated_json(rng, second)
    return packed({"a.json": dumped(first).encode(), "b.json": content})


def _read_results(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    _compare(folder / "a.json", folder / "b.json")


def _compare(*files: Path) -> None:
    """As `eval compare` does, all that it writes."""
    groups = _groups([one for file in files for one in read_results(file)], ["settings", "template"])
    _picture(groups).encode()
    for group in groups:
        group.markdown().encode()
        json_text(finite(group.figures())).encode()


@cache
def _log_files(name: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        log(Path(folder) / name, {"piqa": SCORES, "wiki": {"bits_per_byte": [[-30.0, 20], [-10.0, 10]]}})
        return {f"{name}/{file.name}": file.read_bytes() for file in (Path(folder) / name).iterdir()}


def _draw_logs(rng: Random) -> bytes:
    first, other = _log_files("a"), dict(_log_files("b"))
    name = rng.choice(sorted(other))
    if name.endswith(".json"):
        other[name] = mutated_json(rng, json.loads(other[name]))
    else:
        other[name] = _lines(rng, [json.loads(line) for line in other[name].splitlines()])
    return packed(first | other)


def _read_logs(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    about = folder / "b" / f"results_{DATE}.json"
    _compare(folder / "a", about if len(case) % 2 else folder / "b")


READERS = [
    Reader(name="problems", draw=_draw_problems, read=_read_problems),
    Reader(name="results", draw=_draw_results, read=_read_results, share=0.5),
    Reader(name="harness-logs", draw=_draw_logs, read=_read_logs, share=0.5),
]
