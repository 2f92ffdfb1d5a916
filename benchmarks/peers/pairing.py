"""Two versions taken in turns at every point, and what their ratio is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from .child import Unavailable
from .contest import Point

RESAMPLES = 10_000
ENOUGH = 0.98  # of old's speed: the upper end of a point's interval is to reach it
SIDES = ("old", "new")

POINTS: Mapping[str, tuple[Point, str]] = {
    "decode": (Point(kind="decode", depth=0, tokens=16), "dense"),
    "decode-2k": (Point(kind="decode", depth=2048, tokens=16), "dense"),
    "decode-sparse-4.4k": (Point(kind="decode", depth=4400, tokens=16), "sparse"),
    "decode-sparse-8k": (Point(kind="decode", depth=8176, tokens=16), "sparse"),
    "decode-4-sequences": (Point(kind="decode", depth=0, tokens=16, batch=4), "dense"),
    "prefill": (Point(kind="prefill", depth=0, tokens=512), "dense"),
    "prefill-sparse-4.4k": (Point(kind="prefill", depth=4400, tokens=512), "sparse"),
}
"""What may be measured, and how it attends, by name."""

Seconds = tuple[list[float], list[float]]


class Peer(Protocol):
    """Who answers as a peer does: see Child."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]: ...


def compare(
    peers: Sequence[Peer], names: Sequence[str], pairs: int, log: Callable[[str], None]
) -> tuple[dict[str, Seconds], dict[str, str]]:
    """Seconds of old and of new at each point, pair by pair, and why points were left out. One round of all
    points comes before those that count."""
    found: dict[str, Seconds] = {name: ([], []) for name in names}
    left_out: dict[str, str] = {}
    for pair in range(-1, pairs):
        for number, name in enumerate(names):
            point, variant = POINTS[name]
            for side in (0, 1) if (pair + number) % 2 else (1, 0):
                if name in left_out:
                    continue
                try:
                    seconds = peers[side].ask(point.request(variant))["seconds"]
                except Unavailable as error:
                    left_out[name] = f"{SIDES[side]}: {error}"
                    del found[name]
                    continue
                if pair >= 0:
                    found[name][side].append(seconds)
        log(f"pair {pair + 1} of {pairs}")
    return found, left_out


def ratio_of_speeds(starts: Sequence[Seconds]) -> tuple[float, float, float]:
    """The median over all pairs of old's seconds / new's, and the ends of its 95% interval by bootstrap.

    Starts are drawn, and of each drawn one its pairs: all pairs of a start share its luck of where its
    processes lie in memory."""
    seconds = np.log(np.asarray(starts))  # (starts, sides, pairs)
    logs = seconds[:, 0] - seconds[:, 1]
    rng, (s, p) = np.random.default_rng(0), logs.shape
    drawn = rng.integers(0, s, (RESAMPLES, s, 1)), rng.integers(0, p, (RESAMPLES, s, p))
    medians = np.median(logs[drawn].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high))


def row(name: str, starts: Sequence[Seconds]) -> dict[str, Any]:
    """A point's figures; ``ratio``: new's speed to old's; seconds of each start by themselves."""
    point, variant = POINTS[name]
    found = dict(zip(("ratio", "low", "high"), ratio_of_speeds(starts), strict=True))
    figures = {key: round(value, 4) for key, value in found.items()}
    times = {
        f"{side} seconds": [[round(value, 5) for value in start[which]] for start in starts]
        for which, side in enumerate(SIDES)
    }
    return {"name": name, "attention": variant, **asdict(point), **figures, **times}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ratios, and the rates whose they are."""
    lines = [f"{'tokens/s':22}{'old':>10}{'new':>10}{'new / old':>11}  95% interval"]
    for one in rows:
        tokens = one["tokens"] * one["batch"]
        seconds = [float(np.median(np.concatenate(one[f"{side} seconds"]))) for side in SIDES]
        rates = "".join(f"{tokens / median:>10.1f}" for median in seconds)
        verdict = "" if one["high"] >= ENOUGH else f"  below {ENOUGH}"
        interval = f"{one['low']:.3f} to {one['high']:.3f}{verdict}"
        lines.append(f"{one['name']:22}{rates}{one['ratio']:>11.3f}  {interval}")
    return "\n".join(lines)
