"""Results as files hold them: those of this package's evaluations, and logs of lm-evaluation-harness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require, shown
from minicpm4.errors import ConfigError
from minicpm4.evals.harness.logs import is_log, read_logs
from minicpm4.evals.results import FIELD, PARTS, SHARE, VERSION, Result
from minicpm4.files import read_json

__all__ = ["read_results"]

MAX_BYTES = 1 << 30
MAX_ITEMS = 1_000_000
MOST = 1e18
REMEDY = (
    "give what --json of `minicpm4 eval code|math|ruler|ppl` wrote, --output of `eval tools`, or what "
    "lm-evaluation-harness wrote with --log_samples"
)
_TEXTS, _WHOLE = ("kind", "model", "description", "machine"), ("prompt_tokens", "new_tokens", "memory")


def read_results(file: Path) -> list[Result]:
    """The results that ``file`` holds; of a folder, those of the harness's run in it. Raises ConfigError."""
    if file.is_dir() or file.suffix == ".jsonl":
        return read_logs(file, REMEDY)
    content = read_json(file, MAX_BYTES, ConfigError, REMEDY, constants=True)
    if is_log(content):
        return read_logs(file, REMEDY)
    given = content.get(FIELD)
    require(isinstance(given, list) and bool(given), f"{file} holds no results", REMEDY)
    return [_result(one, f"{file}, result {number}") for number, one in enumerate(given or [], 1)]


def _result(raw: Any, where: str) -> Result:
    require(isinstance(raw, Mapping), f"{where} is no table", REMEDY)
    version = raw.get("version")
    require(
        type(version) is int and version == VERSION,
        f"{where} has version {shown(version)}, not {VERSION}",
        REMEDY,
    )
    for name in _TEXTS:
        require(isinstance(raw.get(name), str), f"{where}: {name} is no text", REMEDY)
    for name in (*_WHOLE, "seconds"):
        require(_number(raw.get(name), 0, MOST), f"{where}: {name} is no number", REMEDY)
    require(isinstance(raw.get("engine"), Mapping), f"{where}: engine is no table", REMEDY)
    hashes = raw.get("hashes")
    right = isinstance(hashes, Mapping) and all(isinstance(hashes.get(name), str) for name in PARTS)
    require(right, f"{where}: hashes do not name {', '.join(PARTS)}", REMEDY)
    fields = ("engine", "hashes", "seconds", *_TEXTS)
    whole = {name: int(raw[name]) for name in _WHOLE}
    return Result(**{name: raw[name] for name in fields} | whole | _items(raw, where))


def _items(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Items, and what they are."""
    measure, less = raw.get("measure", SHARE), raw.get("less", False)
    require(isinstance(measure, str), f"{where}: measure is no text", REMEDY)
    for name in ("less", "intervals"):
        require(isinstance(raw.get(name, True), bool), f"{where}: {name} is neither true nor false", REMEDY)
    items, weights, cut = raw.get("items"), raw.get("weights", {}), raw.get("cut")
    right = isinstance(items, Mapping) and 0 < len(items) <= MAX_ITEMS
    require(right, f"{where} has no items", "let the run end, or give it more time")
    most, told = (1.0, "from 0 to 1") if measure == SHARE else (MOST, "a number from 0 on")
    for name, score in dict(items or {}).items():
        require(_number(score, 0, most), f"{where}: the score of {name:.60} is not {told}", REMEDY)
    alike = isinstance(weights, Mapping) and weights.keys() in ({*()}, dict(items or {}).keys())
    require(alike, f"{where}: weights are not of the items", REMEDY)
    for name, weight in weights.items():
        require(_number(weight, 1e-9, MOST), f"{where}: the weight of {name:.60} is not above 0", REMEDY)
    require(cut is None or _number(cut, 0, MOST), f"{where}: cut is no number", REMEDY)
    made = {"items": items, "weights": weights, "measure": measure, "less": less}
    return {**made, "intervals": raw.get("intervals", True), "cut": None if cut is None else int(cut)}


def _number(value: Any, least: float, most: float) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value) and least <= value <= most
