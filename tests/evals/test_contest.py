"""benchmarks/cpu_peers.py: peers take turns, the faster variant goes on, dear points are worked out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import quiet
from benchmarks.peers.child import Child, Unavailable
from benchmarks.peers.contest import Column, Point, contest, results
from benchmarks.peers.quiet import STAT
from benchmarks.peers.report import markdown

CHUNKS = [Point(kind="prefill", depth=depth, tokens=512) for depth in (0, 2048, 8192, 32768)]
WHOLE = Point(kind="prefill", depth=0, tokens=2048)
DECODE = Point(kind="decode", depth=0, tokens=16)
LATER = time.monotonic() + 1e6


class FakeChild:
    """Takes ``base`` seconds and one more for each 1,024 tokens of depth; notes its calls."""

    def __init__(self, base: float, calls: list[Any], slow: str = "", fail: bool | str = False) -> None:
        self.base, self.calls, self.slow, self.fail = base, calls, slow, fail
        self.about = {"version": "1"}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(
            (self.base, request["variant"], request["kind"], request["depth"], request["tokens"])
        )
        if self.fail is True or request["variant"] == self.fail:
            raise Unavailable("it broke")
        factor = 2 if request["variant"] == self.slow else 1
        return {"seconds": factor * (self.base + request["depth"] / 1024)}


def column(name: str, child: Any, *variants: str, cap: float = 1e9, **more: Any) -> Column:
    return Column(name=name, child=child, variants=variants or ("a",), cap=cap, **more)


def run(columns: list[Column], points: list[Point], repeats: int = 3, deadline: float = LATER) -> list[Any]:
    contest(columns, points, repeats, deadline, lambda line: None)
    return results(columns, points)


def test_peers_take_turns() -> None:
    calls: list[Any] = []
    run([column("x", FakeChild(1, calls)), column("y", FakeChild(2, calls))], CHUNKS[:2], repeats=2)
    assert [(base, depth) for base, _, _, depth, _ in calls] == [(1, 0), (2, 0), (1, 2048), (2, 2048)] * 2


def test_the_faster_variant_goes_on() -> None:
    calls: list[Any] = []
    found = run([column("x", FakeChild(1, calls, slow="b"), "a", "b")], CHUNKS[:3], repeats=3)
    tried = [(variant, depth) for _, variant, _, depth, _ in calls]
    # Both twice, in turns, at 0 and 2,048; "b" is twice as slow there and not tried at 8,192.
    assert tried.count(("b", 0)) == tried.count(("b", 2048)) == 2 and ("b", 8192) not in tried
    assert [variant for variant, depth in tried if depth == 0] == ["a", "b", "a", "b", "a", "a"]
    assert tried.count(("a", 8192)) == 3
    assert found[1]["rates"]["x"]["variant"] == "a"
    assert found[1]["rates"]["x"]["tokens_per_s"] == pytest.approx(512 / 3)


def test_variants_that_are_close_stay_in_the_race() -> None:
    calls: list[Any] = []
    run([column("x", FakeChild(1, calls), "a", "b")], CHUNKS[:1], repeats=3)
    assert [variant for _, variant, *_ in calls] == ["a", "b"] * 4


def test_greedy_variants_stay_shallow() -> None:
    calls: list[Any] = []
    run([column("x", FakeChild(1, calls), "a", "b", shallow=frozenset("b"))], CHUNKS, repeats=1)
    depths = {variant: {call[3] for call in calls if call[1] == variant} for variant in "ab"}
    assert max(depths["a"]) == 32768 and max(depths["b"]) == 8192
    # Even if the other one was slower so far.
    calls.clear()
    run([column("x", FakeChild(1, calls, slow="a"), "a", "b", shallow=frozenset("b"))], CHUNKS, repeats=1)
    assert {call[1] for call in calls if call[3] == 32768} == {"a"}


def test_a_variant_may_fail() -> None:
    calls: list[Any] = []
    found = run([column("x", FakeChild(1, calls, fail="b"), "a", "b")], [DECODE])
    assert found[0]["rates"]["x"]["tokens_per_s"] == 16


def test_sequences_count_together() -> None:
    point = Point(kind="decode", depth=0, tokens=16, batch=4)
    found = run([column("x", FakeChild(1, []))], [DECODE, point])
    assert found[0]["rates"]["x"]["tokens_per_s"] == 16 and found[1]["rates"]["x"]["tokens_per_s"] == 64
    assert found[1]["label"] == "decode of 4 sequences at depth 0" and found[1]["batch"] == 4


def test_something_runs_after_every_round() -> None:
    rounds: list[int] = []
    columns = [column("x", FakeChild(1, []))]
    contest(columns, [DECODE], 3, LATER, lambda line: None, lambda: rounds.append(1))
    assert len(rounds) == 3


def test_dear_points_are_worked_out() -> None:
    calls: list[Any] = []
    found = run([column("x", FakeChild(1, calls), cap=10)], [*CHUNKS, WHOLE])
    assert max(depth for _, _, _, depth, _ in calls) == 8192
    deep, whole = found[3]["rates"]["x"], found[4]["rates"]["x"]
    assert deep["estimated"] and deep["tokens_per_s"] == pytest.approx(512 / 33)
    assert not whole["estimated"]
    late = run([column("x", FakeChild(1, calls))], [*CHUNKS[:2], WHOLE], deadline=0)
    # Chunks at 0, 512, 1,024 and 1,536 take 1, 1.5, 2 and 2.5 seconds.
    assert late[2]["rates"]["x"]["tokens_per_s"] == pytest.approx(2048 / 7)


def test_a_broken_peer_does_not_end_the_run() -> None:
    calls: list[Any] = []
    found = run([column("x", FakeChild(1, calls, fail=True)), column("y", FakeChild(2, calls))], [DECODE])
    assert found[0]["rates"]["x"] == {"failure": "it broke"}
    assert found[0]["rates"]["y"]["tokens_per_s"] == 8
    assert len([call for call in calls if call[0] == 1]) == 1


def test_ratios_are_to_the_best_peer() -> None:
    calls: list[Any] = []
    columns = [
        column("minicpm4 dense", FakeChild(1, calls), attention="dense"),
        column("x", FakeChild(4, calls)),
        column("y", FakeChild(3, calls)),
    ]
    points = run(columns, [DECODE], repeats=1)
    points[0]["rates"]["minicpm4 dense"]["limit_share"] = 0.5
    model = {
        "name": "m",
        "date": "2026-01-02T03:04:05",
        "commit": "c",
        "other_load": {"others": 0.1, "stolen": 0.0},
        "columns": [{"name": c.name, "ours": c.ours, "about": {}} for c in columns],
        "left_out": {"z": "not installed"},
        "limits": {"bandwidth_bytes_per_s": 1e9, "float32_ops_per_s": 1e9},
        "points": points,
    }
    run_ = {"date": "2026-01-02", "commit": "c", "machine": {"cpu": "p", "system": "s"}, "threads": 2}
    page = markdown(run_ | {"models": [model]})
    assert "Too loud" not in page
    loud = model | {"other_load": {"others": 1.0, "stolen": 0.0}}
    assert "Too loud" in markdown(run_ | {"models": [loud]})
    assert "| decode at depth 0 | 16.0 | 4.0 | 5.3 | **3.00x** | 50% |" in page
    assert "z left out: not installed" in page


@pytest.mark.skipif(not STAT.exists(), reason="/proc/stat is Linux's")
def test_own_work_is_not_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = iter([(100.0, 1.0), (108.0, 2.0)])
    monkeypatch.setattr(quiet, "_machine", lambda: next(machine))
    monkeypatch.setattr(quiet, "_ours", iter([50.0, 54.0]).__next__)
    monkeypatch.setattr(quiet.time, "monotonic", iter([0.0, 10.0]).__next__)
    assert quiet.Watch().others() == {"others": 0.4, "stolen": 0.1}


PEER = """
import os, sys
sys.path.insert(0, {folder!r})
from protocol import serve
class Peer:
    def __init__(self, request):
        print('noise')
        if request['threads'] > 9: import no_such_module
    def about(self): return {{'version': '7'}}
    def measure(self, kind, depth, tokens, variant, batch): return batch * tokens / depth
    def cost(self, depth, **point): return {{'cost': depth, 'set': os.environ['SET']}}
serve(Peer, 'install it')
"""


def test_children_talk_json(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(folder=str(Path(__file__).parents[2] / "benchmarks" / "peers")))
    child = Child(sys.executable, str(script), {"threads": 2}, {"SET": "so"})
    assert child.about == {"version": "7"}
    request = {"op": "measure", "kind": "decode", "tokens": 3, "variant": "", "batch": 2}
    assert child.ask(request | {"depth": 2}) == {"seconds": 3.0}
    assert child.ask(request | {"op": "cost", "depth": 2}) == {"cost": 2, "set": "so"}
    with pytest.raises(Unavailable, match="ZeroDivisionError"):
        child.ask(request | {"depth": 0})
    child.close()
    with pytest.raises(Unavailable, match=r"no_such_module.*install it"):
        Child(sys.executable, str(script), {"threads": 10})
    with pytest.raises(Unavailable, match=r"No such file"):
        Child("/no/such/python", str(script), {})
