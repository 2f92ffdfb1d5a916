"""The benchmark of few bits: originals that are moved off their grid, runs that go on, paired differences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quantisation
from minicpm4 import LLM
from minicpm4.cli.terminal import progress_bar
from minicpm4.evals.conversion import Calibration, convert
from minicpm4.model.source import open_model
from minicpm4.quantize.options import QuantizeOptions
from tests.fixtures.random_checkpoint import make_checkpoint

SMALL = ["--groups", "32", "--rotate", "no", "--samples", "8", "--length", "64", "--windows", "3"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, file = make_checkpoint(tmp_path / "tiny"), tmp_path / "figures.json"

    def once(part: str, *given: str) -> dict:
        words = [part, str(model), "--work", str(tmp_path / "work"), "--json", str(file), *given]
        monkeypatch.setattr("sys.argv", ["quantisation.py", *words])
        quantisation.main()
        return json.loads(file.read_text())

    return once


def test_methods_are_compared_on_the_same_windows_and_done_ones_kept(run, monkeypatch) -> None:
    first = run("tables", *SMALL, "--methods", "rtn,gptq", "--also", f"none={quantisation_source(run)}")
    assert first["off_grid"] is None and first["logits_apart"] < 1e-5  # of floats: no grid
    rows = first["rows"]
    assert set(rows) == {"int4-g32 rtn", "int4-g32 gptq", "none"}
    for kind in ("english", "python"):
        by = {name: row["texts"][kind] for name, row in rows.items()}
        assert by["int4-g32 rtn"]["kl_mean"] > 1e-3 > 1e-6 > by["none"]["kl_mean"]
        apart, half = first["paired"]["int4-g32 rtn"][kind]
        each = np.subtract(by["int4-g32 rtn"]["window_kl"], by["int4-g32 gptq"]["window_kl"])
        assert apart == pytest.approx(each.mean()) and len(each) == 3
        assert half == pytest.approx(4.3027 * each.std(ddof=1) / np.sqrt(3))
    assert rows["int4-g32 rtn"]["bits"] < 9 < rows["none"]["bits"]
    made = []
    monkeypatch.setattr(quantisation, "convert", lambda *given: made.append(given))
    assert run("tables", *SMALL, "--methods", "rtn,gptq")["rows"] == rows and not made
    with pytest.raises(SystemExit, match="other settings"):
        run("tables", *SMALL, "--windows", "2")


def quantisation_source(run) -> Path:
    """The original itself, where the benchmark has put it."""
    run("tables", *SMALL, "--methods", "rtn")
    given = quantisation.parse()
    return given.work / "original"


def test_budgets_and_what_is_rounded_at_load_stand_beside(run) -> None:
    more = ["--methods", "gptq", "--bits", "as-said,6.5", "--loaded", "int4,int8"]
    rows = run("tables", *SMALL, *more)["rows"]
    assert set(rows) == {"int4-g32 gptq", "int4-g32 gptq to 6.5 bits", "int4 at load", "int8 at load"}
    budget = rows["int4-g32 gptq to 6.5 bits"]
    assert budget["bits"] <= 6.5 and sum(budget["formats"].values()) == 14
    kl = {name: row["texts"]["english"]["kl_mean"] for name, row in rows.items()}
    assert kl["int8 at load"] < kl["int4-g32 gptq to 6.5 bits"] < kl["int4 at load"]


def test_a_stored_prefix_stands_beside_what_has_none(run) -> None:
    found = run("tables", *SMALL, "--methods", "rtn,gptq", "--stored-prefix", "<|im_start|>")
    rows = found["rows"]
    taken = "int4-g32 gptq stored, then taken away"
    assert set(rows) == {f"int4-g32 {one}" for one in ("rtn", "rtn stored", "gptq", "gptq stored")} | {taken}
    assert found["prefix_ids"] and set(found["paired"]) == {*rows} - {"int4-g32 gptq"}
    each = [rows[name]["texts"]["python"]["window_kl"] for name in ("int4-g32 rtn stored", "int4-g32 rtn")]
    difference = np.subtract(*each)
    assert found["paired"]["int4-g32 rtn stored"]["python"][0] == pytest.approx(difference.mean())
    assert np.abs(difference).max() > 1e-6 and rows[taken] != rows["int4-g32 gptq stored"]


def test_files_of_others_are_compared_with_ours_of_the_same_size() -> None:
    def row(nbytes: int, kl: float, **more: int) -> dict:
        return {"nbytes": nbytes, "texts": {"english": {"window_kl": [kl, kl + 0.25]}}, **more}

    rows = {
        "ours": row(990, 0.5, tokens=9),
        "larger": row(1001, 0.0, tokens=9),
        "small": row(900, 0.0, tokens=0),
    }
    found = quantisation.at_equal_size(rows | {"theirs": row(1000, 1.0), "huge": row(5000, 1.0)})
    assert found == {"ours": {"theirs": {"english": [-0.5, 0.0]}}}


def test_a_moved_model_is_the_same_function_with_other_weights(tmp_path: Path) -> None:
    for shape in ({"num_key_value_heads": 2}, {"model_type": "qwen2", "tie": True}):
        name = tmp_path / shape.get("model_type", "minicpm")
        model = make_checkpoint(name, **shape)
        target = tmp_path / f"{name.name}-moved"
        quantisation.move(open_model(model), target, 3)
        ids = np.random.default_rng(0).integers(0, 320, 40).tolist()
        logits = [LLM(str(one), context=64, **quantisation.EXACT).logits(ids) for one in (model, target)]
        np.testing.assert_allclose(logits[1], logits[0], atol=2e-5 * np.abs(logits[0]).max())
        before, after = (open_model(one).checkpoint for one in (model, target))
        one = "model.layers.0.self_attn.o_proj.weight"
        changed = after.load(one).codes / before.load(one).codes
        assert 0.69 < changed.min() < 0.75 and 1.35 < changed.max() < 1.41


def test_an_original_of_4_bits_leaves_its_grid(tmp_path: Path) -> None:
    options = QuantizeOptions(weights="int4", method="rtn", group=32)
    rounded, moved = tmp_path / "rounded", tmp_path / "moved"
    model = str(make_checkpoint(tmp_path / "tiny"))
    convert(model, rounded, options, "compressed-tensors", Calibration(), progress_bar)
    quantisation.move(open_model(rounded), moved, 3)
    ids = list(range(40))
    assert quantisation.check_moved(str(rounded), moved, ids)["off_grid"] > 0.5
    assert quantisation.check_moved(str(rounded), rounded, ids)["off_grid"] == 0


def test_activations_are_told_by_position(run) -> None:
    found = run("activations", "--windows", "4", "--length", "64")
    assert len(found["layers"]) == 2 and len(found["positions"]) == quantisation.FIRST + 1
    for layer in found["layers"]:
        assert set(layer) == {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"}
        assert all(len(values) == quantisation.FIRST + 1 and min(values) > 0 for values in layer.values())
