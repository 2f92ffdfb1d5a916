"""Calibration files are found under their own key alone; damaged ones are ignored, with a warning."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import LLM
from minicpm4.config import SparseConfig
from minicpm4.engine import calibration
from minicpm4.engine.calibration import Calibration, Crossover, selection
from minicpm4.engine.options import EngineOptions, resolve_sparse
from minicpm4.errors import ConfigError
from minicpm4.evals.random_model import random_checkpoint
from minicpm4.formats import open_checkpoint
from minicpm4.kernels import registry
from minicpm4.kernels.cpu import emulated_levels, isa_levels
from minicpm4.machine import cpu_name, watch_others
from minicpm4.model.source import read_config
from minicpm4.model.weight_plan import plan_weights
from tests.engine.conftest import SPARSE

Make = Callable[..., LLM]
MACHINE = {"cpu": "abacus", "kernels": "cpu wood", "cores": 2, "build": "1-1"}
RANDOM = random_checkpoint("random-minicpm4-0.5b")
SETTINGS = SparseConfig(**SPARSE)  # type: ignore[arg-type]
FOUND = Calibration(
    name="random",
    threads=3,
    chunk=256,
    rows={1: 60.5, 16: 400.25},
    crossovers=(Crossover(sparse=selection(SETTINGS), prefill=48, decode=64),),
    others=0.25,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(calibration.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


def key(weights: str = "auto", kv: str = "bf16", **machine: Any) -> calibration.Key:
    return calibration.key(MACHINE | machine, RANDOM.config, plan_weights(RANDOM, RANDOM.config, weights), kv)


def test_what_was_saved_is_found_under_its_key_alone(place: Path) -> None:
    assert calibration.load(key()) is None
    file = calibration.save(key(), FOUND)
    assert calibration.load(key()) == FOUND
    assert [path.name for path in place.iterdir()] == [file.name]  # no part is left behind
    others = (key(weights="int8"), key(kv="int8"), key(cpu="slide rule"), key(build="1-2"), key(cores=4))
    assert all(calibration.load(other) is None for other in others)
    assert list(calibration.entries(MACHINE)) == [(key(), FOUND)]
    assert list(calibration.entries(MACHINE | {"cores": 3})) == []


def test_windows_of_layers_are_part_of_the_key(place: Path) -> None:
    def windowed(*windows: int) -> calibration.Key:
        layers = RANDOM.config.num_hidden_layers
        config = replace(RANDOM.config, windows=(windows * layers)[:layers])
        return calibration.key(MACHINE, config, plan_weights(RANDOM, config), "bf16")

    file = calibration.save(windowed(64, 0), FOUND)
    assert calibration.load(windowed(64, 0)) == calibration.load(windowed(0, 64)) == FOUND
    assert file.is_file() and windowed() == key()
    for other in (key(), windowed(64), windowed(128, 0)):
        assert calibration.load(other) is None


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_depths_have_bounds(name: str) -> None:
    pays = FOUND.crossovers[0]
    for depth in (1, calibration.MAX_DEPTH, None):
        assert getattr(replace(pays, **{name: depth}), name) == depth  # type: ignore[arg-type]
    for depth in (0, calibration.MAX_DEPTH + 1):
        with pytest.raises(ConfigError, match=f"{name} = {depth}"):
            replace(pays, **{name: depth})  # type: ignore[arg-type]


def test_other_sparse_settings_are_kept_beside_new_ones(place: Path) -> None:
    calibration.save(key(), FOUND)
    wider = Crossover(sparse=selection(replace(SETTINGS, topk=3)), prefill=100, decode=200)
    calibration.save(key(), replace(FOUND, chunk=128, crossovers=(wider,)))
    found = calibration.load(key())
    assert found is not None
    assert (found.chunk, found.crossovers) == (128, (wider, *FOUND.crossovers))
    calibration.save(key(), replace(FOUND, crossovers=(replace(wider, decode=300),)))
    found = calibration.load(key())
    assert found is not None
    assert [one.decode for one in found.crossovers] == [300, 64]


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: "{",
        lambda table: "[" * 60_000,
        lambda table: "null",
        lambda table: " " * (calibration.MAX_BYTES + 1),
        lambda table: table | {"version": 2},
        lambda table: table | {"machine": "abacus"},
        lambda table: table["values"].pop("rows") and table,
        lambda table: table["values"].update(threads=0) or table,
        lambda table: table["values"].update(threads=True) or table,
        lambda table: table["values"].update(chunk=1 << 40) or table,
        lambda table: table["values"].update(extra=1) or table,
        lambda table: table["values"].update(others=-0.5) or table,
        lambda table: table["values"]["rows"].update({"2": float("nan")}) or table,
        lambda table: table["values"]["rows"].update({"many": 2.0}) or table,
        lambda table: table["values"]["crossovers"][0].update(prefill="64") or table,
        lambda table: table["values"]["crossovers"][0]["sparse"].update(topk=-1) or table,
        lambda table: table["values"]["crossovers"][0]["sparse"].pop("window_size") and table,
        lambda table: table["values"].update(crossovers=table["values"]["crossovers"] * 33) or table,
    ],
)
def test_a_damaged_file_is_ignored(
    place: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[dict[str, Any]], Any]
) -> None:
    file = calibration.save(key(), FOUND)
    damaged = damage(json.loads(file.read_text()))
    file.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with caplog.at_level(logging.WARNING, "minicpm4"):
        assert calibration.load(key()) is None
    assert str(file) in caplog.text
    assert "doctor --calibrate" in caplog.text
    calibration.save(key(), FOUND)  # and is replaced by the next one
    assert calibration.load(key()) == FOUND


def test_a_file_of_another_key_is_not_believed(place: Path) -> None:
    calibration.save(key(), FOUND).rename(place / calibration._name(key(kv="int8")))
    assert calibration.load(key(kv="int8")) is None


def test_off_looks_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(calibration.VARIABLE, "off")
    assert calibration.load(key()) is None
    assert list(calibration.entries(MACHINE)) == []
    with pytest.raises(ConfigError, match=r"nothing can be kept"):
        calibration.save(key(), FOUND)


def test_a_folder_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(calibration.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot write the calibration .* another folder"):
        calibration.save(key(), FOUND)


def test_files_are_beside_the_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(calibration.VARIABLE)
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    assert calibration.folder() == tmp_path / "calibration"


@pytest.mark.parametrize(
    ("options", "pays", "expected"),
    [
        ({}, 12288, 12288),
        ({}, 4096, 8192),  # never below the model's
        ({}, None, 8192),
        ({"sparse": {"topk": 16}}, 12288, 12288),
        ({"sparse": {"dense_len": 9000}}, 12288, 9000),  # the caller's word
        ({"attention": "sparse"}, 12288, -1),
        ({"context": 10000}, 12288, None),  # never long enough
        ({"attention": "dense"}, 12288, None),
    ],
)
def test_sparse_attention_starts_where_it_pays(
    options: dict[str, Any], pays: int | None, expected: int | None
) -> None:
    sparse = resolve_sparse(EngineOptions(**options), RANDOM.config, lambda settings: pays)
    assert (sparse.dense_len if sparse is not None else None) == expected


def test_a_model_without_sparse_settings_stays_dense() -> None:
    config = replace(RANDOM.config, sparse_config=None)
    assert resolve_sparse(EngineOptions(), config, lambda settings: 1) is None


def test_an_engine_uses_what_was_measured(place: Path, checkpoint: Path, make_llm: Make) -> None:
    there = registry.speed_key()
    assert there is not None
    opened = open_checkpoint(checkpoint)
    sparse = {"sparse": {**SPARSE}}
    before = make_llm(threads=None, **sparse)
    assert "chunk 512, not calibrated (see minicpm4 doctor --calibrate)" in before.description
    config = read_config(opened)
    found = replace(FOUND, crossovers=(Crossover(sparse=selection(SETTINGS), prefill=300, decode=8200),))
    calibration.save(calibration.key(there, config, plan_weights(opened, config), "float32"), found)
    long = {"context": 9000, **sparse}
    llm = make_llm(threads=None, **long)
    assert "chunk 256, calibrated" in llm.description
    assert "3 threads" in llm.description
    assert llm.sparse is not None
    assert llm.sparse.dense_len == 8200
    assert make_llm(threads=None, **sparse, context=400).sparse is None
    given = make_llm(threads=2, chunk=64, sparse={**SPARSE, "dense_len": 8192}, context=9000)
    assert "chunk 64, calibrated" in given.description
    assert "2 threads" in given.description
    assert given.sparse is not None
    assert given.sparse.dense_len == 8192
    assert "not calibrated" in make_llm(kv="bf16").description
    assert "; not calibrated" in make_llm(backend="ref", threads=None).description.replace("512, ", "512; ")


def test_the_machine_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    there = registry.speed_key()
    assert there is not None
    assert there["cpu"] == cpu_name() != ""
    levels = isa_levels() + emulated_levels()
    names = {registry.speed_key(isa=level)["kernels"] for level in levels}  # type: ignore[index]
    assert len(names) == len(levels) and there["kernels"] in names
    assert registry.speed_key("ref") is None
    monkeypatch.setattr(registry, "cpu", None)
    assert registry.speed_key() is None


def test_other_work_is_a_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr("minicpm4.machine.system.PROC", tmp_path)
    share = watch_others()
    assert share() == 0.0
    stat.write_text("cpu  90000000 0 0 0 0 0 0 0 0 0\n")
    assert share() == 1.0
    stat.unlink()
    assert share() is None
