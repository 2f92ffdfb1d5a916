"""How far a model that was made small is from the one that it was made of: on the same texts, token by
token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicpm4 import LLM, SamplingParams
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.progress import Progress
from minicpm4.quantize.divergence import kullback_leibler, log_probabilities

__all__ = ["Answers", "Fidelity", "compare", "own_texts", "windows"]

Doubles = NDArray[np.float64]
_ROWS = 256  # of logits that are held in float64 at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """Over ``positions``: mean negative log-likelihood of the next token in nats (``nll_before``, ``nll``),
    their difference with the half width of its 95% interval over windows (None of one window), mean and
    99.9th percentile of the Kullback-Leibler divergence in nats, and at how many of 10,000 positions the
    likeliest token is another (``flips``); ``flip_margin`` and ``flip_margin_high``: the median and the 90th
    percentile of the original's lead in logits at those. ``window_changes`` and ``window_kl``: of each window
    the change of the loss and the mean divergence, by which two results on the same windows are paired."""

    positions: int
    nll_before: float
    nll: float
    nll_change: float
    nll_interval: float | None
    kl_mean: float
    kl_high: float
    flips: float
    flip_margin: float
    flip_margin_high: float = 0.0
    window_changes: tuple[float, ...] = ()
    window_kl: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def windows(ids: Sequence[int], length: int, most: int) -> list[list[int]]:
    """``ids`` cut into windows of ``length`` tokens, at most ``most`` of them, evenly spread."""
    starts = range(0, len(ids) - length + 1, length)
    picked = (
        sorted({int(i) for i in np.linspace(0, len(starts) - 1, min(most, len(starts)))}) if starts else []
    )
    return [list(ids[starts[i] : starts[i] + length]) for i in picked]


class Answers(Protocol):
    """Whoever has logits (n, vocab), float32, of token ids: an LLM, or what one has said before."""

    def logits(self, token_ids: list[int], /) -> NDArray[np.float32]: ...


def compare(
    before: Answers, after: Answers, texts: Sequence[Sequence[int]], progress: Progress | None = None
) -> Fidelity:
    """Read ``texts`` (token ids) with both."""
    divergences: list[Doubles] = []
    flips, margins, changes, means = 0, [], [], []
    totals = np.zeros(2)
    for done, ids in enumerate(texts, 1):
        both = [llm.logits(list(ids)) for llm in (before, after)]
        sums, targets, first = np.zeros(2), np.asarray(ids[1:]), len(divergences)
        for start in range(0, len(targets), _ROWS):
            part = slice(start, min(start + _ROWS, len(targets)))
            old, new = (log_probabilities(logits[part]) for logits in both)
            rows = np.arange(len(old))
            sums -= [values[rows, targets[part]].sum() for values in (old, new)]
            divergences.append(kullback_leibler(old, new))
            other = old.argmax(axis=1) != new.argmax(axis=1)
            flips += int(other.sum())
            top = np.partition(old[other], -2, axis=1)[:, -2:] if other.any() else np.zeros((0, 2))
            margins.append(top[:, 1] - top[:, 0])
        means.append(float(np.concatenate(divergences[first:]).mean()))
        totals += sums
        changes.append(float((sums[1] - sums[0]) / len(targets)))
        if progress is not None:
            progress(done, len(texts))
    divergence, margin = np.concatenate(divergences), np.concatenate(margins)
    count = len(divergence)
    return Fidelity(
        positions=count,
        nll_before=float(totals[0] / count),
        nll=float(totals[1] / count),
        nll_change=float((totals[1] - totals[0]) / count),
        nll_interval=mean_with_interval(changes)[1],
        kl_mean=float(divergence.mean()),
        kl_high=float(np.quantile(divergence, 0.999)),
        flips=1e4 * flips / count,
        flip_margin=float(np.median(margin)) if len(margin) else 0.0,
        flip_margin_high=float(np.quantile(margin, 0.9)) if len(margin) else 0.0,
        window_changes=tuple(changes),
        window_kl=tuple(means),
    )


def own_texts(llm: LLM, count: int, length: int, seed: int, begin: Sequence[int] = ()) -> list[list[int]]:
    """Texts that the model writes by itself, from its first token on, or behind ``begin``, at temperature 1:
    token ids, each of ``length``. They have the words, languages and marks that it knows, and need no
    corpus."""
    start = list(begin) or llm.tokenizer.with_prefix([])
    start = start or llm.tokenizer.encode("\n", add_special_tokens=False)
    params = [
        SamplingParams(
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            ignore_eos=True,
            max_tokens=length - len(start),
            seed=seed + i,
        )
        for i in range(count)
    ]
    outputs = llm.generate([start] * count, params)
    return [start + list(output.token_ids) for output in outputs]
