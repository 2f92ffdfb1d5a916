"""What a run found, in one form for all evaluations, and what two runs of the same items differ by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.files import json_text, read_json
from minicpm4.machine import cpu_name

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams

__all__ = [
    "FIELD",
    "PARTS",
    "Paired",
    "Result",
    "comparable",
    "differing",
    "hash_of",
    "hashes_of",
    "paired",
    "read_results",
    "result_of",
    "whole_hash",
]

VERSION = 1
MAX_BYTES = 1 << 30
MAX_ITEMS = 1_000_000
PARTS = ("tasks", "template", "tokenizer", "settings")
"""What decides a score beside weights and engine, each by a hash of its own."""
FIELD = "results"


def hash_of(settings: Any) -> str:
    """Of what decides answers: those of different hashes are not to be mixed, nor compared."""
    return hashlib.sha256(json_text(settings, sort_keys=True).encode()).hexdigest()[:16]


def hashes_of(
    llm: LLM, *, tasks: Any, settings: Any, chat: bool, params: SamplingParams | None = None
) -> dict[str, str]:
    """By part: ``tasks``, what is asked and what is right; the template, as it renders a conversation (of
    ``chat``); the tokenizer; ``settings`` that decide answers, with ``params``. JSON values."""
    said = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": "An answer."}]
    drawn = {} if params is None else {name: repr(value) for name, value in asdict(params).items()}
    return {
        "tasks": hash_of(tasks),
        "template": hash_of(llm.chat_text([*said, said[0]]) if chat else ""),
        "tokenizer": hash_of([llm.tokenizer.digest, llm.tokenizer.encode("A question?")]),
        "settings": hash_of([settings, drawn]),
    }


def whole_hash(hashes: Mapping[str, str]) -> str:
    """Of all parts."""
    return hash_of([hashes.get(name, "") for name in PARTS])


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """``kind`` of evaluation; ``model``; ``engine``: options that were given, and ``description`` of how it
    ran; ``hashes`` by PARTS; ``items``: scores, 0 to 1, by name. ``prompt_tokens`` were read and
    ``new_tokens`` written in ``seconds``, all items together; ``memory``: bytes that the engine planned for.
    ``machine``: where."""

    kind: str
    model: str
    engine: Mapping[str, Any]
    description: str
    hashes: Mapping[str, str]
    items: Mapping[str, float]
    prompt_tokens: int
    new_tokens: int
    seconds: float
    memory: int
    machine: str

    @property
    def hash(self) -> str:
        """Of all parts."""
        return whole_hash(self.hashes)

    @property
    def score(self) -> tuple[float, float | None]:
        """The mean over items, and half the width of its 95% interval (None of one item)."""
        return mean_with_interval(list(self.items.values()))

    @property
    def seconds_each(self) -> float | None:
        """Of an item; None where it was not measured."""
        return self.seconds / len(self.items) if self.seconds > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"version": VERSION, **asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """By how much one result lies above another on the same ``count`` items: the mean, half the width of its
    95% interval (None of one), how many items are ``better`` and how many ``worse``."""

    count: int
    mean: float
    half: float | None
    better: int
    worse: int


def result_of(
    llm: LLM,
    *,
    kind: str,
    model: str,
    engine: Mapping[str, Any],
    hashes: Mapping[str, str],
    items: Mapping[str, float],
    taken: Iterable[tuple[int, int, float]],
) -> Result:
    """Of a run by ``llm``. ``taken``: tokens read and written, and seconds, of each answer."""
    each = list(taken)
    return Result(
        kind=kind,
        model=model,
        engine=dict(engine),
        description=llm.description,
        hashes=dict(hashes),
        items=dict(items),
        prompt_tokens=sum(read for read, _, _ in each),
        new_tokens=sum(written for _, written, _ in each),
        seconds=math.fsum(seconds for _, _, seconds in each),
        memory=llm.plan.needed,
        machine=cpu_name(),
    )


def paired(first: Result, other: Result) -> Paired:
    """On the items that both have. Raises ConfigError where there are none."""
    common = [name for name in first.items if name in other.items]
    require(bool(common), f"{first.model} and {other.model} have no item in common", "let both runs end")
    apart = [other.items[name] - first.items[name] for name in common]
    mean, half = mean_with_interval(apart)
    better, worse = sum(one > 0 for one in apart), sum(one < 0 for one in apart)
    return Paired(count=len(common), mean=mean, half=half, better=better, worse=worse)


def differing(first: Result, other: Result) -> list[str]:
    """What forbids a comparison, by name."""
    names = [name for name in PARTS if first.hashes.get(name) != other.hashes.get(name)]
    return names if first.kind == other.kind else ["kind", *names]


def read_results(file: Path) -> list[Result]:
    """The results that an evaluation's ``--json`` holds. Raises ConfigError."""
    remedy = "give what --json of `minicpm4 eval code|math|ruler` wrote"
    given = read_json(file, MAX_BYTES, ConfigError, remedy).get(FIELD)
    require(isinstance(given, list) and bool(given), f"{file} holds no results", remedy)
    return [_result(one, f"{file}, result {number}", remedy) for number, one in enumerate(given or [], 1)]


def _result(raw: Any, where: str, remedy: str) -> Result:
    require(isinstance(raw, Mapping), f"{where} is no table", remedy)
    require(
        raw.get("version") == VERSION, f"{where} has version {raw.get('version')!r}, not {VERSION}", remedy
    )
    for name in ("kind", "model", "description", "machine"):
        require(isinstance(raw.get(name), str), f"{where}: {name} is no text", remedy)
    for name in ("prompt_tokens", "new_tokens", "seconds", "memory"):
        require(_number(raw.get(name), 0, 1e18), f"{where}: {name} is no number", remedy)
    require(isinstance(raw.get("engine"), Mapping), f"{where}: engine is no table", remedy)
    hashes = raw.get("hashes")
    right = isinstance(hashes, Mapping) and all(isinstance(hashes.get(name), str) for name in PARTS)
    require(right, f"{where}: hashes do not name {', '.join(PARTS)}", remedy)
    items = raw.get("items")
    right = isinstance(items, Mapping) and 0 < len(items) <= MAX_ITEMS
    require(right, f"{where} has no items", "let the run end, or give it more time")
    for name, score in dict(items or {}).items():
        require(_number(score, 0, 1), f"{where}: the score of {name:.60} is not from 0 to 1", remedy)
    whole: dict[str, Any] = {name: int(raw[name]) for name in ("prompt_tokens", "new_tokens", "memory")}
    fields = ("kind", "model", "engine", "description", "hashes", "items", "seconds", "machine")
    return Result(**{name: raw[name] for name in fields}, **whole)


def _number(value: Any, least: float, most: float) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value) and least <= value <= most


def comparable(results: Sequence[Result], across: Sequence[str] = ()) -> None:
    """Raise ConfigError, by name of what differs, unless all may be compared with the first: parts in
    ``across`` may differ."""
    first = results[0]
    for other in results[1:]:
        names = [name for name in differing(first, other) if name not in across]
        if not names:
            continue
        told = " and ".join(names)
        free = [name for name in names if name not in ("kind", "tasks")]
        remedy = "compare runs of the same"
        if free == names:
            remedy += f", or say --across {','.join(free)}, if that is what you compare"
        raise ConfigError(f"{first.model} and {other.model} differ in {told}: not compared", remedy)
