"""How well models foresee a text: loss in windows, bits a byte, two models paired place by place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4 import LLM
from minicpm4.config.strict import require
from minicpm4.errors import RequestError
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.progress import Progress

__all__ = ["PLACES", "TextLoss", "apart", "by_stretch", "read", "total", "window_spans"]

PLACES = 32  # stretches of a text, equally long in bytes, over which intervals are told
ENOUGH = 4  # tokens of a stretch: of fewer, no interval is told

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLoss:
    """What a model made of a text: ``tokens`` whose loss was taken; ``places``, their losses in nats by
    stretches of the text, which have ``sizes`` bytes (UTF-8)."""

    tokens: int
    places: tuple[float, ...]
    sizes: tuple[float, ...]

    @property
    def nats(self) -> float:
        """Of all tokens."""
        return sum(self.places)

    @property
    def nbytes(self) -> float:
        """Of the text."""
        return sum(self.sizes)

    @property
    def nll(self) -> float:
        """Mean loss of a token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll); of models with different tokens it says nothing."""
        return math.exp(min(self.nll, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between models with different tokens."""
        return self.nats / math.log(2) / self.nbytes

    @property
    def short(self) -> bool:
        """Whether its stretches have too few tokens for an interval."""
        return self.tokens < ENOUGH * len(self.places)

    @property
    def interval(self) -> float | None:
        """Half the width of the 95% interval of ``bits_per_byte``, over places; None of too short a text."""
        return _mean(self, np.array(self.places))[1]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        derived = ("nats", "nbytes", "nll", "perplexity", "bits_per_byte", "interval")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def window_spans(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over ``count`` tokens: (first, end, first whose loss is taken). Each token's loss is taken
    once, after at least ``window - stride`` tokens where so many are before it."""
    taken = 0
    while taken < count:
        end = min(window if taken == 0 else taken + stride, count)
        yield max(0, end - window), end, taken
        taken = end


def read(
    llm: LLM, text: str, *, window: int, stride: int | None = None, progress: Progress | None = None
) -> TextLoss:
    """Read ``text`` in windows of ``window`` tokens, the begin token first in each where the model has one;
    ``stride`` (half of it) tokens of each window but the first count, each after one other at least. Raises
    ConfigError, RequestError."""
    tokenizer = llm.tokenizer
    prefix = tokenizer.with_prefix([])
    stride = max(1, (window - len(prefix)) // 2) if stride is None else stride
    room = window - len(prefix)
    require(room >= 2, f"a window of {window} tokens is too short", "use 2 or more beside the begin token")
    # Nothing foresees the first token of a window where no begin token stands before it.
    most = room if prefix else room - 1
    require(
        1 <= stride <= most,
        f"stride = {stride} does not fit a window of {room} tokens of text",
        f"use 1 to {most}",
    )
    ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    if len(ids) + len(prefix) < 2:
        raise RequestError(f"the text has {len(ids)} tokens: none has another before it", "give more text")
    losses = np.zeros(len(ids))
    for first, end, taken in window_spans(len(ids), room, stride):
        # Without a begin token nothing foresees the first of the text; in later windows it is not counted.
        found = llm.nll([*prefix, *ids[first:end]])
        skipped = taken - first if prefix else max(taken - first - 1, 0)
        part = found[skipped:]
        losses[end - len(part) : end] = part
        if progress is not None:
            progress(end, len(ids))
    nbytes = len(text.encode("utf-8"))
    return TextLoss(
        tokens=len(ids) if prefix else len(ids) - 1,
        places=tuple(_by_place(losses, [len(tokenizer.token_bytes(one)) for one in ids]).tolist()),
        sizes=(nbytes / PLACES,) * PLACES,
    )


def total(losses: Sequence[TextLoss]) -> TextLoss:
    """All texts together; places stay apart."""
    return TextLoss(
        tokens=sum(one.tokens for one in losses),
        places=tuple(value for one in losses for value in one.places),
        sizes=tuple(value for one in losses for value in one.sizes),
    )


def apart(loss: TextLoss, other: TextLoss) -> tuple[float, float | None]:
    """By how many bits a byte ``other`` lies above ``loss``, of the same texts, and half the width of the 95%
    interval over places; None of too short texts."""
    shorter = min(loss, other, key=lambda one: one.tokens)
    return _mean(shorter, np.subtract(other.places, loss.places))


def by_stretch(losses: Sequence[TextLoss]) -> tuple[dict[str, float], dict[str, float]]:
    """Bits a byte of each stretch, and its share in the whole (bytes), by the numbers of text and stretch."""
    items, weights = {}, {}
    for text, loss in enumerate(losses, 1):
        for place, (nats, size) in enumerate(zip(loss.places, loss.sizes, strict=True), 1):
            items[f"{text}.{place}"], weights[f"{text}.{place}"] = nats / math.log(2) / size, size
    return items, weights


def _mean(text: TextLoss, nats: Doubles) -> tuple[float, float | None]:
    """Bits a byte of ``nats`` at the places of ``text``, and half the width of its 95% interval."""
    rates = nats / math.log(2) / np.array(text.sizes)
    mean, half = mean_with_interval(rates.tolist(), text.sizes)
    return mean, None if text.short else half


def _by_place(losses: Doubles, sizes: Sequence[int]) -> Doubles:
    """Sums of ``losses`` over PLACES stretches, tokens of ``sizes`` bytes one after another; a token that
    stands in two is shared between them."""
    ends = np.cumsum(np.maximum(sizes, 1e-9))
    at = np.concatenate([[0.0], ends]) / ends[-1] * PLACES
    sums = np.interp(np.arange(PLACES + 1), at, np.concatenate([[0.0], np.cumsum(losses)]))
    return np.diff(sums)
