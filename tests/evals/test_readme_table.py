"""README.md's table of speeds is made from the result that it names."""

from __future__ import annotations

import json

import pytest

from benchmarks.readme_table import BLOCK, ROOT, block, replace

RUN = {
    "machine": {"cpu": "A CPU"},
    "threads": 2,
    "date": "2026-01-02T03:04:05",
    "models": [
        {
            "name": "MiniCPM4-0.5B's shape",
            "limits": {"bandwidth_bytes_per_s": 5e10, "float32_ops_per_s": 4e11},
            "columns": [
                {"name": "minicpm4 dense", "ours": True},
                {"name": "minicpm4 sparse", "ours": True},
                {"name": "other", "ours": False},
                {"name": "slow", "ours": False},
            ],
            "points": [
                {
                    "label": "decode at depth 0",
                    "rates": {
                        "minicpm4 dense": {"tokens_per_s": 30.0, "estimated": False},
                        "minicpm4 sparse": {"tokens_per_s": 1500.0, "estimated": True},
                        "other": {"tokens_per_s": 20.0, "estimated": False},
                        "slow": {"failure": "it broke"},
                    },
                }
            ],
        }
    ],
}


def test_rows_have_rates_and_ratios_to_the_best_peer() -> None:
    made = block("a.json", RUN)
    assert "| decode at depth 0 | ~1,500 | 30 | 20 | – | 75.0x | 1.5x |" in made
    assert "A CPU, 2 threads, 2026-01-02" in made and "50 GB/s" in made and "400 GFLOP/s" in made


def test_only_the_table_is_replaced() -> None:
    before = f"above\n{block('a.json', RUN)}\nbelow\n"
    made = block("b.json", RUN)
    assert replace(before, made) == f"above\n{made}\nbelow\n"
    with pytest.raises(ValueError, match="0 tables"):
        replace("nothing", made)


def test_the_readme_shows_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = BLOCK.search(readme)
    assert found is not None
    run = json.loads((ROOT / "benchmarks" / "results" / found[1]).read_text(encoding="utf-8"))
    assert found[0] == block(found[1], run)
