"""`minicpm4 convert`: the texts that it calibrates on and compares on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from minicpm4.cli import run
from tests.fixtures.random_checkpoint import make_checkpoint

QUICK = ["--method", "gptq", "--group", "32", "--samples", "2", "--length", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("texts") / "model", seed=9)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(Path("examples/how_sqlite_is_tested.txt").read_text()[:3000])
    return file


def test_a_text_under_another_name_is_the_same(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was told by its path: what a model is fitted to is no test of it."""
    copy, link, out = tmp_path / "copy.txt", tmp_path / "link.txt", tmp_path / "out"
    copy.write_bytes(text.read_bytes())
    link.symlink_to(text)
    given = ["convert", str(model), str(out), *QUICK, "--calibration", str(text)]
    for other, said in ((text, f"{text} is for calibration"), (copy, f"same text as {text}"), (link, "same")):
        assert run([*given, "--test", str(other)]) == 2
        error = capsys.readouterr().err
        assert said in error and "test on another text" in error and not out.exists()
    for other in (text, copy):
        assert run([*given, "--calibration", str(other)]) == 2
        error = capsys.readouterr().err
        assert str(other) in error and "give each text once" in error and not out.exists()


def test_calibration_on_the_corpus_that_is_there(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    monkeypatch.chdir(tmp_path)
    given = ["convert", str(model), "out", *QUICK, "--calibration", "corpus", "--json", str(report)]
    assert run([*given, "--test", str(text)]) == 0
    found = json.loads(report.read_text())
    assert found["calibration"] == ["corpus"] and found["tokens"] == 128
    # A file of that name is that file: here one that is too short.
    (tmp_path / "corpus").write_text("short")
    assert run([*given[:2], "other", *given[3:]]) == 2


def test_no_corpus_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["convert", str(model), str(tmp_path / "out"), *QUICK, "--calibration"]
    assert run([*given, "absent.txt"]) == 2
    assert "there is no file absent.txt. --calibration takes files, or corpus" in capsys.readouterr().err
    assert run([*given, "corpus", "--calibration", "corpus"]) == 2
    assert "give each text once" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert run([*given, "corpus"]) == 2
    assert "without its manual" in capsys.readouterr().err and not (tmp_path / "out").exists()
