"""The tables of README.md and docs/performance.md are made from the result that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme_table
from benchmarks.peers.parts import PARTS
from benchmarks.readme_table import block, pictures, refresh, replace

RUN: dict[str, Any] = {
    "machine": {"cpu": "A CPU"},
    "threads": 2,
    "date": "2026-01-02T03:04:05",
    "models": [
        {
            "name": PARTS["minicpm4-0.5b-shape"].name,
            "limits": {"bandwidth_bytes_per_s": 5e10, "float32_ops_per_s": 4e11},
            "columns": [
                {"name": "minicpm4 dense", "ours": True},
                {"name": "minicpm4 sparse", "ours": True},
                {"name": "other", "ours": False},
                {"name": "slow", "ours": False},
            ],
            "points": [
                {
                    "kind": "decode",
                    "depth": 0,
                    "tokens": 16,
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
    made = block("speed", "a.json", RUN)
    assert "| decode at depth 0 | ~1,500 | 30 | 20 | – | 75.0x | 1.5x |" in made
    assert "A CPU, 2 threads, 2026-01-02" in made and "50 GB/s" in made and "400 GFLOP/s" in made


def test_only_tables_are_replaced() -> None:
    goals = block("goals", "a.json", RUN)
    assert "| decode at depth 0, INT4 | 1.30x | – | 1.50x | yes |" in goals
    assert "not measured" not in goals  # here; another run on the page may have it
    before = f"above\n{block('speed', 'a.json', RUN)}\nbetween\n{goals}\nbelow\n"
    made = [block(kind, "b.json", RUN) for kind in ("speed", "goals")]
    assert replace(before, "b.json", RUN) == f"above\n{made[0]}\nbetween\n{made[1]}\nbelow\n"
    assert replace("nothing", "b.json", RUN) == "nothing"


def test_a_result_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the same name was sought in benchmarks/results/."""
    page, result = tmp_path / "page.md", tmp_path / "elsewhere.json"
    page.write_text("<!-- speed: a.json -->\nstale\n<!-- end of speed -->", encoding="utf-8")
    result.write_text(json.dumps(RUN), encoding="utf-8")
    monkeypatch.setattr(readme_table, "PAGES", (page,))
    monkeypatch.setattr("sys.argv", ["readme_table", str(result)])
    readme_table.main()
    assert page.read_text(encoding="utf-8") == block("speed", "elsewhere.json", RUN)


def test_each_table_names_its_own_result() -> None:
    page = "<!-- speed: a.json -->\nstale\n<!-- end of speed -->"
    assert refresh(page, {"a.json": RUN}.__getitem__) == block("speed", "a.json", RUN)


def test_other_settings_of_ours_stand_beside_the_usual() -> None:
    model = RUN["models"][0]
    more = {"name": "minicpm4 8-bit sparse", "ours": True, "flavour": "8-bit"}
    entry = model["points"][0]
    rates = entry["rates"] | {"minicpm4 8-bit sparse": {"tokens_per_s": 40.0, "estimated": False}}
    model = model | {"columns": [more, *model["columns"]], "points": [entry | {"rates": rates}]}
    made = block("speed of minicpm4-0.5b-shape", "a.json", RUN | {"models": [model]})
    assert "| tokens/s | 8-bit sparse | sparse | dense | other |" in made
    assert made.endswith("<!-- end of speed of minicpm4-0.5b-shape -->")


def test_pictures_show_decoding_by_depth() -> None:
    made = block("picture of minicpm4-0.5b-shape", "a.json", RUN)
    assert "](docs/images/decode-minicpm4-0.5b-shape.svg)" in made
    ((name, svg),) = pictures(f"text\n{made}\n", {"a.json": RUN}.__getitem__).items()
    assert name == "decode-minicpm4-0.5b-shape.svg" and svg.startswith("<svg")
    assert svg.count("<polyline") == 3 and "slow" not in svg  # which was measured nowhere
    assert pictures("none", {}.__getitem__) == {}


def test_tables_of_quantisation_are_in_order_and_stay_where_speeds_are_replaced() -> None:
    def row(nbytes: float, *kl: float) -> dict[str, Any]:
        text = {"nll_before": 2.0, "nll": 2.5, "kl_mean": sum(kl) / 3, "flips": 1234.4, "window_kl": [*kl]}
        return {"nbytes": nbytes, "bits": 5.0, "texts": {"english": text, "python": text}}

    rows = {
        "llama.cpp Q4_0": row(9e6, 0.3, 0.3, 0.3),
        "int4-g64 rtn": row(7e6, 0.3, 0.4, 0.5),
        "int4-g32 gptq rotated": row(9e6, 0.1, 0.1, 0.1),
        "int4-g32 gptq": row(8e6, 0.1, 0.2, 0.3),
        "int4-g32 rtn": row(8e6, 0.2, 0.4, 0.6),
    }
    run = {"model": "m", "cpu": "A CPU", "date": "2026-01-02T", "windows": 3, "length": 9, "samples": 4}
    made = block("quantisation", "q.json", run | {"rows": rows})
    shown = [line.split(" | ") for line in made.splitlines() if line.startswith("| ")][2:]
    names = ["g32 gptq", "g32 gptq rotated", "g32 rtn", "g64 rtn", "llama.cpp Q4_0"]
    assert sorted(one[0].removeprefix("| ") for one in shown) == sorted(names)
    assert [one[0] for one in shown][-2:] == ["| g64 rtn", "| llama.cpp Q4_0"]
    (rounded,) = [one for one in shown if one[0] == "| g32 rtn"]
    half = 4.3027 * 0.1 / 3**0.5
    assert rounded[1:5] == ["8 MB, 5.00", "2.500, 2.500", "0.4000, 0.4000", "1,234, 1,234"]
    assert rounded[5].startswith(f"+0.2000 ± {half:.4f}, ")
    assert replace(made, "b.json", RUN) == made == refresh(made, {"q.json": run | {"rows": rows}}.__getitem__)
