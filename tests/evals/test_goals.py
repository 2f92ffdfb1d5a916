"""benchmarks/peers: what a run says of each goal, who takes part, and runs put together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.entries import entries, parse_flavour
from benchmarks.peers.goals import AVX2, DEEP, GOALS, SHAPE, SMOLLM2, TOGETHER, Seen, table
from benchmarks.peers.merging import merge
from benchmarks.peers.parts import PARTS, points

Rates = dict[str, float]  # a negative one is worked out


def entry(kind: str, depth: int, rates: Rates, tokens: int = 16, batch: int = 1) -> dict[str, Any]:
    made = {
        name: {"tokens_per_s": abs(rate), "estimated": rate < 0, "limit_share": 0.85}
        for name, rate in rates.items()
    }
    label = f"{kind} of {tokens} at {depth}"
    return {"kind": kind, "depth": depth, "tokens": tokens, "batch": batch, "label": label, "rates": made}


def part(name: str, *found: dict[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys(column for one in found for column in one["rates"])
    columns = [
        {
            "name": column,
            "ours": column.startswith("minicpm4"),
            "flavour": " ".join(column.split()[1:-1]),
        }
        for column in names
    ]
    return {"name": name, "columns": columns, "points": list(found)}


def ours(dense: float, sparse: float, **others: float) -> Rates:
    peers = {name.replace("_", "."): rate for name, rate in others.items()}
    return {"minicpm4 dense": dense, "minicpm4 sparse": sparse} | peers


def rows(*parts: dict[str, Any], **more: Any) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in table({"models": list(parts)} | more)]
    return {line[0]: line[1:] for line in lines}


def test_goals_are_ratios_to_the_best_peer() -> None:
    found = rows(
        part(
            SHAPE,
            entry("decode", 0, ours(130, 131, llama_cpp=100, other=110)),
            entry("decode", 32768, ours(40, 120, llama_cpp=12, other=-10)),
            entry("prefill", 32768, ours(170, 500, llama_cpp=-10, other=50), 512),
        )
    )
    assert found["decode at depth 0, INT4"] == ["1.30x", "–", "1.18x", "no"]
    assert found["decode at depth 0, of the bandwidth"] == ["80%", "90%", "85%", "yes"]
    assert found["decode at depth 32,768, sparse"] == ["9.00x", "11.0x", "10.0x", "yes"]
    name = "prefill of 512 at depth 32,768, sparse, against llama.cpp"
    assert found[name] == ["50.0x", "100.0x", "~50.0x", "yes"]
    assert found["prefill, 512-token prompt"] == ["1.60x", "2.50x", "–", "not measured"]


def test_goals_against_ourselves() -> None:
    one = {"minicpm4 dense": 100.0, "minicpm4 ternary dense": 200.0}
    four = {"minicpm4 dense": 260.0, "minicpm4 ternary dense": 300.0}
    deep = entry("decode", DEEP, ours(20, 70, llama_cpp=3))
    together = part(TOGETHER, entry("decode", 0, one), entry("decode", 0, four, batch=4))
    found = rows(together, part(SHAPE, deep), start={"seconds": 0.5})
    assert found["decode at depth 0, ternary against our INT4"][2:] == ["2.00x", "yes, the aim too"]
    assert found["4 sequences decoded together against 1"][2:] == ["2.60x", "yes"]
    assert found["decode at 131,072, sparse against our dense"][2:] == ["3.50x", "no"]
    assert found["first text of generate at the second start"][2:] == ["0.50 s", "yes"]


def test_the_worst_point_counts_where_all_are_to_be_ahead() -> None:
    shallow, deep = (
        entry("decode", 0, ours(90, 95, llama_cpp=100)),
        entry("decode", 9, ours(3, 9, llama_cpp=2)),
    )
    found = rows(part(SMOLLM2, shallow, deep), part(AVX2, deep))
    assert found["SmolLM2 against llama.cpp, at every point"][2:] == ["0.90x (decode of 16 at 0)", "no"]
    assert found["the same with AVX2 only, at every point"][2:] == ["1.50x (decode of 16 at 9)", "yes"]


def test_other_settings_have_columns_of_their_own() -> None:
    rates = ours(100, 100, llama_cpp=100) | {"minicpm4 8-bit dense": 140.0}
    found = rows(part(SHAPE, entry("decode", 0, rates)))
    assert found["goal"] == ["at least", "aim", "seen", "met", "seen, 8-bit", "met"]
    assert found["decode at depth 0, INT4"] == ["1.30x", "–", "1.00x", "no", "1.40x", "yes"]


def test_fewer_seconds_are_better() -> None:
    goal = next(goal for goal in GOALS if goal.unit == "s")
    assert [goal.met(Seen(value=value)) for value in (0.9, 1.1)] == ["yes", "no"]


def test_flavours_are_read() -> None:
    flavour = parse_flavour("8-bit: kv=int8, chunk=256,MINICPM4_ISA=avx2, attention=dense")
    assert flavour.name == "8-bit" and flavour.options == {"kv": "int8", "chunk": 256}
    assert flavour.environment == {"MINICPM4_ISA": "avx2"} and flavour.attentions == ("dense",)
    for wrong in ("8-bit", "8-bit:", ":kv=int8", "8-bit:kv", "8-bit:attention=none"):
        with pytest.raises(ValueError, match=r"8-bit|kv=int8"):
            parse_flavour(wrong)


def test_each_part_has_its_own_contestants() -> None:
    args = argparse.Namespace(
        cap=1.0, ours=["x:kv=int8"], without=["transformers", "OpenVINO 16-bit"], work=Path("w")
    )
    for name in ("llama", "avx2_llama", "openvino", "torch"):
        setattr(args, f"{name}_python", name)
    found = {key: entries(part, args, 4) for key, part in PARTS.items()}
    names = [entry.name for entry in found["minicpm4-0.5b-shape"]]
    assert names == ["minicpm4", "minicpm4 x", "llama.cpp", "OpenVINO 8-bit"]
    assert [entry.name for entry in found["avx2"]] == ["minicpm4", "minicpm4 x", "llama.cpp-avx2"]
    avx2 = found["avx2"][0].flavour
    assert avx2 is not None and avx2.environment == {"MINICPM4_ISA": "avx2"}
    assert found["together"][1].request == {"options": {"weights": "ternary"}, "batch": 4}


def test_every_goal_has_its_points() -> None:
    found = {key: {(p.kind, p.depth, p.batch) for p in points(key, deep=True)} for key in PARTS}
    assert ("decode", DEEP, 1) in found["minicpm4-0.5b-shape"] and ("decode", 0, 4) in found["together"]
    assert max(p.depth + p.tokens for p in points("minicpm4-0.5b-shape", smoke=True)) <= 2560


def test_parts_of_two_runs_make_one_result() -> None:
    alike = {"machine": {"cpu": "a"}, "threads": 2}
    old = alike | {"date": "1", "start": {"seconds": 1}, "models": [{"name": "x"}, {"name": "y", "n": 1}]}
    new = alike | {"date": "2", "start": None, "models": [{"name": "y", "n": 2}, {"name": "z"}]}
    found = merge(old, new)
    assert found["models"] == [{"name": "x"}, {"name": "y", "n": 2}, {"name": "z"}]
    assert found["date"] == "2" and found["start"] == {"seconds": 1}
    with pytest.raises(ValueError, match="threads"):
        merge(old, new | {"threads": 1})


def test_goals_of_real_files() -> None:
    file = PARTS["qwen-0.5b-avx2"].name
    found = rows(
        part(
            file,
            entry("decode", 0, ours(120, 120, llama_cpp=100)),
            entry("prefill", 0, ours(200, 200, llama_cpp=100), 512),
            entry("prefill", 0, ours(170, 170, llama_cpp=100), 2048),
        )
    )
    # 1.2x of 1.3x, but 85% of the bandwidth.
    assert found[f"{file}: decode at depth 0"] == ["1.00x", "–", "1.00x (of 85% of bandwidth)", "yes"]
    assert found[f"{file}: prompts against llama.cpp"] == ["1.80x", "–", "1.70x (2,048 tokens)", "no"]
    run = {"models": [part(file, entry("decode", 0, ours(120, 120, llama_cpp=100)))]}
    assert [line.split(" | ")[0] for line in table(run, measured=True)[2:]] == [
        f"| {file}: decode at depth 0"
    ]
    depths = {point.depth for point in points("qwen-0.5b")}
    assert (
        depths == {0, 2048, 8192, 16384} and max(point.tokens for point in points("qwen-1.5b-avx2")) == 2048
    )
