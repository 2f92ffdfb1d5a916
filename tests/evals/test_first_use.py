"""Calibration on first use: only where it can matter, kept, never twice, gone with an interrupt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.engine import calibration
from minicpm4.engine.calibration import Calibration, Crossover, selection
from minicpm4.engine.load import Inspection, inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.evals import first_use
from minicpm4.evals.first_use import calibrate_first
from minicpm4.kernels import registry
from tests.evals.conftest import SPARSE
from tests.fixtures.random_checkpoint import make_checkpoint

Asked = list[tuple[Any, ...]]
PROMPT = "x" * 300
MODEL_SPARSE = SPARSE | {"dense_len": 200}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_checkpoint(tmp_path / "model", sparse_config=MODEL_SPARSE))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """A quiet machine on which sparse attention pays from 240 tokens."""
    asked: Asked = []

    def measure(*given: Any) -> Calibration:
        asked.append(given)
        pays = Crossover(sparse=selection(given[2]), prefill=240, decode=220)
        return Calibration(name="tiny", chunk=256, crossovers=(pays,))

    monkeypatch.setenv(calibration.VARIABLE, str(tmp_path / "found"))
    monkeypatch.setattr(first_use, "_loud", lambda: False)
    monkeypatch.setattr(first_use, "measure", measure)
    return asked


def test_a_long_prompt_is_measured_for_once(model: str, measured: Asked) -> None:
    said = calibrate_first(inspect(model, EngineOptions()), PROMPT)
    assert said is not None
    assert "pays from 240 tokens; chunk 256" in said
    found = inspect(model, EngineOptions())
    assert found.sparse is not None
    assert (found.sparse.dense_len, found.options.chunk) == (240, 256)
    assert calibrate_first(inspect(model, EngineOptions()), PROMPT) is None
    assert len(measured) == 1
    other = EngineOptions(kv="int8")  # another shape of cache
    assert calibrate_first(inspect(model, other), PROMPT) is not None


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, "x" * 150),  # never reaches the model's dense_len
        ({"attention": "dense"}, PROMPT),
        ({"attention": "sparse"}, PROMPT),
        ({"sparse": {"dense_len": 100}}, PROMPT),  # the caller's word
        ({"context": 150}, PROMPT),
        ({"backend": "ref"}, PROMPT),
    ],
)
def test_nothing_is_measured_where_it_decides_nothing(
    model: str, measured: Asked, options: dict[str, Any], prompt: str
) -> None:
    assert calibrate_first(inspect(model, EngineOptions(**options)), prompt) is None
    assert measured == []


def test_nothing_is_measured_for_a_dense_model(tmp_path: Path, measured: Asked) -> None:
    model = str(make_checkpoint(tmp_path / "dense"))
    assert calibrate_first(inspect(model, EngineOptions()), PROMPT) is None
    never = EngineOptions(sparse=MODEL_SPARSE | {"dense_len": 512})
    assert calibrate_first(inspect(model, never), PROMPT) is None
    assert measured == []


def test_nothing_is_measured_on_a_loud_machine_or_where_it_is_off(
    model: str, measured: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_use, "_loud", lambda: True)
    assert calibrate_first(inspect(model, EngineOptions()), PROMPT) is None
    monkeypatch.setattr(first_use, "_loud", lambda: False)
    monkeypatch.setenv(calibration.VARIABLE, "off")
    assert calibrate_first(inspect(model, EngineOptions()), PROMPT) is None
    assert measured == []


@pytest.mark.parametrize(("share", "loud"), [(None, False), (0.0, False), (0.25, False), (0.26, True)])
def test_a_machine_is_loud_where_others_have_over_a_quarter(
    monkeypatch: pytest.MonkeyPatch, share: float | None, loud: bool
) -> None:
    monkeypatch.setattr(first_use, "watch_others", lambda: lambda: share)
    monkeypatch.setattr(first_use, "LISTEN", 0.0)
    assert first_use._loud() is loud


def test_a_longer_calibration_is_completed_not_replaced(model: str, measured: Asked) -> None:
    found, there = inspect(model, EngineOptions()), registry.speed_key()
    assert there is not None
    key = calibration.key(there, found.config, found.weights, "bf16")
    calibration.save(key, Calibration(name="doctor", threads=2, chunk=128, rows={4: 9.0}))
    assert calibrate_first(inspect(model, EngineOptions()), PROMPT) is not None
    kept = calibration.load(key)
    assert kept is not None
    assert (kept.threads, kept.chunk, kept.rows, kept.crossovers[0].decode) == (2, 128, {4: 9.0}, 220)


def test_an_interrupt_keeps_nothing(
    model: str, measured: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(first_use, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate_first(inspect(model, EngineOptions()), PROMPT)
    assert not (tmp_path / "found").exists()


def test_what_cannot_be_kept_stops_nothing(
    model: str, measured: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(calibration.VARIABLE, str(tmp_path / "file"))
    assert calibrate_first(inspect(model, EngineOptions()), PROMPT) is None


@pytest.fixture
def found(model: str) -> Inspection:
    return inspect(model, EngineOptions())


def test_a_model_is_measured_in_turns(found: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "CHUNKS", (64, 512))
    monkeypatch.setattr("minicpm4.evals.calibrate.CHUNKS", (64, 512))
    assert found.sparse is not None
    steps: list[tuple[int, int]] = []
    result = first_use.measure("tiny", found, found.sparse, lambda *at: steps.append(at))
    done = [at for at, _ in steps]
    assert done == sorted(done)
    assert steps[-1][0] == steps[-1][1]
    assert result.crossovers[0].sparse == selection(found.sparse)
    assert result.chunk in (None, 64)


def test_time_runs_out(found: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found.sparse is not None
    monkeypatch.setattr(first_use, "SECONDS", -100.0)
    result = first_use.measure("tiny", found, found.sparse, None)
    assert (result.chunk, result.crossovers[0].tokens) == (None, None)


@pytest.mark.parametrize(
    ("ratios", "whole", "depth"),
    [
        ({100: 1.2, 200: 0.9}, True, 200),
        ({100: 1.2, 200: 0.9}, False, 200),
        ({100: 1.3, 200: 1.2}, True, 200),
        ({100: 1.3, 200: 1.2}, False, None),  # deeper ones were left out
    ],
)
def test_what_was_left_out_is_not_guessed(ratios: dict[int, float], whole: bool, depth: int | None) -> None:
    assert first_use._pays({at: [one] * 3 for at, one in ratios.items()}, whole) == depth


def test_other_work_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(share: float | None) -> Callable[[], Callable[[], float | None]]:
        return lambda: lambda: share

    monkeypatch.setattr(first_use, "LISTEN", 0.0)
    for share, loud in ((None, False), (0.1, False), (0.6, True)):
        monkeypatch.setattr(first_use, "watch_others", others(share))
        assert first_use._loud() == loud
