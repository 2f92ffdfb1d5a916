"""Kept weights are used by the engine, shown by commands, and cleared by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.model.packed_cache import LIMIT_VARIABLE, VARIABLE
from tests.cli.conftest import Result
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.kept import keep_in

Run = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(LIMIT_VARIABLE, "3")
    return keep_in(tmp_path / "kept", monkeypatch)


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_engine_uses_them_and_commands_show_and_clear_them(
    minicpm: Run, place: Path, tmp_path: Path
) -> None:
    folder = str(make_checkpoint(tmp_path / "model", dtype="bfloat16"))
    logits = []
    for said in ("kept for the next start", "kept ones"):
        with LLM(folder, weights="int4", threads=2) as llm:
            assert said in llm.description
            logits.append(llm.logits([1, 2, 3, 4]))
    np.testing.assert_array_equal(*logits)
    assert f"in {place}" in words(minicpm("info", folder, "--weights", "int4").out)
    assert "converted weights none" in words(minicpm("info", folder, "--weights", "int8").out)
    for command in ("models", "doctor"):
        assert "1 files" in words(minicpm(command).out) and "at most 3.00 GB" in words(minicpm(command).out)
    assert "removed 1 files" in minicpm("models", "--clear-kept").out
    assert list(place.iterdir()) == []
    assert "removed 0 files" in minicpm("models", "--clear-kept").out


def test_commands_say_that_nothing_is_kept(
    minicpm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    folder = str(make_checkpoint(tmp_path / "model", dtype="bfloat16"))
    assert f"{VARIABLE}=off" in minicpm("models").out
    assert f"see {VARIABLE}" in minicpm("info", folder).out
    assert "removed 0 files" in minicpm("models", "--clear-kept").out
