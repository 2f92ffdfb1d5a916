"""`minicpm4 convert`: what others put in its way while it runs stays, and so does what is read."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.cli import run
from minicpm4.evals import conversion, model_writer
from minicpm4.files import lock
from minicpm4.model.source import open_model
from minicpm4.quantize import pipeline
from minicpm4.quantize.rounded import Rounded
from tests.fixtures.random_checkpoint import make_checkpoint

WAYS = {
    "rounded": ("out", ["--method", "rtn"]),
    "as it is": ("out", ["--weights", "auto", "--to", "hf"]),
    "file": ("out.gguf", []),
    "rounded file": ("out.gguf", ["--weights", "int4", "--method", "rtn"]),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", seed=9)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def as_folder(target: Path) -> None:
    target.mkdir()
    (target / "mine.txt").write_text("precious")


def as_file(target: Path) -> None:
    target.write_text("precious")


def as_link(target: Path) -> None:
    (target.parent / "elsewhere").mkdir()
    target.symlink_to(target.parent / "elsewhere")


@pytest.mark.parametrize("way", ["rounded", "rounded file"])
def test_an_interrupt_behind_the_last_step_does_not_say_that_the_same_command_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """The model is whole then, and the same command is refused."""
    name, words = WAYS[way]
    target = tmp_path / name
    monkeypatch.setattr(Rounded, "remove", _interrupted)
    assert run(["convert", str(model), str(target), *words]) == 130
    told = capsys.readouterr().err
    assert open_model(str(target)).config.num_hidden_layers and "goes on" not in told
    assert f"interrupted: {target} is there by now; if it is this model, {target}.part is not needed" in told


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("put", [as_folder, as_file, as_link])
def test_what_came_to_be_there_meanwhile_stays(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
    put: Callable[[Path], None],
) -> None:
    """It was replaced by the model, and gone."""
    name, words = WAYS[way]
    target, prove = tmp_path / name, model_writer.prove

    def meanwhile(*given: Any) -> None:
        prove(*given)
        put(target)

    args = ["convert", str(model), str(target), *words]
    with monkeypatch.context() as context:
        context.setattr(model_writer, "prove", meanwhile)
        assert run(args) == 2
    told = capsys.readouterr().err
    assert f"{target} was not there when this began" in told and "move it away" in told
    assert (
        target.is_symlink() or "precious" in (target / "mine.txt" if target.is_dir() else target).read_text()
    )
    assert ("what was rounded is kept in" in told) == way.startswith("rounded")
    part = tmp_path / f"{name}.part"
    assert part.exists() == way.startswith("rounded")
    assert not list(tmp_path.glob(".*"))
    target.rename(tmp_path / "away")
    monkeypatch.setattr(pipeline, "_round", None)  # all is done
    assert run(args) == 0 and open_model(target).checkpoint.tensors and not part.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_second_run_is_refused_while_the_first_goes_on(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """Of those that round nothing both wrote, and the later one won."""
    name, words = WAYS[way]
    args, codes, prove = ["convert", str(model), str(tmp_path / name), *words], [], model_writer.prove

    def second(*given: Any) -> float:
        with monkeypatch.context() as context:
            context.setattr(model_writer, "prove", prove)
            codes.append(run(args))
        return prove(*given)

    monkeypatch.setattr(model_writer, "prove", second)
    assert run(args) == 0 and codes == [2]
    assert "another run is writing to" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["model", name]


def test_layers_that_are_done_are_not_passed_over(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conversion that rounds nothing left them beside its result."""
    args, out = ["convert", str(model), str(tmp_path / "out")], tmp_path / "out"
    with monkeypatch.context() as context:
        context.setattr(model_writer, "write_model", _interrupted)
        assert run([*args, "--method", "rtn"]) == 130
    capsys.readouterr()
    assert run([*args, "--weights", "auto", "--to", "hf"]) == 2
    assert "2 layers of another conversion (int4 rtn)" in capsys.readouterr().err and not out.exists()
    assert run([*args, "--method", "rtn"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_is_in_the_place_of_the_work_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, aside = tmp_path / "out.part", tmp_path / "aside"
    args = ["convert", str(model), str(tmp_path / "out"), "--method", "rtn"]
    aside.mkdir()
    part.symlink_to(aside)
    assert run(args) == 2 and "is a link" in capsys.readouterr().err and part.is_symlink()
    part.unlink()
    part.mkdir()
    (part / ".download.part").write_text("precious")  # as other programs call theirs
    assert run(args) == 2 and ".download.part" in capsys.readouterr().err
    assert tree(part) == {".download.part": b"precious"} and not (tmp_path / "out").exists()


def test_a_refusal_leaves_no_folder_behind(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "out"
    assert run(["convert", str(model), str(target), "--weights", "auto", "--to", "mlx"]) == 2
    assert run(["convert", str(model), str(target), "--weights", "auto", "--to", "hf"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["model", "new"] and os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize(
    "name",
    [
        "model/report.json",
        "model/config.json",
        "model/new/report.json",
        "out/report.json",
        "out.part",
        "out.part/report.json",
        "linked/config.json",
        "small.gguf",
    ],
)
def test_the_report_is_no_part_of_a_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """It was written over the source's files."""
    file = tmp_path / "small.gguf"
    assert run(["convert", str(model), str(file)]) == 0
    (tmp_path / "linked").mkdir()
    for one in model.iterdir():
        (tmp_path / "linked" / one.name).symlink_to(one)
    source = file if name == file.name else tmp_path / name.split("/")[0].replace("out.part", "model")
    source = source if source.exists() else model
    before = tree(tmp_path)
    args = ["convert", str(source), str(tmp_path / "out"), "--method", "rtn"]
    assert run([*args, "--json", str(tmp_path / name)]) == 2
    told = capsys.readouterr().err
    assert "--json" in told and ("lies in" in told or "named twice" in told)
    assert tree(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_called_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was said that its name is none of a .gguf file."""
    (tmp_path / "out.gguf").mkdir()
    assert run(["convert", str(model), str(tmp_path / "out.gguf")]) == 2
    assert "out.gguf is a folder, a .gguf file is written" in capsys.readouterr().err


def test_the_report_is_there_before_the_comparison(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lost where the comparison, which takes minutes, was interrupted: TARGET is there by then, so
    the same command does not go on."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    text, report, out = tmp_path / "text.txt", tmp_path / "report.json", tmp_path / "out"
    text.write_text("a small text of some words " * 40)
    args = ["convert", str(model), str(out), "--method", "rtn", "--test", str(text), "--samples", "2"]
    args += ["--length", "64", "--json", str(report)]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "measure", interrupted)
        assert run(args) == 130
    known = json.loads(report.read_text())
    assert open_model(out) and known["matrices"] and known["fidelity"] is None
    shutil.rmtree(out)
    assert run(args) == 0
    assert (found := json.loads(report.read_text()))["fidelity"]
    assert {**found, "fidelity": None} == known


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_names_that_are_no_utf_8(model: Path, tmp_path: Path) -> None:
    """Of a GGUF file that was told as a fault of the program."""
    file, out = (Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/b\xff.gguf", b"/d\xff"))
    report = tmp_path / "report.json"
    assert run(["convert", str(model), str(file), "--json", str(report)]) == 0
    assert open_model(file).checkpoint.metadata()["general.name"] == "b\ufffd"
    assert run(["convert", str(file), str(out), "--method", "rtn", "--json", str(report)]) == 0
    assert open_model(out).config.hidden_size == 64 and sorted(os.listdir(os.fsencode(tmp_path))) == [
        b"b\xff.gguf",
        b"d\xff",
        b"model",
        b"report.json",
    ]


def test_a_lock_that_nobody_holds_is_no_hindrance(model: Path, tmp_path: Path) -> None:
    """What a killed conversion that rounds nothing leaves."""
    part = tmp_path / "out.gguf.part"
    part.mkdir()
    args = ["convert", str(model), str(tmp_path / "out.gguf")]
    with lock(part / "lock"):
        assert run(args) == 2
    assert run(args) == 0 and not part.exists()
