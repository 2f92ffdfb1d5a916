"""BFCL v4's averages, of the categories that were asked.

Its weights are agentic 40, several turns 30, live 10, not live 10, irrelevance 10. Agentic ones search the
web or keep memories over sessions, and several turns run its simulators: neither is here. The other three
weigh a third each: the sum is ours, not the leaderboard's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CATEGORIES", "Part", "parts", "shares", "whole"]

SIMPLE = ("simple_python", "simple_java", "simple_javascript")
NON_LIVE = ("multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
CATEGORIES = (*SIMPLE, *NON_LIVE, *LIVE, *IRRELEVANCE, "live_relevance")
WEIGHTS = {"non-live": 10, "live": 10, "irrelevance": 10}
LEFT_OUT = {"several turns": 30, "agentic": 40}


@dataclass(frozen=True, slots=True)
class Part:
    """A category: ``right`` of ``asked`` answers; it has ``entries``, all of which are asked in the end."""

    right: int
    asked: int
    entries: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def whole(self) -> bool:
        return self.asked == self.entries


def shares(verdicts: Iterable[tuple[str, bool]], entries: Mapping[str, int]) -> dict[str, Part]:
    """By category, of (category, whether right); ``entries``: how many BFCL has of each."""
    every = list(verdicts)
    found = {}
    for name in CATEGORIES:
        mine = [right for category, right in every if category == name]
        if mine:
            found[name] = Part(sum(mine), len(mine), entries[name])
    return found


def parts(found: Mapping[str, Part]) -> dict[str, float]:
    """The averages that BFCL weighs: of not live categories unweighted (the simple ones are one), of live
    ones by their sizes, of irrelevance unweighted; each only where all entries of all of its categories were
    asked."""
    made = {}
    found = {name: one for name, one in found.items() if one.whole}
    if all(name in found for name in (*SIMPLE, *NON_LIVE)):
        simple = _mean([found[name].share for name in SIMPLE])
        made["non-live"] = _mean([simple, *(found[name].share for name in NON_LIVE)])
    if all(name in found for name in LIVE):
        weight = sum(found[name].entries for name in LIVE)
        made["live"] = sum(found[name].share * found[name].entries for name in LIVE) / weight
    if all(name in found for name in IRRELEVANCE):
        made["irrelevance"] = _mean([found[name].share for name in IRRELEVANCE])
    return made


def whole(averages: Mapping[str, float]) -> float | None:
    """The weighted average, weights renormalised to those that are here; None where one is not."""
    if averages.keys() != WEIGHTS.keys():
        return None
    return sum(WEIGHTS[name] * share for name, share in averages.items()) / sum(WEIGHTS.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
