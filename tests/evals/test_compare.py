"""Results of evaluations are compared on the same items, or refused by the name of what differs."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from minicpm4.cli import run
from minicpm4.errors import ConfigError
from minicpm4.evals.result_files import read_results
from minicpm4.evals.results import PARTS, Result, comparable, differing, paired
from tests.fixtures.random_checkpoint import make_checkpoint

ITEMS = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.5}


def result(**changes: Any) -> Result:
    told = {"kind": "code", "model": "one", "engine": {}, "description": "int4", "machine": "this"}
    figures = {"prompt_tokens": 100, "new_tokens": 40, "seconds": 8.0, "memory": 2_000_000_000}
    return Result(**{**told, **figures, "hashes": dict.fromkeys(PARTS, "x"), "items": ITEMS} | changes)


def write(file: Path, *results: Any) -> str:
    file.write_text(
        json.dumps({"results": [one if isinstance(one, dict) else one.as_dict() for one in results]})
    )
    return str(file)


def test_differences_are_of_the_items_that_both_have() -> None:
    other = result(items={"d": 1.0, "b": 0.0, "a": 0.0, "e": 1.0})
    found = paired(result(), other)
    assert (found.count, found.better, found.worse) == (3, 1, 1)
    apart = [-1.0, 0.0, 0.5]
    mean = sum(apart) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in apart) / 2 / 3)
    assert found.mean == pytest.approx(mean) and found.half == pytest.approx(4.3027 * spread)
    assert result(items=dict.fromkeys("abc", 0.0)).score == (0.0, None)
    with pytest.raises(ConfigError, match="no item in common"):
        paired(result(), result(items={"z": 1.0}))


@pytest.mark.parametrize("part", PARTS)
def test_what_differs_is_refused_by_name(part: str) -> None:
    other = result(model="two", hashes={**dict.fromkeys(PARTS, "x"), part: "y"})
    assert differing(result(), other) == [part] and other.hash != result().hash
    with pytest.raises(ConfigError, match=f"one and two differ in {part}: not compared") as error:
        comparable([result(), result(), other])
    assert (f"--across {part}" in str(error.value)) is (part != "tasks")
    if part != "tasks":
        comparable([result(), other], [part])
    with pytest.raises(ConfigError, match=f"differ in kind and {part}: not"):
        comparable([result(), result(kind="math", hashes=other.hashes)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = result(model="two|x", items={**ITEMS, "b": 1.0}, seconds=4.0)
    files = [write(tmp_path / "a.json", result()), write(tmp_path / "b.json", other)]
    outputs = [tmp_path / name for name in ("t.md", "t.svg", "t.json")]
    args = ["eval", "compare", *files]
    flags = zip(("--markdown", "--plot", "--json"), map(str, outputs), strict=True)
    assert run([*args, *(one for pair in flags for one in pair)]) == 0
    out = capsys.readouterr().out
    assert "62.5% ± 76.2" in out and "+25.0% ± 79.6" in out and "1, 0" in out and "2.00 GB" in out
    table, svg, figures = (file.read_text() for file in outputs)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and "two\\|x" in rows[3] and "+25.0%" in rows[3] and "| 1 | 10 |" in rows[3]
    assert len(list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle"))) == 3
    second = json.loads(figures)["comparisons"][0]["compared"][1]
    assert second["apart"]["better"] == 1 and second["score"] == 0.875 and second["hash"] == other.hash


def test_strange_names_are_cut_and_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        write(tmp_path / f"{i}.json", result(model=model, seconds=0, memory=0))
        for i, model in enumerate(("\ud800\x1b[2Jone\n", "x" * 100_000))
    ]
    outputs = {f"--{name}": tmp_path / f"t.{name}" for name in ("markdown", "json")} | {
        "--plot": tmp_path / "t.svg"
    }
    assert run(["eval", "compare", *files, *(str(one) for pair in outputs.items() for one in pair)]) == 0
    out = capsys.readouterr().out
    assert "[2Jone" in out and "characters left out" in out and len(out) < 2000
    table = outputs["--markdown"].read_text()
    assert "memory" not in table and "tokens/s" not in table, "of what no file tells there is no column"
    assert ElementTree.fromstring(outputs["--plot"].read_text()) is not None


def test_files_are_written_though_standard_output_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.json", result())
    with suppress(OSError), open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        assert run(["eval", "compare", file, file, "--json", str(tmp_path / "b.json")]) == 2
        monkeypatch.undo()
    assert json.loads((tmp_path / "b.json").read_text())["comparisons"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_picture_that_cannot_be_written_keeps_nothing_else_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", result())
    (tmp_path / "full.svg").symlink_to("/dev/full")
    outputs = ["--plot", str(tmp_path / "full.svg"), "--json", str(tmp_path / "b.json")]
    assert run(["eval", "compare", file, file, *outputs]) == 2
    told = capsys.readouterr()
    assert "62.5%" in told.out and told.err.startswith("error: ") and "full.svg" in told.err
    assert json.loads((tmp_path / "b.json").read_text())["comparisons"]


def test_results_of_one_model_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [result(engine=told) for told in ({"kv": "int8", "threads": 2}, {"threads": 2}, {"threads": 2})]
    assert run(["eval", "compare", write(tmp_path / "a.json", *runs)]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert rows == ["one, kv=int8", "one (1)", "one (2)"]


def test_runs_of_tiny_models_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, seed in (("a", 1), ("b", 2)):
        model = str(make_checkpoint(tmp_path / name, seed=seed, max_position_embeddings=4096))
        files.append(str(tmp_path / f"{name}.json"))
        args = ["eval", "ruler", model, "--keep", str(tmp_path / f"kept-{name}"), "--kinds", "vt,qa_1"]
        assert run([*args, "--lengths", "1024", "--each", "2", "--plain", "--json", files[-1]]) == 0
    capsys.readouterr()
    assert run(["eval", "compare", *files]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["a", "b"] and rows[1][-1] == "MB"
    assert rows[0][1:3] == ["0.0%", "4"]  # nothing is right, of which no interval can be told
    first = read_results(Path(files[0]))[0]
    assert len(first.items) == 4 and first.seconds > 0 and first.new_tokens > 0 and first.memory > 0


def test_questions_made_in_other_tokens_are_not_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for size in (320, 328):
        model = str(make_checkpoint(tmp_path / f"{size}", vocab_size=size, max_position_embeddings=1024))
        files.append(str(tmp_path / f"{size}.json"))
        args = ["eval", "ruler", model, "--keep", str(tmp_path / f"kept-{size}"), "--kinds", "vt"]
        assert run([*args, "--lengths", "512", "--each", "2", "--plain", "--json", files[-1]]) == 0
    assert run(["eval", "compare", *files, "--across", "tokenizer,template"]) == 2
    assert "differ in tasks: not compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "not a table"),
        ("{}", "holds no results"),
        ('{"results": []}', "holds no results"),
        ('{"results": [5]}', "result 1 is no table"),
        ({"version": 2}, "has version 2"),
        ({"version": True}, "has version True"),
        ({"measure": 5}, "measure is no text"),
        ({"measure": "bits", "items": {"a": -1.0}}, "the score of a is not a number from 0 on"),
        ({"weights": {"z": 1.0}}, "weights are not of the items"),
        ({"weights": dict.fromkeys(ITEMS, 0)}, "the weight of a is not above 0"),
        ({"less": 1}, "less is neither true nor false"),
        ({"cut": "3"}, "cut is no number"),
        ({"memory": float("nan")}, "memory is no number"),
        ({"model": 7}, "model is no text"),
        ({"engine": []}, "engine is no table"),
        ({"seconds": -1}, "seconds is no number"),
        ({"memory": True}, "memory is no number"),
        ({"hashes": {"tasks": "x"}}, "hashes do not name"),
        ({"items": {}}, "has no items"),
        ({"items": {"a": 1.5}}, "the score of a is not from 0 to 1"),
        ({"items": {"a": "1"}}, "the score of a is not"),
    ],
    ids=str,
)
def test_wrong_files_are_refused(
    tmp_path: Path, content: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.json"
    if isinstance(content, str):
        file.write_text(content)
    else:
        write(file, {**result().as_dict(), **content})
    assert run(["eval", "compare", write(tmp_path / "a.json", result()), str(file)]) == 2
    assert said in capsys.readouterr().err


def test_wrong_commands_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.json", result())
    for args, said in (
        ([file], "one result alone"),
        ([file, "nowhere.json"], "nowhere.json"),
        ([file, file, "--across", "tasks"], "tasks"),
        ([file, file, "--plot", "x.png"], ".svg"),
        ([file, file, "--json", file], "named twice"),
        ([file, file, "--json", str(tmp_path / "x"), "--markdown", str(tmp_path / "x")], "named twice"),
    ):
        assert run(["eval", "compare", *args]) == 2 and said in capsys.readouterr().err, args
