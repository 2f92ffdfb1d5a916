"""Runs all peers through the same points in turn, and decides what is worth another run.

A point that would take one peer longer than its cap is not run: its time is worked out from the
shallower ones, since the time of a chunk or token grows linearly with depth and a prompt is the sum of
its chunks. Such figures are marked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .child import Child, Unavailable

CHUNK = 512
SLOWER = 1.4  # a variant this much slower at a depth is not tried at deeper ones
CLOSE = 1.15  # one within this of the fastest stays in the race at its point
TURNS = 2  # trials of every variant at a point, in turns, before any of them is left out
DEEP = 2048
SHALLOW = 8192 + CHUNK  # tokens up to which variants are tried that take much memory at depth

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Point:
    """``tokens`` tokens after ``depth`` others, of ``batch`` sequences each; kind: "prefill" or "decode"."""

    kind: str
    depth: int
    tokens: int
    batch: int = 1

    @property
    def label(self) -> str:
        after = f" at depth {self.depth:,}" if self.depth or self.kind == "decode" else ""
        if self.kind == "decode":
            return "decode" + (f" of {self.batch} sequences" if self.batch > 1 else "") + after
        return f"prefill {self.tokens:,}" + (after or ", whole prompt")

    def request(self, variant: str) -> dict[str, Any]:
        """What a peer is asked (protocol.py)."""
        return {"op": "measure", "variant": variant} | asdict(self)


@dataclass(kw_only=True)
class Column:
    """One contestant: a child, the variants it may choose from, and its cap in seconds a measurement.
    The variants in ``shallow`` are left out beyond SHALLOW.

    Of ours ``attention`` is dense or sparse, and ``flavour`` names the engine's settings where they are
    not the usual ones; of others both are empty."""

    name: str
    child: Child
    variants: tuple[str, ...]
    cap: float
    flavour: str = ""
    attention: str = ""
    shallow: frozenset[str] = frozenset()
    slow: set[tuple[str, str]] = field(default_factory=set)
    seconds: dict[Point, dict[str, list[float]]] = field(default_factory=dict)
    estimates: dict[Point, float] = field(default_factory=dict)
    failures: dict[Point, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return bool(self.attention)

    def best(self, point: Point) -> tuple[str, list[float]] | None:
        """The fastest variant and its times."""
        found = self.seconds.get(point)
        return min(found.items(), key=lambda item: median(item[1])) if found else None

    def time(self, point: Point) -> float | None:
        """Median seconds of the fastest variant, or the estimate."""
        best = self.best(point)
        return median(best[1]) if best else self.estimates.get(point)

    def candidates(self, point: Point) -> list[str]:
        """The variants worth a run: before anything is known all that are not slow, later the fastest
        and those close to it."""
        found = self.seconds.get(point)
        if not found:
            out = self.shallow if point.depth + point.tokens > SHALLOW else frozenset()
            allowed = [variant for variant in self.variants if variant not in out]
            return [variant for variant in allowed if (point.kind, variant) not in self.slow] or allowed
        fastest = min(median(times) for times in found.values())
        return [variant for variant, times in found.items() if median(times) <= CLOSE * fastest]

    def predict(self, point: Point) -> float | None:
        """Seconds by the line through the two nearest shallower points; None with fewer than two."""
        if point.kind == "prefill" and point.tokens > CHUNK:
            parts = [
                self.predict(Point(kind="prefill", depth=depth, tokens=CHUNK))
                for depth in range(point.depth, point.depth + point.tokens, CHUNK)
            ]
            known = [part for part in parts if part is not None]
            return sum(known) if len(known) == len(parts) else None
        key = (point.kind, point.tokens, point.batch)
        alike = [p for p in self.seconds if (p.kind, p.tokens, p.batch) == key]
        near = sorted(alike, key=lambda p: (p.depth > point.depth, abs(p.depth - point.depth)))[:2]
        if len(near) < 2:
            return None
        (x0, y0), (x1, y1) = sorted((p.depth, self.time(p) or 0.0) for p in near)
        return max(y0 + (y1 - y0) * (point.depth - x0) / (x1 - x0), min(y0, y1))


def contest(
    columns: list[Column],
    points: list[Point],
    repeats: int,
    deadline: float,
    log: Log,
    after_round: Callable[[], object] = lambda: None,
) -> None:
    """Measure every point ``repeats`` times in turn. A point that has already taken its cap in all is
    not repeated. Once ``deadline`` (of time.monotonic) has passed nothing is repeated, and what can be
    worked out is not run."""
    for round_number in range(repeats):
        for point in points:
            for column in columns:
                late = time.monotonic() > deadline
                if round_number and (late or _enough(column, point)):
                    continue
                _visit(column, point, 0.0 if late else column.cap, log)
        after_round()


def _visit(column: Column, point: Point, cap: float, log: Log) -> None:
    if point in column.failures or point in column.estimates:
        return
    best = column.best(point)
    if best is None:
        expected = column.predict(point)
        if expected is not None and expected > cap:
            column.estimates[point] = expected
            log(f"  {column.name}: {point.label}: about {expected:.0f} s, worked out from shallower points")
            return
    candidates = column.candidates(point)
    turns = TURNS if best is None and len(candidates) > 1 else 1
    for _ in range(turns):
        if not _enough(column, point):
            _run(column, point, candidates, log)
    if best is None and point.depth >= DEEP and point in column.seconds:
        _drop_slow(column, point)


def _run(column: Column, point: Point, variants: list[str], log: Log) -> None:
    """Measure each variant once. A point has failed if no variant could run it."""
    trouble = ""
    for variant in variants:
        try:
            seconds = column.child.ask(point.request(variant))["seconds"]
        except Unavailable as error:
            trouble = str(error)
            log(f"  {column.name} ({variant}): {point.label}: {error}")
            continue
        column.seconds.setdefault(point, {}).setdefault(variant, []).append(seconds)
        rate = point.batch * point.tokens / seconds
        log(f"  {column.name} ({variant}): {point.label}: {rate:,.1f} tokens/s")
    if trouble and point not in column.seconds:
        column.failures[point] = trouble


def _drop_slow(column: Column, point: Point) -> None:
    found = {variant: min(times) for variant, times in column.seconds[point].items()}
    fastest = min(found.values())
    column.slow |= {(point.kind, v) for v, seconds in found.items() if seconds > SLOWER * fastest}


def _enough(column: Column, point: Point) -> bool:
    found = column.seconds.get(point, {}).values()
    return any(sum(times) > column.cap for times in found)


def results(columns: list[Column], points: list[Point]) -> list[dict[str, Any]]:
    """One entry a point: tokens per second of every column, with the times behind them."""
    return [
        asdict(point)
        | {"label": point.label, "rates": {column.name: _rate(column, point) for column in columns}}
        for point in points
    ]


def _rate(column: Column, point: Point) -> dict[str, Any]:
    best, seconds = column.best(point), column.time(point)
    if seconds is None:
        return {"failure": column.failures.get(point, "not run")}
    rate: dict[str, Any] = {
        "tokens_per_s": point.batch * point.tokens / seconds,
        "estimated": best is None,
    }
    if best is not None:
        variant, times = best
        rate |= {"variant": variant, "spread": (max(times) - min(times)) / seconds}
        rate["seconds"] = column.seconds[point]
    return rate
