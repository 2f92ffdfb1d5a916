"""`minicpm4 eval ppl`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm4.cli import run
from tests.fixtures.random_checkpoint import make_checkpoint

TEXT = "A text that two models read, one after the other, to see which foresees it better.\n" * 4


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "one.txt"
    file.write_text(TEXT)
    return file


def test_models_are_compared_on_texts(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(make_checkpoint(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 2))]
    other, found = tmp_path / "two.txt", tmp_path / "found.json"
    other.write_text(TEXT.upper())
    args = ["eval", "ppl", *models, "--text", str(text), "--text", str(other), "--window", "64"]
    assert run([*args, "--kv", "float32", "--json", str(found)]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [[m, t] for m in "ab" for t in ("one.txt", "two.txt", "all")]
    report = json.loads(found.read_text())
    assert report["engine"] == {"kv": "float32"} and report["window"] == 64
    first, second = report["models"].values()
    by = second["bits_per_byte_apart"]["mean"]
    assert by == pytest.approx(second["all"]["bits_per_byte"] - first["all"]["bits_per_byte"], abs=1e-9)
    assert "bits_per_byte_apart" not in first and f"{by:+.4f} +- " in out
    nats = [one["nats"] for one in first["texts"].values()]
    assert first["all"]["nats"] == pytest.approx(sum(nats))


def test_all_models_are_read_in_the_same_windows(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (str(make_checkpoint(tmp_path / f"m{n}", max_position_embeddings=n)) for n in (64, 512))
    found = tmp_path / "found.json"
    args = ["eval", "ppl", long, short, "--text", str(text), "--json", str(found)]
    assert run(args) == 0 and "windows of 64 tokens" in capsys.readouterr().out
    report = json.loads(found.read_text())
    assert report["window"] == 64
    assert report["models"][short]["bits_per_byte_apart"]["mean"] == pytest.approx(0, abs=1e-6)
    assert run([*args, "--window", "65"]) == 2
    err = capsys.readouterr().err
    assert "65 is more than the 64 tokens" in err and "attention:" not in err  # before anything is loaded


def test_results_are_compared_stretch_by_stretch(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the command itself compares its models."""
    text.write_text(TEXT * 3)
    models = [str(make_checkpoint(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 2))]
    args = ["--text", str(text), "--window", "64", "--kv", "float32", "--json"]
    files = [str(tmp_path / f"{name}.json") for name in ("both", "second", "wide", "upper")]
    assert run(["eval", "ppl", *models, *args, files[0]]) == 0
    assert run(["eval", "ppl", models[1], *args, files[1]]) == 0
    assert run(["eval", "compare", *files[:2]]) == 0
    out = capsys.readouterr().out
    by = json.loads(Path(files[0]).read_text())["models"][models[1]]["bits_per_byte_apart"]
    told = f"{by['mean']:+.4f} ± {by['half_width']:.4f}"
    assert out.count(told) == 2 and "ppl: hash" in out and "less is better" in out and "bits a byte" in out
    assert run(["eval", "ppl", models[0], *args, files[2], "--stride", "8"]) == 0
    assert run(["eval", "compare", files[0], files[2]]) == 2
    assert "differ in settings" in capsys.readouterr().err
    text.write_text(TEXT.upper() * 3)
    assert run(["eval", "ppl", models[0], *args, files[3]]) == 0
    assert run(["eval", "compare", files[0], files[3]]) == 2
    assert "differ in tasks" in capsys.readouterr().err


def test_a_text_may_be_called_all(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all").write_text(TEXT[:100])
    assert (
        run(["eval", "ppl", str(make_checkpoint(tmp_path / "m")), "--text", "all", "--text", str(text)]) == 0
    )
    rows = [line.split()[1] for line in capsys.readouterr().out.splitlines()[3:]]
    assert rows == ["all", "one.txt", "all"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--window", "1"], "--window"),
        (["--stride", "0"], "--stride"),
        (["--window", "64", "--stride", "65"], "--stride 65 is outside 1 to 64"),
        (["--window", "100000"], "more than the"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--text", "{empty}"], "holds no text"),
        (["--text", "{text}"], "given twice"),
        (["{model}"], "a model is given twice"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, text: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, empty = make_checkpoint(tmp_path / "m"), tmp_path / "empty.txt"
    empty.write_text(" \n")
    given = [one.format(empty=empty, text=text, model=model) for one in options]
    assert run(["eval", "ppl", str(model), "--text", str(text), *given]) == 2
    assert said in capsys.readouterr().err
