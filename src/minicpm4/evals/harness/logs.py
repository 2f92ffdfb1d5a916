"""What lm-evaluation-harness wrote with ``--log_samples``, as results: of each task, metric and filter one.

A run leaves ``results_DATE.json`` and, beside it, ``samples_TASK_DATE.jsonl`` for each task; where its
``--output_path`` was NAME.json, the first is called NAME_DATE.json. Needs no lm_eval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.evals.results import BITS_A_BYTE, SHARE, Result, hash_of
from minicpm4.evals.rows import read_rows
from minicpm4.files import finite, read_json

__all__ = ["is_log", "read_logs"]

MAX_BYTES, MAX_ROWS = 1 << 30, 1_000_000
DATE = r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)"
_RESULTS, _SAMPLES = re.compile(rf".+{DATE}\.json"), re.compile(rf"samples_(.+){DATE}\.jsonl")
# Metrics of whole texts, whose items are a log likelihood and how much text that is of.
TEXTS = {"bits_per_byte": BITS_A_BYTE, "word_perplexity": "bits a word"}
HASHES = ("doc_hash", "target_hash", "prompt_hash")
NAMES = "keep the names that the harness gave: results_DATE.json, and samples_TASK_DATE.jsonl beside it"


MOST = 1e18  # of bits of an item
_Scores = dict[str, tuple[float, float] | None]  # score and weight of each document; None: it has no such


def is_log(content: Mapping[str, Any]) -> bool:
    """Whether a table of JSON is the harness's file of results."""
    return all(isinstance(content.get(name), Mapping) for name in ("results", "configs", "config"))


def read_logs(file: Path, remedy: str) -> list[Result]:
    """Of a file of results all tasks, of one of samples that task, of a folder the only run in it. Raises
    ConfigError."""
    if file.is_dir():
        below = sorted([*file.glob("*.json"), *file.glob("*/*.json")])
        runs = [one for one in below if _RESULTS.fullmatch(one.name)]
        count = f"{file} has {len(runs) or 'no'} files of results of lm-evaluation-harness"
        require(len(runs) == 1, count, "give one of them" if runs else remedy)
        (file,) = runs
    sampled, named = _SAMPLES.fullmatch(file.name), _RESULTS.fullmatch(file.name)
    date = sampled[2] if sampled else named[1] if named else None
    if date is None:
        raise ConfigError(f"{file} has no name of the harness's", NAMES)
    run = _run_of(file, date) if sampled else file
    about = read_json(run, MAX_BYTES, ConfigError, remedy, constants=True)
    require(is_log(about), f"{run} is no file of results of lm-evaluation-harness", remedy)
    found: list[Result] = []
    for task in [sampled[1]] if sampled else sorted(map(str, about["configs"])):
        samples = run.parent / f"samples_{task}_{date}.jsonl"
        require(samples.is_file(), f"{samples} is not there", "ask with --log_samples, and " + NAMES)
        found += _results(about, task, samples)
    require(bool(found), f"{run} names no task", remedy)
    return found


def _run_of(samples: Path, date: str) -> Path:
    runs = [one for one in sorted(samples.parent.glob("*.json")) if one.stem.endswith(f"_{date}")]
    require(len(runs) == 1, f"beside {samples} there is not the one file of results of its run", NAMES)
    return runs[0]


def _results(about: Mapping[str, Any], task: str, samples: Path) -> list[Result]:
    asked: dict[str, list[str]] = {}
    scored: dict[tuple[str, str], _Scores] = {}
    for where, row in read_rows(samples, NAMES, limit=MAX_BYTES, most=MAX_ROWS, constants=True):
        name = _document(row, where)
        asked.setdefault(name, [row[one] for one in HASHES])
        for metric in row["metrics"]:
            found = scored.setdefault((metric, str(row.get("filter", "none"))), {})
            require(name not in found, f"{where}: document {name} is there twice", "give whole files")
            found[name] = _score(metric, row.get(metric))
    # What is no share of a document, such as a part of BLEU, is nothing that a mean over them says.
    whole = {key: one for key, one in scored.items() if None not in one.values()}
    told = ", ".join(sorted({metric for metric, _ in scored})) or "no metric"
    require(
        bool(whole),
        f"{samples}: {told}: no share of each document",
        "give the samples_*.jsonl of other tasks",
    )
    complete = all(one.keys() == asked.keys() for one in whole.values())
    require(complete, f"{samples}: not all documents have all metrics", "give whole files")
    return [_result(about, task, key, one, asked) for key, one in sorted(whole.items())]


def _document(row: Mapping[str, Any], where: str) -> str:
    number, metrics = row.get("doc_id"), row.get("metrics")
    require(type(number) is int, f"{where}: doc_id is no whole number", NAMES)
    for name in HASHES:
        require(isinstance(row.get(name), str), f"{where}: {name} is no text", NAMES)
    right = isinstance(metrics, list) and all(isinstance(one, str) for one in metrics)
    require(right, f"{where}: metrics are no list of names", NAMES)
    return str(number)


def _score(metric: str, value: Any) -> tuple[float, float] | None:
    if metric not in TEXTS:
        right = isinstance(value, bool | int | float) and 0 <= value <= 1
        return (float(value), 1.0) if right else None
    pair = value if isinstance(value, list) and len(value) == 2 and all(map(_plain, value)) else (1, 0)
    likelihood, size = pair
    if likelihood > 0 or size < 1 or -likelihood > MOST:
        return None
    return -likelihood / math.log(2) / size, float(size)


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _result(
    about: Mapping[str, Any],
    task: str,
    key: tuple[str, str],
    scored: _Scores,
    asked: Mapping[str, Sequence[str]],
) -> Result:
    metric, way = key
    model, options = _model(about)
    pairs = {name: one for name, one in scored.items() if one is not None}
    text = metric in TEXTS
    return Result(
        kind=f"lm-eval {task} {metric}" + ("" if way == "none" else f" {way}"),
        model=model,
        engine={"model_source": str(about.get("model_source")), **options},
        description=f"lm-evaluation-harness {about.get('lm_eval_version')}",
        hashes=_hashes(about, task, asked),
        items={name: score for name, (score, _) in pairs.items()},
        prompt_tokens=0,
        new_tokens=0,
        seconds=0.0,  # the harness's are of all tasks, and of loading
        memory=0,
        machine="",
        measure=TEXTS.get(metric, SHARE),
        less=text or _within(about, "higher_is_better", task, metric) is False,
        weights={name: weight for name, (_, weight) in pairs.items()} if text else {},
    )


def _model(about: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Its name, and the other ``model_args``."""
    given = _within(about, "config", "model_args")
    if isinstance(given, str):
        given = dict(one.partition("=")[::2] for one in given.split(","))
    options = {str(name): finite(one) for name, one in given.items()} if isinstance(given, Mapping) else {}
    named = str(about.get("model_name") or about.get("model_source") or "")
    return named, {name: one for name, one in options.items() if name not in ("model", "pretrained")}


def _hashes(about: Mapping[str, Any], task: str, asked: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Of the documents, of prompts as they were rendered, and of settings. No file says which tokenizer."""
    each = sorted((int(name), *hashes) for name, hashes in asked.items())
    own = ("output_type", "generation_kwargs", "filter_list", "repeats")
    told = [_within(about, "configs", task, name) for name in own]
    run = ("system_instruction_sha", "fewshot_as_multiturn")
    shots = _within(about, "n-shot", task)
    told += [_within(about, "config", "gen_kwargs"), shots, *(about.get(name) for name in run)]
    told += [_within(about, "config", "fewshot_seed")] if shots else []
    documents = [one[:3] for one in each]
    return {
        "tasks": hash_of(finite([task, _within(about, "versions", task), documents])),
        "template": hash_of([one[3] for one in each]),
        "tokenizer": "",
        "settings": hash_of(finite(told)),
    }


def _within(table: Any, *path: str) -> Any:
    """What stands at the end of ``path``, None where that leads nowhere."""
    for name in path:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table
