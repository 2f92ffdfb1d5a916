"""What lm-evaluation-harness logs is compared, document by document, or refused by what differs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from minicpm4.cli import run
from minicpm4.errors import ConfigError
from minicpm4.evals.result_files import read_results
from minicpm4.evals.results import BITS_A_BYTE, paired

DATE = "2026-12-01T14-10-31.226085"
SCORES = {"acc": [1.0, 0.0, 1.0, 0.0], "acc_norm": [1, 1, 1, 0]}


def log(
    folder: Path,
    tasks: Mapping[str, Mapping[str, list[Any]]],
    *,
    change: Callable[[dict[str, Any]], object] = lambda about: None,
    **fields: Any,
) -> Path:
    """A run as 0.4.13 leaves it: scores by task and metric; ``fields`` of every sample."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "results": {},
        "configs": {task: {"output_type": "multiple_choice", "repeats": 1} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: dict.fromkeys(metrics, True) for task, metrics in tasks.items()},
        "config": {
            "model": "minicpm4",
            "model_args": {"model": "small", "kv": folder.name},
            "gen_kwargs": {},
        },
        "model_source": "minicpm4",
        "model_name": "small",
        "lm_eval_version": "0.4.13",
    }
    change(about)
    for task, metrics in tasks.items():
        rows = []
        for number, scores in enumerate(zip(*metrics.values(), strict=True)):
            row = {"doc_id": number, "filter": "none", "metrics": list(metrics), "doc_hash": f"d{number}"}
            row |= {
                "prompt_hash": f"p{number}",
                "target_hash": "t",
                **dict(zip(metrics, scores, strict=True)),
            }
            rows.append(json.dumps(row | fields) + "\n")
        (folder / f"samples_{task}_{DATE}.jsonl").write_text("".join(rows))
    file = folder / f"results_{DATE}.json"
    file.write_text(json.dumps(about))
    return file


def test_each_task_and_metric_is_a_result(tmp_path: Path) -> None:
    file = log(tmp_path / "a", {"piqa": SCORES, "siqa": {"acc": [True, False]}})
    found = read_results(file)
    assert [one.kind for one in found] == ["lm-eval piqa acc", "lm-eval piqa acc_norm", "lm-eval siqa acc"]
    assert found[0].items == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0} and found[0].model == "small"
    assert found[0].engine == {"model_source": "minicpm4", "kv": "a"} and not found[0].less
    samples = tmp_path / "a" / f"samples_siqa_{DATE}.jsonl"
    assert read_results(samples) == found[2:] and read_results(tmp_path / "a") == found
    assert read_results(tmp_path) == found, "a folder above, as --output_path names it"


def test_texts_are_bits_a_byte_and_less_is_better(tmp_path: Path) -> None:
    both = [
        read_results(log(tmp_path / name, {"wiki": {"bits_per_byte": [[-30.0, 20], [second, 10]]}}))[0]
        for name, second in (("a", -10.0), ("b", -5.0))
    ]
    assert both[0].measure == BITS_A_BYTE and both[0].less
    assert both[0].score[0] == pytest.approx(40 / 30 / math.log(2))
    found = paired(*both)
    assert found.mean == pytest.approx(-5 / 30 / math.log(2)) and (found.better, found.worse) == (1, 0)


def test_the_command_has_a_table_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"acc": [1.0, 1.0, 1.0, 0.0], "acc_norm": [1, 1, 1, 0]}
    files = [str(log(tmp_path / name, {"piqa": scores})) for name, scores in (("a", SCORES), ("b", other))]
    outputs = [tmp_path / "t.md", tmp_path / "t.svg", tmp_path / "t.json"]
    flags = zip(("--markdown", "--plot", "--json"), map(str, outputs), strict=True)
    assert run(["eval", "compare", *files, *(one for pair in flags for one in pair)]) == 0
    out = capsys.readouterr().out
    assert "+25.0% ± 79.6" in out and "1, 0" in out and "small, kv=a" in out
    assert "lm-eval piqa acc: hash" in out and "lm-eval piqa acc_norm: hash" in out
    assert "note: not all files say which tokenizer was used" in out
    assert (
        outputs[0].read_text().count("| result |") == 2 and "lm-eval piqa acc_norm" in outputs[1].read_text()
    )
    kinds = [one["kind"] for one in json.loads(outputs[2].read_text())["comparisons"]]
    assert kinds == ["lm-eval piqa acc", "lm-eval piqa acc_norm"]


@pytest.mark.parametrize(
    ("fields", "change", "said"),
    [
        ({"doc_hash": "other"}, None, "differ in tasks"),
        ({"prompt_hash": "other"}, None, "differ in template"),
        ({}, lambda about: about["n-shot"].update(piqa=5), "differ in settings"),
        ({}, lambda about: about.update(system_instruction_sha="x"), "differ in settings"),
        ({}, lambda about: about["configs"].update(piqa=5), "differ in settings"),
        ({}, lambda about: about.update({"n-shot": 5, "versions": None, "model_name": 5}), "differ in tasks"),
        ({}, lambda about: about["versions"].update(piqa=2.0), "differ in tasks"),
    ],
)
def test_what_differs_is_refused_by_name(
    tmp_path: Path, fields: Any, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = log(tmp_path / "a", {"piqa": SCORES})
    other = log(tmp_path / "b", {"piqa": SCORES}, change=change or (lambda about: None), **fields)
    assert run(["eval", "compare", str(first), str(other)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    lone = log(tmp_path / "c", {"siqa": SCORES})
    assert run(["eval", "compare", str(first), str(lone)]) == 2
    assert "lm-eval piqa acc is in one result alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"doc_id": "0"}, "doc_id is no whole number"),
        ({"doc_id": 0}, "document 0 is there twice"),
        ({"doc_hash": None}, "doc_hash is no text"),
        ({"metrics": "acc"}, "metrics are no list of names"),
        ({"acc": float("nan")}, "acc: no share of each document"),
        ({"acc": 10**299}, "acc: no share of each document"),
        ({"acc": [-1.0, 4]}, "acc: no share of each document"),
        ({"metrics": []}, "no metric: no share"),
    ],
)
def test_wrong_samples_are_refused(tmp_path: Path, fields: Any, said: str) -> None:
    file = log(tmp_path / "a", {"piqa": {"acc": [1.0, 0.0]}}, **fields)
    with pytest.raises(ConfigError, match=said):
        read_results(file)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    file = log(tmp_path / "a", {"piqa": SCORES})
    log(tmp_path / "b", {"piqa": SCORES})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has 2 files of results.* give one of them"):
        read_results(tmp_path)
    with pytest.raises(ConfigError, match="has no files of results"):
        read_results(tmp_path / "empty")
    (tmp_path / "renamed.json").write_text(file.read_text())
    with pytest.raises(ConfigError, match="has no name of the harness's"):
        read_results(tmp_path / "renamed.json")
    (samples,) = (tmp_path / "a").glob("samples_*")
    file.rename(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="not the one file of results of its run"):
        read_results(samples)
    samples.unlink()
    (tmp_path / "x.json").rename(file)
    with pytest.raises(ConfigError, match=r"is not there\. ask with --log_samples"):
        read_results(file)
