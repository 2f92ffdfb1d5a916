"""What a run found, in one form for all evaluations, and what two runs of the same items differ by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.files import json_text
from minicpm4.machine import cpu_name

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams

__all__ = [
    "BITS_A_BYTE",
    "FIELD",
    "PARTS",
    "SHARE",
    "Paired",
    "Result",
    "comparable",
    "differing",
    "hash_of",
    "hashes_of",
    "paired",
    "result_of",
    "weights_of",
    "whole_hash",
]

VERSION = 1
PARTS = ("tasks", "template", "tokenizer", "settings")
"""What decides a score beside weights and engine, each by a hash of its own."""
FIELD = "results"
SHARE, BITS_A_BYTE = "share", "bits a byte"


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


def weights_of(llm: LLM) -> str:
    """A hash of the files that its weights are of: answers of others, under the same name, are not to be
    mixed. Empty of an engine of somebody else's. Raises CheckpointError."""
    try:
        return hash_of(llm.origin)
    except UnsupportedError:
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """``kind`` of evaluation; ``model``; ``engine``: options that were given, and ``description`` of how it
    ran; ``hashes`` by PARTS; ``items``: scores by name, of which ``measure`` says what they are (SHARE: 0 to
    1) and ``less`` whether less is better; ``weights`` of items, by name (none: all weigh alike);
    ``intervals``: whether there are enough to tell one. ``prompt_tokens`` were read and ``new_tokens``
    written in ``seconds``, all items together (0: not measured); ``cut``: how many answers the limit of
    tokens ended (None: nobody knows, or nothing was written); ``memory``: bytes that the engine planned for.
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
    measure: str = SHARE
    less: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    intervals: bool = True
    cut: int | None = None

    @property
    def hash(self) -> str:
        """Of all parts."""
        return whole_hash(self.hashes)

    @property
    def score(self) -> tuple[float, float | None]:
        """The mean over items, and half the width of its 95% interval (None of one item)."""
        return self._mean(self.items)

    def apart(self, other: Result) -> tuple[dict[str, float], tuple[float, float | None]]:
        """By how much ``other`` lies above this one: of each item that both have, and the mean with half the
        width of its 95% interval. There must be such items."""
        each = {name: other.items[name] - one for name, one in self.items.items() if name in other.items}
        mean, half = self._mean(each)
        return each, (mean, half if other.intervals else None)

    def _mean(self, values: Mapping[str, float]) -> tuple[float, float | None]:
        weights = [self.weights[name] for name in values] if self.weights else None
        mean, half = mean_with_interval(list(values.values()), weights)
        return mean, half if self.intervals else None

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
    95% interval (None of one, and of texts too short for it), how many items are ``better`` and how many
    ``worse``."""

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
    taken: Iterable[tuple[int, int, float]] = (),
    **more: Any,
) -> Result:
    """Of a run by ``llm``. ``taken``: tokens read and written, and seconds, of each answer; ``more``: other
    fields of Result."""
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
        memory=_planned(llm),
        machine=cpu_name(),
        **more,
    )


def _planned(llm: LLM) -> int:
    try:
        return llm.plan.needed
    except UnsupportedError:  # an engine of somebody else's has no plan
        return 0


def paired(first: Result, other: Result) -> Paired:
    """On the items that both have. Raises ConfigError where there are none."""
    common = first.items.keys() & other.items.keys()
    require(bool(common), f"{first.model} and {other.model} have no item in common", "let both runs end")
    each, (mean, half) = first.apart(other)
    sign = -1 if first.less else 1
    better, worse = (sum(side * one > 0 for one in each.values()) for side in (sign, -sign))
    return Paired(count=len(each), mean=mean, half=half, better=better, worse=worse)


def differing(first: Result, other: Result) -> list[str]:
    """What forbids a comparison, by name."""
    names = [name for name in PARTS if first.hashes.get(name) != other.hashes.get(name)]
    alike = (first.kind, first.measure, first.less) == (other.kind, other.measure, other.less)
    return names if alike else ["kind", *names]


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
