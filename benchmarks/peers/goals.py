"""The goals of CPU speed, and what a run says of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .parts import PARTS, REAL

SHAPE, TOGETHER, SMOLLM2, AVX2 = (
    PARTS[key].name for key in ("minicpm4-0.5b-shape", "together", "smollm2-135m", "avx2")
)
Key = tuple[str, int, int, int]  # kind, depth, tokens (of prefill; 0 for decode), sequences


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A measured figure, or one with something worked out in it; ``where``: of many points, at which."""

    value: float
    estimated: bool = False
    where: str = ""


Ask = Callable[["Results", str], Seen | None]  # of one flavour of ours; None: not measured


@dataclass(frozen=True, kw_only=True)
class Goal:
    """``least`` and ``aim`` in ``unit``: x (a ratio), % (a share) or s (seconds, the fewer the better)."""

    name: str
    least: float
    ask: Ask
    aim: float | None = None
    unit: str = "x"

    def met(self, seen: Seen) -> str:
        """How far it is met: no, yes, or the aim as well."""
        sign = -1 if self.unit == "s" else 1
        if self.aim is not None and sign * seen.value >= sign * self.aim:
            return "yes, the aim too"
        return "yes" if sign * seen.value >= sign * self.least else "no"


class Results:
    """A run by part, point and column."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        self.parts = {model["name"]: model for model in run["models"]}
        self._points: dict[str, dict[Key, Any]] = {}
        for name, model in self.parts.items():
            self._points[name] = {_key(entry): entry for entry in model["points"]}

    def flavours(self, part: str) -> list[str]:
        """Of our columns in ``part``, the usual one ("") first."""
        columns = self.parts.get(part, {"columns": []})["columns"]
        return list(dict.fromkeys(column.get("flavour", "") for column in columns if column["ours"]))

    def peers(self, part: str, prefix: str = "") -> list[str]:
        """Columns of others."""
        columns = self.parts.get(part, {"columns": []})["columns"]
        return [
            column["name"] for column in columns if not column["ours"] and column["name"].startswith(prefix)
        ]

    def rate(self, part: str, key: Key, column: str) -> Seen | None:
        """Tokens per second."""
        entry = self._points.get(part, {}).get(key, {"rates": {}})
        rate = entry["rates"].get(column, {})
        if "tokens_per_s" not in rate:
            return None
        return Seen(value=rate["tokens_per_s"], estimated=rate["estimated"])

    def share(self, part: str, key: Key, column: str) -> Seen | None:
        """Of the limit that binds."""
        entry = self._points.get(part, {}).get(key, {"rates": {}})
        rate = entry["rates"].get(column, {})
        share = rate.get("limit_share")
        return Seen(value=share, estimated=rate["estimated"]) if share is not None else None

    def labels(self, part: str) -> dict[Key, str]:
        """All points of a part, and what they are called."""
        return {key: entry["label"] for key, entry in self._points.get(part, {}).items()}


def _key(entry: dict[str, Any]) -> Key:
    tokens = entry["tokens"] if entry["kind"] == "prefill" else 0
    return entry["kind"], entry["depth"], tokens, entry.get("batch", 1)


def _ours(flavour: str, attention: str) -> str:
    return " ".join(word for word in ("minicpm4", flavour, attention) if word)


def _over(ours: Seen | None, other: Seen | None) -> Seen | None:
    if ours is None or other is None:
        return None
    return Seen(value=ours.value / other.value, estimated=ours.estimated or other.estimated)


def _best(results: Results, part: str, key: Key, prefix: str = "") -> Seen | None:
    rates = [results.rate(part, key, peer) for peer in results.peers(part, prefix)]
    return max((rate for rate in rates if rate), key=lambda rate: rate.value, default=None)


def against(key: Key, attention: str, peer: str = "") -> Ask:
    """Ours on the shape over the best peer, or the best of those whose names begin with ``peer``."""

    def ask(results: Results, flavour: str) -> Seen | None:
        return _over(results.rate(SHAPE, key, _ours(flavour, attention)), _best(results, SHAPE, key, peer))

    return ask


def everywhere(part: str, peer: str) -> Ask:
    """The least of our dense attention's ratios to a peer over all points of a part."""

    def ask(results: Results, flavour: str) -> Seen | None:
        column = _ours(flavour, "dense")
        found = []
        for key, label in results.labels(part).items():
            seen = _over(results.rate(part, key, column), _best(results, part, key, peer))
            if seen:
                found.append(replace(seen, where=label))
        return min(found, key=lambda seen: seen.value, default=None)

    return ask


def between(part: str, key: Key, attention: str, *, than: tuple[Key, str], ternary: bool = False) -> Ask:
    """One of our own rates over another: ``than`` is the other's point and attention. ``ternary``: the
    first is of ternary weights, which are measured with the usual settings only."""

    def ask(results: Results, flavour: str) -> Seen | None:
        if ternary and flavour:
            return None
        first = results.rate(part, key, _ours("ternary" if ternary else flavour, attention))
        second = results.rate(part, than[0], _ours(flavour, than[1]))
        return _over(first, second)

    return ask


def limit(key: Key) -> Ask:
    """The share of the limit that our dense attention reaches on the shape."""

    def ask(results: Results, flavour: str) -> Seen | None:
        return results.share(SHAPE, key, _ours(flavour, "dense"))

    return ask


def _start(results: Results, flavour: str) -> Seen | None:
    start = results.run.get("start")
    return Seen(value=start["seconds"]) if start and not flavour else None


def decode(depth: int, batch: int = 1) -> Key:
    return "decode", depth, 0, batch


def prefill(tokens: int, depth: int = 0) -> Key:
    return "prefill", depth, tokens, 1


def file_decode(part: str) -> Ask:
    """Of a real file our dense decoding at depth 0: over llama.cpp's as a part of 1.3, or over the bandwidth
    as a part of 85%, whichever is nearer."""

    def ask(results: Results, flavour: str) -> Seen | None:
        column = _ours(flavour, "dense")
        ratio = _over(results.rate(part, decode(0), column), _best(results, part, decode(0), "llama.cpp"))
        share = results.share(part, decode(0), column)
        found = [
            replace(seen, value=seen.value / goal, where=where)
            for seen, goal, where in ((ratio, 1.3, "of 1.3x llama.cpp"), (share, 0.85, "of 85% of bandwidth"))
            if seen
        ]
        return max(found, key=lambda seen: seen.value, default=None)

    return ask


def file_prefill(part: str) -> Ask:
    """The lesser of our ratios to llama.cpp at prompts of 512 and of 2,048 tokens."""

    def ask(results: Results, flavour: str) -> Seen | None:
        column, found = _ours(flavour, "dense"), []
        for tokens in (512, 2048):
            seen = _over(results.rate(part, prefill(tokens), column), _best(results, part, prefill(tokens)))
            if seen:
                found.append(replace(seen, where=f"{tokens:,} tokens"))
        return min(found, key=lambda seen: seen.value, default=None)

    return ask


DEEP = 131072
FILES = [PARTS[key + tail].name for key in REAL for tail in ("", "-avx2")]
GOALS = (
    Goal(name="prefill, 512-token prompt", least=1.6, aim=2.5, ask=against(prefill(512), "dense")),
    Goal(name="the same, of the matrix peak", least=0.25, unit="%", ask=limit(prefill(512))),
    Goal(name="prefill, 8,192-token prompt, dense", least=1.6, aim=2.5, ask=against(prefill(8192), "dense")),
    Goal(name="whole 32,768-token prompt, sparse", least=4, aim=8, ask=against(prefill(32768), "sparse")),
    Goal(
        name="prefill of 512 at depth 32,768, sparse, against llama.cpp",
        least=50,
        aim=100,
        ask=against(prefill(512, 32768), "sparse", "llama.cpp"),
    ),
    Goal(name="decode at depth 0, INT4", least=1.3, ask=against(decode(0), "dense")),
    Goal(name="decode at depth 0, of the bandwidth", least=0.8, aim=0.9, unit="%", ask=limit(decode(0))),
    Goal(
        name="decode at depth 0, ternary against our INT4",
        least=1.6,
        aim=1.9,
        ask=between(TOGETHER, decode(0), "dense", than=(decode(0), "dense"), ternary=True),
    ),
    Goal(name="decode at depth 32,768, sparse", least=9, aim=11, ask=against(decode(32768), "sparse")),
    Goal(name="decode at depth 131,072, sparse", least=25, aim=40, ask=against(decode(DEEP), "sparse")),
    Goal(
        name="decode at 131,072, sparse against our dense",
        least=4,
        ask=between(SHAPE, decode(DEEP), "sparse", than=(decode(DEEP), "dense")),
    ),
    Goal(
        name="prefill of 512 at 131,072, sparse against our dense",
        least=8,
        ask=between(SHAPE, prefill(512, DEEP), "sparse", than=(prefill(512, DEEP), "dense")),
    ),
    Goal(
        name="4 sequences decoded together against 1",
        least=2.5,
        aim=3.5,
        ask=between(TOGETHER, decode(0, 4), "dense", than=(decode(0), "dense")),
    ),
    Goal(name="first text of generate at the second start", least=1, unit="s", ask=_start),
    Goal(name="SmolLM2 against llama.cpp, at every point", least=1, ask=everywhere(SMOLLM2, "llama.cpp")),
    Goal(name="the shape against llama.cpp, at every point", least=1, ask=everywhere(SHAPE, "llama.cpp")),
    Goal(name="the same with AVX2 only, at every point", least=1, ask=everywhere(AVX2, "llama.cpp")),
    *(Goal(name=f"{part}: decode at depth 0", least=1, ask=file_decode(part)) for part in FILES),
    *(Goal(name=f"{part}: prompts against llama.cpp", least=1.8, ask=file_prefill(part)) for part in FILES),
)


def table(run: dict[str, Any], *, measured: bool = False) -> list[str]:
    """The goals as lines of Markdown: for each flavour of ours what was seen, and whether it is met.
    ``measured``: those alone of which the run says something, for pages that show several runs."""
    results = Results(run)
    flavours = results.flavours(SHAPE) or [""]
    heads = ["goal", "at least", "aim"]
    for flavour in flavours:
        heads += [f"seen, {flavour}" if flavour else "seen", "met"]
    return [
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * 2 + " ---: | --- |" * len(flavours),
        *(
            _row(goal, results, flavours)
            for goal in GOALS
            if not measured or any(goal.ask(results, one) is not None for one in flavours)
        ),
    ]


def _row(goal: Goal, results: Results, flavours: list[str]) -> str:
    cells = [goal.name, _figure(goal, goal.least), _figure(goal, goal.aim)]
    for flavour in flavours:
        seen = goal.ask(results, flavour)
        if seen is None:
            cells += ["–", "not measured"]
            continue
        where = f" ({seen.where})" if seen.where else ""
        cells += ["~" * seen.estimated + _figure(goal, seen.value) + where, goal.met(seen)]
    return "| " + " | ".join(cells) + " |"


def _figure(goal: Goal, value: float | None) -> str:
    if value is None:
        return "–"
    if goal.unit == "%":
        return f"{value:.0%}"
    if goal.unit == "s":
        return f"{value:.2f} s"
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"
