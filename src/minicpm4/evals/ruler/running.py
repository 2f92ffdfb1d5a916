"""Asking a model, scoring what it says, and the figures of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from minicpm4 import LLM, SamplingParams
from minicpm4.config.strict import from_table
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.evals.ruler.fitting import Maker, Sample
from minicpm4.evals.ruler.kinds import KINDS, Kind
from minicpm4.files import Kept
from minicpm4.plot import heat_map

__all__ = ["Answer", "Score", "ask", "effective_length", "score_of", "scores", "svg"]

ENOUGH = 0.856  # what Llama-2-7B reaches at 4K, RULER's mark for a length that a model masters


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """``score`` from 0 to 1 of what was said, in ``tokens``; ``read``: key/value blocks read / visible;
    ``cut``: the limit of tokens ended it (None: it was kept before that was asked)."""

    kind: str
    length: int
    index: int
    prompt_tokens: int
    text: str
    references: tuple[str, ...]
    score: float
    read: float
    tokens: int = 0
    seconds: float = 0.0
    cut: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Of ``count`` answers of a kind at a length: the mean, half the width of its 95% interval (None of one),
    and the share of blocks that was read."""

    kind: str
    length: int
    count: int
    mean: float
    half: float | None
    read: float


def score_of(kind: Kind, text: str, references: Sequence[str]) -> float:
    """RULER's: the share of references that stand in the answer, of ``any_one`` kinds whether one does;
    letters large and small are alike."""
    found = [reference.lower() in text.lower() for reference in references]
    return float(any(found)) if kind.any_one else sum(found) / len(found)


def ask(
    llm: LLM,
    maker: Maker,
    kinds: Sequence[Kind],
    lengths: Sequence[int],
    each: int,
    kept: Kept,
    *,
    tick: Callable[[int], object] = lambda done: None,
    until: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """``each`` questions of every kind at every length, shortest first; answers are kept as they come, and
    found there again. Ends early where ``until`` says so. Raises ConfigError before any is asked where a kind
    does not fit in a length."""
    for length in lengths:
        for kind in kinds:
            maker.shortest(kind, length)
    answers: list[Answer] = []
    for length in sorted(lengths):
        for index in range(each):
            for kind in kinds:
                found = kept.get(
                    lambda value: from_table(Answer, value, "it", any_text=True), kind.name, length, index
                )
                if found is None:
                    if until():
                        continue
                    found = _one(llm, maker.sample(kind, length, index))
                    kept.put(asdict(found), kind.name, length, index)
                answers.append(found)
                tick(len(answers))
    return answers


def _one(llm: LLM, sample: Sample) -> Answer:
    begin = time.perf_counter()
    out = llm.generate(
        list(sample.prompt), SamplingParams(max_tokens=sample.tokens, temperature=0.0, ignore_eos=False)
    )
    return Answer(
        kind=sample.kind,
        length=sample.length,
        index=sample.index,
        prompt_tokens=len(sample.prompt),
        text=out.text,
        references=sample.references,
        score=score_of(KINDS[sample.kind], out.text, sample.references),
        read=out.metrics.blocks_read_share,
        tokens=len(out.token_ids),
        seconds=time.perf_counter() - begin,
        cut=out.finish_reason == "length",
    )


def scores(answers: Sequence[Answer]) -> list[Score]:
    """Of every kind at every length."""
    cells: dict[tuple[str, int], list[Answer]] = {}
    for one in answers:
        cells.setdefault((one.kind, one.length), []).append(one)
    return [_score(kind, length, each) for (kind, length), each in cells.items()]


def _score(kind: str, length: int, answers: Sequence[Answer]) -> Score:
    mean, half = mean_with_interval([one.score for one in answers])
    return Score(
        kind=kind,
        length=length,
        count=len(answers),
        mean=mean,
        half=half,
        read=sum(one.read for one in answers) / len(answers),
    )


def averages(found: Sequence[Score], wanted: int | None = None) -> dict[int, float]:
    """By length the mean over kinds; ``wanted``: of lengths that have as many answers alone, since kinds are
    not equally hard."""
    by_length: dict[int, list[Score]] = {}
    for one in found:
        by_length.setdefault(one.length, []).append(one)
    return {
        length: sum(one.mean for one in each) / len(each)
        for length, each in sorted(by_length.items())
        if wanted is None or sum(one.count for one in each) == wanted
    }


def effective_length(
    found: Sequence[Score],
    enough: float = ENOUGH,
    *,
    lengths: Sequence[int] | None = None,
    wanted: int | None = None,
) -> int | None:
    """The greatest of ``lengths`` (of those that were asked) up to which the average reaches ``enough``, and
    is known (``averages``); None: that of the shortest does not."""
    best, means = None, averages(found, wanted)
    for length in sorted({one.length for one in found} if lengths is None else lengths):
        if means.get(length, -1.0) < enough:
            break
        best = length
    return best


def svg(title: str, found: Sequence[Score]) -> str:
    """Kinds down, lengths across; what was not asked is left empty."""
    lengths = sorted({one.length for one in found})
    kinds = [name for name in KINDS if any(one.kind == name for one in found)]
    by_place = {(one.kind, one.length): one.mean for one in found}
    return heat_map(
        title,
        [[by_place.get((kind, length), math.nan) for length in lengths] for kind in kinds],
        rows=kinds,
        columns=[f"{length:,}" for length in lengths],
        x_label="length of question and answer, tokens",
        y_label="kind",
    )
