"""Measured settings are found by model, the user's before those that ship; where there is none, it is
said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from minicpm4 import LLM
from minicpm4.config import SparseConfig
from minicpm4.engine import sparse_presets
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.sparse_presets import Preset, find, identity, save, with_sparse
from minicpm4.errors import ConfigError
from minicpm4.model.source import OpenModel, open_model
from tests.fixtures.random_checkpoint import make_checkpoint

SETTING = {"topk": 4, "window_size": 128, "dense_len": -1}
PRESET = Preset(model="tiny", date="2026-12-01", length=640, sparse=SETTING, figures={"cache_read": 0.25})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(sparse_presets.VARIABLE, str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture
def source(tmp_path: Path) -> OpenModel:
    return open_model(make_checkpoint(tmp_path / "model"))


def test_what_was_kept_is_found_for_its_model_alone(place: Path, source: OpenModel, tmp_path: Path) -> None:
    file = save(source.checkpoint, source.config, PRESET)
    assert list(place.iterdir()) == [file]
    assert find(source.checkpoint, source.config, "tiny") == PRESET
    other = open_model(make_checkpoint(tmp_path / "other", seed=5))
    assert identity(other.checkpoint, other.config) != identity(source.checkpoint, source.config)
    with pytest.raises(
        ConfigError, match=r"no setting was measured for other. measure it: minicpm4 eval sparse"
    ):
        find(other.checkpoint, other.config, "other")


def test_the_users_own_comes_before_what_ships(
    place: Path, source: OpenModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = identity(source.checkpoint, source.config)
    shipped = Preset(model="zoo", date="2026-12-01", length=8000, sparse={"topk": 9}, figures={})
    monkeypatch.setattr(sparse_presets, "_shipped", lambda: {known: shipped})
    assert find(source.checkpoint, source.config, "tiny") == shipped
    file = save(source.checkpoint, source.config, PRESET)
    assert find(source.checkpoint, source.config, "tiny") == PRESET
    monkeypatch.setenv(sparse_presets.VARIABLE, "off")
    assert find(source.checkpoint, source.config, "tiny") == shipped
    with pytest.raises(ConfigError, match="nothing can be kept"):
        save(source.checkpoint, source.config, PRESET)
    monkeypatch.setenv(sparse_presets.VARIABLE, str(place))
    table = json.loads(file.read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps(table | {"sparse": {"topk": 0}}),
        json.dumps(table | {"version": 9}),
    ):
        file.write_text(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "minicpm4"):
            assert find(source.checkpoint, source.config, "tiny") == shipped
        assert "is ignored" in caplog.text


def test_what_ships_can_be_read() -> None:
    for preset in sparse_presets._shipped().values():
        assert preset.config.dense_len == -1 and 0 < preset.figures["cache_read"] < 1


def test_auto_stands_for_what_was_measured(place: Path, source: OpenModel) -> None:
    plain = EngineOptions(sparse={"topk": 3})
    assert with_sparse(plain, source.checkpoint, source.config, "tiny") == (plain, "")
    with pytest.raises(ConfigError, match="no setting was measured for"):
        LLM(source.path, sparse="auto")
    save(source.checkpoint, source.config, PRESET)
    with LLM(source.path, sparse="auto") as llm:
        assert llm.sparse == SparseConfig.from_mapping(SETTING)
    with pytest.raises(ConfigError, match="sparse = 'some' is no setting"):
        LLM(source.path, sparse="some")
    with pytest.raises(ConfigError, match="exclude one another"):
        LLM(source.path, attention="dense", sparse="auto")
