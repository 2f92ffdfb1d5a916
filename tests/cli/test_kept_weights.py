"""Kept weights are used by the engine, shown by commands, and cleared by one."""

from __future__ import annotations

import re
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


def test_what_is_kept_is_told_once_with_its_size_and_how_to_remove_it(
    minicpm: Run, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(make_checkpoint(tmp_path / "model", dtype="bfloat16"))
    for _ in range(2):
        LLM(folder, weights="int4", threads=2).close()
    (file,) = place.iterdir()
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    size = re.search(r"^converted weights are kept for the next start: (\d+) kB in (\S+) \(", said)
    assert (
        size is not None
        and size[2] == str(place)
        and int(size[1]) * 1000 == pytest.approx(file.stat().st_size, rel=0.2)
    )
    assert "minicpm4 models --clear-kept removes them" in said and f"{VARIABLE}=off keeps none" in said
    assert "--clear-kept" in minicpm("models").out


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
