"""The commands that list and fetch models: what they take of the disk, and tables on narrow terminals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minicpm4 import LLM, zoo
from minicpm4.cli import models
from minicpm4.zoo.sources import KNOWN
from tests.cli.conftest import Result, Terminal
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.zoo.hub_server import Hub, asked

Run = Callable[..., Result]
FILES = {"config.json": b"{}", "model.safetensors": bytes(3_000_000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked(FILES, tmp_path / "home", monkeypatch) as running:
        yield running


def test_a_pull_tells_what_it_takes_of_the_disk_and_how_to_remove_it(minicpm: Run, hub: Hub) -> None:
    for _ in range(2):  # the second time it is here
        result = minicpm("pull", "minicpm4-0.5b")
        assert result.code == 0 and (Path(result.out.strip()) / "model.safetensors").is_file()
        assert "3.00 MB on disk; to remove the model, delete this folder\n" in result.err


def test_a_model_in_a_package_is_not_to_be_deleted(minicpm: Run) -> None:
    assert minicpm("pull", "smollm2-135m-instruct").err == ""


def test_parts_of_a_file_are_counted(minicpm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    place = tmp_path / "models" / "a--b"
    place.mkdir(parents=True)
    for number in (1, 2):
        (place / f"c-0000{number}-of-00002.gguf").write_bytes(bytes(1000))
    (place / "other.gguf").write_bytes(bytes(5000))
    assert "2 kB on disk; to remove the model, delete these 2 files" in (
        minicpm("pull", "a/b/c-00001-of-00002.gguf").err
    )


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_each_model_has_one_line_of_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    models.command()
    table = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).split("\n\n")[0].splitlines()
    assert len(table) == 2 + len(zoo.list_models()) and all(len(line) <= columns for line in table)
    assert [line.split()[0] for line in table[2:]][: len(KNOWN)] == list(KNOWN)
    assert ("…" in screen.getvalue()) == (columns < 200)


def test_sources_are_whole_for_machines(minicpm: Run) -> None:
    listed = json.loads(minicpm("models", "--json").out)
    assert any(one["source"].endswith("more") for one in listed)


def test_info_and_the_line_at_load_give_both_sums_of_memory_by_the_same_names(
    minicpm: Run, tmp_path: Path
) -> None:
    folder = str(make_checkpoint(tmp_path / "model", dtype="bfloat16"))
    with LLM(folder, threads=1, context=512, max_batch=1) as llm:
        line = re.search(r"(memory planned): (\S+ \S+) \(\S+ \S+ (with this process)\)$", llm.description)
        assert line is not None
    sizes = re.findall(
        r"^  (.+?)  +(\S+ \S+)$", minicpm("info", folder, "--context", "512", "--threads", "1").out, re.M
    )
    assert dict(sizes)[line[1]] == line[2]
    names = [name for name, _ in sizes]
    assert names[names.index(line[1]) :][1:3] == ["process before loading", line[3]]
