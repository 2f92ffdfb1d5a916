"""`minicpm4 needles`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicpm4.cli import run
from tests.fixtures import transformers_folders as theirs

TEXT = ["--text", "examples/how_sqlite_is_tested.txt"]


def test_facts_are_found_in_short_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, drawn = tmp_path / "found.json", tmp_path / "found.svg"
    args = ["needles", "smollm2-135m-instruct", *TEXT, "--lengths", "200", "--depths", "2", "--each", "2"]
    assert run([*args, "--json", str(found), "--plot", str(drawn)]) == 0
    out = capsys.readouterr().out
    assert "blocks read" in out and "200" in out
    cells = json.loads(found.read_text())["cells"]
    assert [(c["length"], c["depth"], c["asked"]) for c in cells] == [(200, 0.0, 2), (200, 1.0, 2)]
    assert sum(c["found"] for c in cells) >= 3  # seen: 4; the model is small, but not that small
    assert drawn.read_text().count("%</text>") == 2 * 2  # depths and cells


def test_a_field_may_be_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = theirs.make_chatty(tmp_path / "m", theirs.VERSIONS[-1], "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "some_new_field": [3]}))
    args = ["needles", str(folder), *TEXT, "--lengths", "150", "--depths", "1", "--each", "1"]
    assert run(args) == 2 and "--ignore-field some_new_field" in capsys.readouterr().err
    assert run([*args, "--ignore-field", "some_new_field"]) == 0


def test_a_wrong_answer_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from minicpm4.evals.needles import _ask

    needle = SimpleNamespace(value="4821")
    document = SimpleNamespace(asked=[needle], tokens=__import__("numpy").arange(9), prompt=5)
    metrics = SimpleNamespace(blocks_read_share=0.5)
    for text, right in ((" 4821.", True), ("4821", True), (" 48215", False), (" 4822.", False), ("", False)):
        llm = SimpleNamespace(generate=lambda *_, text=text: SimpleNamespace(text=text, metrics=metrics))
        assert _ask(llm, document) == (right, 0.5), text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lengths", "10,x"], "--lengths has 'x'"),
        (["--lengths", "20"], "20 tokens are too few"),
        (["--depths", "0"], "--depths 0"),
        (["--each", "0"], "--each 0"),
        (["--plot", "no/such/folder.svg"], "cannot write --plot no/such/folder.svg: No such file"),
        (["--needles", "0"], "needles"),
    ],
)
def test_wrong_input_gets_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["needles", "smollm2-135m-instruct", *TEXT, *args]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1
