"""The benchmark of constrained decoding: its schemas are those of its seed, its answers are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.random_checkpoint import make_checkpoint

pytest.importorskip("llguidance", reason="answers are constrained by llguidance, of the extra grammar")


def test_it_counts_and_times_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import grammar

    model, file = make_checkpoint(tmp_path / "tiny"), tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv", ["grammar.py", str(model), "--noise", "--schemas", "30", "--json", str(file)]
    )
    grammar.main()
    found = json.loads(file.read_text())
    total = found["total"]
    assert total["schemas"] == 30 == total["valid"] + total["refused"] + total["cut"] and total["valid"] > 20
    assert total["invalid"] == 0 and found["vocabulary"] == 320 and len(found["categories"]) == 10
    assert total["mask_us"]["count"] + 5 < total["tokens"] <= total["forced_us"]["count"]
    assert 0 < total["compile_ms"]["p50"] <= total["compile_ms"]["p99"] <= total["compile_ms"]["most"]


def test_schemas_are_those_of_the_seed() -> None:
    from benchmarks.grammar import CATEGORIES, Maker

    first, again, other = (
        [make(maker) for make in CATEGORIES.values() for _ in range(3)]
        for maker in (Maker(1), Maker(1), Maker(2))
    )
    assert first == again != other
