"""`minicpm4 convert`: where it writes, what it leaves alone, and what an interruption leaves."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minicpm4.cli import convert as command
from minicpm4.cli import run
from minicpm4.cli.convert_options import overrides_of
from minicpm4.evals import conversion, model_writer
from minicpm4.files import lock
from minicpm4.formats import open_checkpoint
from minicpm4.formats.gguf_write import write_gguf
from minicpm4.quantize import export, pipeline
from minicpm4.quantize.work import remove_work, work_folder
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.formats.gguf_files import hf_weights, metadata, to_gguf

QUICK = ["--group", "32", "--method", "rtn"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", seed=9)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def convert(model: Path, out: Path, *more: str) -> int:
    return run(["convert", str(model), str(out), *QUICK, *more])


@pytest.mark.parametrize("moment", ["write_set", "end_folder", "check_again"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_writing_that_was_ended_is_done_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    """The folder was half there, and the same command refused to write to it."""
    out = tmp_path / "out"

    def stop(*_: Any) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr(model_writer if moment == "check_again" else export, moment, stop)
        assert convert(model, out) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert names(tmp_path) == {"model", "out.part"}
    with monkeypatch.context() as context:
        context.setattr(pipeline, "_round", stop)  # what was rounded is there
        assert convert(model, out) == 0
    assert names(tmp_path) == {"model", "out"}
    assert open_checkpoint(out).tensors


def test_nothing_of_another_is_written_over_or_removed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, part = tmp_path / "out", tmp_path / "out.part"
    part.mkdir()
    (part / "mine.txt").write_text("precious")
    assert convert(model, out) == 2 and "mine.txt" in capsys.readouterr().err
    assert names(part) == {"mine.txt"} and not out.exists()
    shutil.rmtree(part)
    part.write_text("precious")
    assert convert(model, out) == 2 and "out.part" in capsys.readouterr().err
    assert part.read_text() == "precious"
    part.unlink()
    out.mkdir()
    (out / "config.json").write_text("precious")
    assert convert(model, out) == 2 and "config.json is in it" in capsys.readouterr().err
    assert names(out) == {"config.json"} and names(tmp_path) == {"model", "out"}
    (out / "config.json").unlink()
    assert convert(model, out) == 0 and names(tmp_path) == {"model", "out"}  # an empty one is as good as none


def test_one_run_at_a_time(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = tmp_path / "out.part"
    part.mkdir()
    with lock(part / "lock"):
        assert convert(model, tmp_path / "out") == 2
    assert "another run" in capsys.readouterr().err
    assert convert(model, tmp_path / "out") == 0


def test_a_changed_configuration_uses_nothing_that_was_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, real = [], pipeline._round

    def counted(*given: Any) -> Any:
        calls.append(given[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(pipeline, "_round", counted)
    out, part = tmp_path / "out", tmp_path / "out.part"
    assert convert(model, out) == 130
    assert f"what is done is kept in {part}, the same command goes on" in capsys.readouterr().err
    kept = names(part)
    assert convert(model, out, "--weights", "int8") == 2
    error = capsys.readouterr().err
    assert "holds 1 layer of another conversion (int4 rtn): it had weights 'int4', this has 'int8'. " in error
    assert "remove the folder" in error
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    assert convert(model, out) == 2 and names(part) == kept and calls == [0, 1]
    assert "its config.json, or the order of its overrides, is another. go on" in capsys.readouterr().err
    shutil.rmtree(part)
    assert convert(model, out) == 0 and calls == [0, 1, 0, 1]


def test_layers_that_are_done_are_told_apart(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They counted as rounded by this run: the time left was told far too short."""
    real, told = pipeline._round, []

    @contextmanager
    def bar(what: str, unit: str, *, before: int = 0) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: told.append((what, before, done, total))

    def second_fails(*given: Any) -> Any:
        if given[1] == 1:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(command, "progress_or_lines", bar)
    with monkeypatch.context() as context:
        context.setattr(pipeline, "_round", second_fails)
        assert convert(model, tmp_path / "out") == 130
    assert told == [("rounding", 0, 1, 2)]
    told.clear()
    assert convert(model, tmp_path / "out") == 0
    assert told[:2] == [("going through what is done", 0, 1, 1), ("rounding", 1, 2, 2)]


def test_own_texts_of_kept_layers_are_not_replaced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, out = pipeline._round, tmp_path / "out"

    def once(*given: Any) -> Any:
        if given[1]:
            raise KeyboardInterrupt
        return real(*given)

    args = ["convert", str(model), str(out), "--group", "32", "--length", "64", "--samples"]
    with monkeypatch.context() as context:
        context.setattr(pipeline, "_round", once)
        assert run([*args, "1"]) == 130
    capsys.readouterr()
    texts = (tmp_path / "out.part" / "texts.json").read_bytes()
    assert run([*args, "2"]) == 2
    told = capsys.readouterr().err
    assert "1 layer of another conversion (int4 s-gptq): its texts were written otherwise (--samples" in told
    assert (tmp_path / "out.part" / "texts.json").read_bytes() == texts
    assert run([*args, "1"]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda ids: ids[:1],
        lambda ids: [ids[0], ids[1][:-1]],
        lambda ids: [ids[0], [*ids[1][:-1], ids[1][-1] ^ 1]],  # a token, too
    ],
)
def test_own_texts_that_are_damaged_are_written_anew(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Any], Any],
) -> None:
    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    args = ["convert", str(model), str(tmp_path / "out"), "--group", "32", "--length", "64", "--samples", "2"]
    kept = tmp_path / "out.part" / "texts.json"
    monkeypatch.setattr(pipeline, "_round", stopped)
    assert run(args) == 130
    table = json.loads(kept.read_text())
    kept.write_text(json.dumps(table | {"ids": damage(table["ids"])}))
    assert run(args) == 130 and json.loads(kept.read_text()) == table
    assert f"the texts in {kept} are damaged: they are written anew" in caplog.text


def test_texts_are_looked_at_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, out = tmp_path / "short.txt", tmp_path / "out"
    short.write_text("hello")
    assert convert(model, out, "--test", str(short)) == 2
    assert "short.txt" in capsys.readouterr().err and names(tmp_path) == {"model", "short.txt"}
    for file in model.glob("*token*"):
        file.unlink()
    assert run(["convert", str(model), str(out), "--group", "32"]) == 2
    assert "--method rtn" in capsys.readouterr().err
    assert convert(model, out, "--test", str(short)) == 2 and "no tokenizer" in capsys.readouterr().err
    assert convert(model, out) == 0


def test_a_model_whose_fields_are_ignored_is_compared(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"new_field": {"by": 3}}))
    more = ["--test", "examples/how_sqlite_is_tested.txt", "--samples", "1", "--length", "64"]
    report = tmp_path / "report.json"
    more += ["--json", str(report), "--ignore-field", "new_field"]
    assert convert(model, tmp_path / "out", *more) == 0
    found = json.loads(report.read_text())["fidelity"]
    assert found["positions"] == 63 and found["nll_interval"] is None  # of one window


def test_of_overrides_the_last_that_fits_counts() -> None:
    assert list(overrides_of(["a=float", "b=int8-g64", "a=int4-g32"]).items()) == [
        ("b", "int8-g64"),
        ("a", "int4-g32"),
    ]


def gguf(file: Path, arch: str) -> Path:
    """A small model without a tokenizer."""
    keys = {key: value for key, value in metadata(arch).items() if not key.startswith("tokenizer")}
    write_gguf(file, keys | {f"{arch}.vocab_size": 40}, to_gguf(hf_weights(), arch))
    return file


def test_a_gguf_file_is_converted(tmp_path: Path) -> None:
    file = gguf(tmp_path / "model.gguf", "llama")
    assert convert(file, tmp_path / "out", "--override", "layers=float", "--to", "hf") == 0
    old, new = open_checkpoint(file), open_checkpoint(tmp_path / "out")
    for name, info in new.tensors.items():
        if len(info.shape) == 2:
            assert (old.load(name).codes == new.load(name).codes).all(), name


def test_what_no_config_json_can_say_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A qwen2 without biases: it was told when all was rounded."""
    assert convert(gguf(tmp_path / "model.gguf", "qwen2"), tmp_path / "out") == 2
    assert "attention_bias" in capsys.readouterr().err
    assert names(tmp_path) == {"model.gguf"}


def test_a_place_that_cannot_be_given_away_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new folder takes its name: whoever stood in it would be nowhere."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert convert(model, Path()) == 2 and "runs in" in capsys.readouterr().err
    assert convert(model, Path("/")) == 2 and "/" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(here)
    assert convert(model, Path("link")) == 0
    assert (tmp_path / "link").is_symlink() and "config.json" in names(here)


def test_a_loop_of_links_is_no_place(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for target in (loop, loop / "inside"):
        assert convert(model, target) == 2
        assert "Too many levels of symbolic links" in capsys.readouterr().err
    assert names(tmp_path) == {"model", "loop"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("small", ["--method", "rtn", "--group", "32"]),
        ("small", ["--weights", "auto", "--to", "hf"]),
        ("small", ["--to", "llama"]),
        ("small.gguf", []),
        ("small.gguf", ["--weights", "int4", "--method", "rtn"]),
    ],
)
def test_folders_above_the_new_one_are_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: list[str]
) -> None:
    """Where weights stay as they are stored it was an error, after the work; and what ends in an error leaves
    none behind."""
    from minicpm4.evals import model_writer

    args = ["convert", str(model), str(tmp_path / "new" / "inside" / name), *more]
    with monkeypatch.context() as context:
        context.setattr(model_writer, "prove", lambda *_: open("/dev/null/nothing"))  # noqa: SIM115
        assert run(args) == 2
    kept = tmp_path / "new" / "inside" / f"{name}.part"
    assert (tmp_path / "new").exists() == kept.exists() == ("--method" in more)
    assert run(args) == 0 and names(tmp_path / "new" / "inside") == {name}


@pytest.mark.parametrize("inside", ["", "new"])
def test_a_name_that_is_too_long_until_it_is_whole_is_refused_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    """It was written as .NAME.xxxxxxxx.part, 15 bytes more, when all was rounded."""
    for length, code in ((241, 2), (240, 0)):
        assert convert(model, tmp_path / inside / ("a" * length)) == code
        assert ("File name too long" in capsys.readouterr().err) == (code == 2)
    assert names(tmp_path) == {"model", inside or "a" * 240}


def test_the_report_has_a_name_of_its_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("Some text to look at. " * 400)
    for other, more in ((out, []), (text, ["--test", str(text)])):
        assert convert(model, out, *more, "--json", str(other)) == 2
        assert "named twice" in capsys.readouterr().err and not out.exists()
    assert run(["eval", "ppl", str(model), "--text", str(text), "--json", str(text)]) == 2
    assert "named twice" in capsys.readouterr().err and text.read_text().startswith("Some")


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "{}", "{}/out", "--to", ""],
        ["eval", "ppl", "{}", "--text", "t", "--window", "64", "--stride", "65"],
    ],
)
def test_values_that_are_none_are_refused(model: Path, args: list[str]) -> None:
    assert run([one.format(model) for one in args]) == 2


def test_the_folder_that_this_runs_in_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_checkpoint(tmp_path / "model", seed=4)
    monkeypatch.chdir(model)
    assert run(["convert", ".", str(tmp_path / "out"), "--weights", "auto", "--to", "hf"]) == 0


@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_a_target_that_another_run_made_before_this_one_began_is_found_before_the_work(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was found after all layers were rounded."""
    model, out = make_checkpoint(tmp_path / "model", seed=4), tmp_path / "out"
    enter = conversion.work_folder

    @contextmanager
    def after_another(folder: Path) -> Iterator[None]:
        out.mkdir()
        (out / "theirs").write_text("kept")
        with enter(folder):
            yield

    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(conversion, "work_folder", after_another)
    monkeypatch.setattr(conversion, "quantize", worked)
    monkeypatch.setattr(conversion.ModelWriter, "write", worked)
    words = ["convert", str(model), str(out), "--to", "hf", "--weights", weights]
    assert run([*words, *(["--method", "rtn"] if weights == "int4" else [])]) == 2
    assert "theirs is in it" in capsys.readouterr().err
    assert not out.with_name("out.part").exists()


def test_the_work_folder_of_the_next_run_stays(tmp_path: Path) -> None:
    part = tmp_path / "out.part"
    with work_folder(part):
        remove_work(part)
        part.mkdir()  # by another run, which holds it
        (part / "lock").touch()
    assert (part / "lock").exists()
    (part / "lock").unlink()
    with work_folder(part):
        pass
    assert not part.exists()


def test_the_worst_matrices_are_those_that_texts_went_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", seed=4)
    words = ["--to", "mlx", "--weights", "int8", "--override", "embed_tokens=int4-g32", *QUICK]
    text = tmp_path / "text.txt"
    text.write_text("Some words to look at, and more of them.\n" * 60)
    words += ["--method", "awq", "--calibration", str(text)]
    assert run(["convert", str(model), str(tmp_path / "out"), *words]) == 0
    said = capsys.readouterr().out
    worst, facts = said.split("converted")
    assert "layers" in worst and "embed_tokens" not in worst
    assert "embed_tokens" in facts and "int4-g32, values" in facts
