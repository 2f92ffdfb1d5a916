"""`minicpm4 bench` measures models with and without files, and refuses before it measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from minicpm4.cli import bench
from minicpm4.evals import random_model
from tests.cli.conftest import Result
from tests.evals.conftest import TINY
from tests.fixtures.random_checkpoint import make_checkpoint

Run = Callable[..., Result]
QUICK = ("--prefill", "24", "--decode", "2", "--repeats", "2", "--threads", "2")


UNREAD = (
    *(("--plot", "{}/x.svg"), ("--sparse", "topk=2"), ("--attention", "dense"), ("--depths", "0")),
    *(("--prefill", "8"), ("--batch", "2"), ("--chunk", "8")),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A random model of a tiny shape."""
    monkeypatch.setattr(random_model, "SHAPES", {"random-tiny": TINY})
    return "random-tiny"


def test_it_measures_a_model_without_files(minicpm: Run, tiny: str, tmp_path: Path) -> None:
    data, plot = tmp_path / "b.json", tmp_path / "b.svg"
    result = minicpm("bench", tiny, "--depths", "0,100", "--json", str(data), "--plot", str(plot), *QUICK)
    assert result.code == 0, result.err
    assert "int4-g64" in result.err and "GB/s read" in result.out
    lines = [line.split() for line in result.out.splitlines() if line.startswith(("prefill", "decode"))]
    assert [line[:4] for line in lines] == [
        [kind, tokens, attention, depth]
        for kind, tokens in (("prefill", "24"), ("decode", "2"))
        for attention in ("dense", "sparse")
        for depth in ("0", "100")
    ]
    found = json.loads(data.read_text())
    assert [p["depth"] for p in found["points"]] == [0, 100] * 4
    assert all(len(p["seconds"]) == 2 and p["tokens_per_s"] > 0 for p in found["points"])
    assert found["limits"]["bandwidth_bytes_per_s"] > 0
    ElementTree.fromstring(plot.read_text())


def test_it_measures_a_model_with_files(minicpm: Run, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    options = ("--attention", "sparse", "--sparse", "kernel=8,stride=4,block=16,window=32,topk=2")
    result = minicpm("bench", str(folder), "--depths", "60", "--weights", "int8", *options, *QUICK)
    assert result.code == 0, result.err
    assert "int8" in result.err and "dense" not in result.out


def test_it_measures_drafting(minicpm: Run, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    data = tmp_path / "d.json"
    options = ("--draft", "suffix", "--decode", "8", "--repeats", "1", "--threads", "2", "--json", str(data))
    result = minicpm("bench", str(folder), *options)
    assert result.code == 0, result.err
    assert "tokens that differ: 0" in result.out and "editing" in result.out
    assert {one["drafter"] for one in json.loads(data.read_text())} == {"off", "suffix"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--depths", "0,-5"), "--depths has '-5'"),
        (("--depths", "99999999999"), "outside 0 to 16,777,216"),
        (("--prefill", "1k"), "write whole numbers"),
        (("--prefill", "0", "--decode", "0"), "nothing to measure"),
        (("--repeats", "0"), "--repeats 0 is outside 1"),
        (("--attention", "dense,spars"), "sparse"),
        (("--weights", "int5"), "did you mean"),
        (("--kv", "fp8"), "bf16"),
        (("--plot", "speed.png"), "plots are SVG"),
        (("--json", "no/such/folder/x.json"), "cannot write --json"),
    ],
)
def test_mistakes_are_told(minicpm: Run, tiny: str, options: tuple[str, ...], message: str) -> None:
    result = minicpm("bench", tiny, *QUICK, *options)
    assert result.code == 2
    assert result.err.startswith("error: ") and message in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("m", "--draft", "off"), "leaves nothing to compare"),
        (("m", "--draft", "suffix", "--decode", "1"), "--decode 1 is outside 2"),
        (("--draft", "suffix"), "random-minicpm4-0.5b has random weights"),
        *((("m", "--draft", "suffix", option, value), option) for option, value in UNREAD),
    ],
)
def test_what_drafting_does_not_read_is_refused(
    minicpm: Run, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = minicpm("bench", *(one.format(tmp_path) for one in options))
    assert result.code == 2 and message in result.err


def test_too_deep_for_the_memory(minicpm: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minicpm4.kernels.contract.available_memory", lambda: 1_000_000)
    result = minicpm("bench", tiny, *QUICK, "--depths", "100000")
    assert result.code == 2 and "1.00 MB are available" in result.err


def test_an_unknown_model_is_refused(minicpm: Run) -> None:
    result = minicpm("bench", "random-minicpm4-9b", *QUICK)
    assert result.code == 2 and "random-minicpm4-9b" in result.err


def test_the_default_model_exists() -> None:
    assert bench.RANDOM in random_model.SHAPES


def test_auto_needs_a_setting_that_was_measured(minicpm: Run, tiny: str) -> None:
    result = minicpm("bench", tiny, "--sparse", "auto", "--depths", "0", *QUICK)
    assert result.code == 2 and "no setting was measured for random-tiny" in result.err
