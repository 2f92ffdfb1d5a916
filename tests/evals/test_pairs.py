"""benchmarks/pairs.py: two versions take turns, and the ratio of pairs is what is told."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minicpm4
from benchmarks.peers.child import Child, Unavailable
from benchmarks.peers.pairing import POINTS, compare, ratio_of_speeds, row, table


class FakePeer:
    """Takes ``base`` seconds times the machine's mood, which each pair finds another; notes who was asked."""

    def __init__(self, side: int, base: float, calls: list[int], lacks: int = 0) -> None:
        self.side, self.base, self.calls, self.lacks = side, base, calls, lacks

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["batch"] == self.lacks:
            raise Unavailable("this version's points have no batch")
        self.calls.append(self.side)
        mood = 1.5 ** ((len(self.calls) - 1) // 2 % 5)
        return {"seconds": self.base * mood * (1 + request["depth"] / 4096)}


def test_moods_of_the_machine_leave_the_ratio_alone() -> None:
    calls: list[int] = []
    peers = [FakePeer(0, 1.0, calls), FakePeer(1, 0.8, calls)]
    found, left_out = compare(peers, list(POINTS), 6, lambda line: None)
    assert not left_out and set(found) == set(POINTS)
    for name, seconds in found.items():
        assert [len(side) for side in seconds] == [6, 6]
        figures = row(name, [seconds, seconds])
        assert figures["ratio"] == figures["low"] == figures["high"] == 1.25
    pairs = [tuple(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert len(pairs) == 7 * len(POINTS)  # a round before those that count
    for point in range(len(POINTS)):  # each point begins with the other side the next time
        asked = pairs[point :: len(POINTS)]
        assert all({*before} == {0, 1} and after == before[::-1] for before, after in pairwise(asked))


@pytest.mark.parametrize("side", [0, 1])
def test_a_point_that_one_version_lacks_is_left_out_for_both(side: int) -> None:
    calls: list[int] = []
    peers = [FakePeer(which, 1.0, calls, lacks=4 if which == side else 0) for which in (0, 1)]
    found, left_out = compare(peers, ["decode", "decode-4-sequences"], 3, lambda line: None)
    assert list(found) == ["decode"] and len(found["decode"][0]) == 3
    assert left_out == {"decode-4-sequences": f"{('old', 'new')[side]}: this version's points have no batch"}


@pytest.mark.parametrize("true", [0.9, 1.0, 1.1])
def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says(true: float) -> None:
    rng = np.random.default_rng(1)
    hits, widths = 0, []
    for _ in range(100):
        starts = []
        for _ in range(5):
            mood = np.exp(rng.normal(0, 0.3, 3))  # of the machine, which both meet
            luck = np.exp(rng.normal(0, 0.03, 2))  # of where a process lies
            old, new = (mood * of_side * np.exp(rng.normal(0, 0.01, 3)) for of_side in luck)
            starts.append((old.tolist(), (new / true).tolist()))
        ratio, low, high = ratio_of_speeds(starts)
        assert low <= ratio <= high
        hits += low <= true <= high
        widths.append(high / low)
    assert hits / 100 > 0.8
    assert np.median(widths) < 1.15


def test_a_slower_version_is_marked() -> None:
    noise = np.random.default_rng(0).normal(1, 0.001, 15)
    rows = [
        row("decode", [((noise * 0.9).tolist(), noise.tolist())]),
        row("prefill", [(noise.tolist(), noise.tolist())]),
    ]
    lines = table(rows).splitlines()
    assert "below 0.98" in lines[1] and lines[1].startswith("decode ")
    assert "below" not in lines[2] and lines[2].endswith("1.000  1.000 to 1.000")
    assert json.loads(json.dumps(rows))[0]["tokens"] == 16


@pytest.fixture(scope="module")
def own_peer() -> Any:
    request = {"model": "random-minicpm4-0.5b", "room": 48, "options": {"threads": 1, "batch": 2}}
    child = Child(sys.executable, "version_peer.py", request, {"MINICPM4_KEPT_WEIGHTS": "off"})
    yield child
    child.close()


@pytest.mark.slow
def test_this_version_answers(own_peer: Child) -> None:
    assert own_peer.about["where"] == minicpm4.__path__[0]
    point = {"op": "measure", "kind": "decode", "variant": "sparse", "depth": 16, "tokens": 4}
    assert own_peer.ask({**point, "batch": 2})["seconds"] > 0


def test_a_setting_that_a_version_lacks_is_refused() -> None:
    request = {"model": "random-minicpm4-0.5b", "room": 48, "options": {"wings": 2}}
    with pytest.raises(Unavailable, match="no wings"):
        Child(sys.executable, "version_peer.py", request)


def test_the_folder_named_is_the_one_that_answers(tmp_path: Path) -> None:
    """Though an editable install of this version stands before the path."""
    (tmp_path / "minicpm4").mkdir()
    (tmp_path / "minicpm4" / "__init__.py").write_text("")
    request = {"package": str(tmp_path), "model": "random-minicpm4-0.5b", "room": 48, "options": {}}
    with pytest.raises(Unavailable, match=r"No module named 'minicpm4\.cli'"):
        Child(sys.executable, "version_peer.py", request)
