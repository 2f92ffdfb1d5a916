"""`minicpm4 eval sparse`: recall by hand, readings as an LLM has them, the cheapest setting, the command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.cli import run
from minicpm4.config import SparseConfig
from minicpm4.engine.load import inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.errors import ConfigError
from minicpm4.evals.sparse import Layout, Reader, Result, cheapest, costs, lay_out, measuring, name_of
from minicpm4.evals.sparse.recall import Watched
from minicpm4.files import Kept
from minicpm4.kernels import sparse_api
from minicpm4.kernels.ref import RefOps
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.waiting import until

SMALL = SparseConfig(topk=2, window_size=4, block_size=4, kernel_size=4, kernel_stride=4, dense_len=-1)
TINY = SparseConfig(topk=2, window_size=32, block_size=16, kernel_size=8, kernel_stride=4, dense_len=-1)
SETTING = "topk=2,window=32,kernel=8,stride=4,block=16"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sparse") / "model"
    return str(make_checkpoint(folder, max_position_embeddings=1024))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICPM4_SPARSE", str(tmp_path / "settings"))
    return tmp_path / "settings"


def test_recall_is_what_is_computed_by_hand() -> None:
    """32 tokens, blocks of 4, the query at the last; head 0 gives token 18 (block 4) 33 times the weight of
    every other, head 1 all the same. Chosen: the first block, the own one, and block 4."""
    k = np.zeros((32, 1, 4), np.float32)
    k[18, 0, 0] = 1.0
    q = np.zeros((1, 2, 4), np.float32)
    q[0, 0, 0] = 2 * np.log(33)  # times 1 / sqrt(4)
    ops = RefOps()
    kv = sparse_api._pages(ops, 32, 1, 4, SMALL, "float32")
    ops.append(k, k, kv, sparse_api._step(32, 0, 4, SMALL))
    watched = Watched(ops, 1, 2, {"a": SMALL}, [range(31, 32)])
    step = replace(sparse_api._step(32, 31, 4, SMALL), sparse=None)
    assert np.array_equal(watched.attention(q, kv, step), ops.attention(q, kv, step))
    found = watched.recalls["a"].as_dict()
    assert found["by_layer_and_head"] == [[round((4 + 36 + 4) / 64, 4), 12 / 32]]
    assert found["mean"] == pytest.approx((44 / 64 + 12 / 32) / 2)
    assert found["far"] == pytest.approx((36 / 64 + 4 / 32) / (56 / 64 + 24 / 32))
    assert found["far_mass"] == pytest.approx((56 / 64 + 24 / 32) / 2)


def test_layers_that_choose_nothing_have_no_recall() -> None:
    ops = RefOps()
    kv = replace(sparse_api._pages(ops, 32, 1, 4, SMALL, "float32"), window=8)
    step = replace(sparse_api._step(32, 31, 4, SMALL), sparse=None)
    watched = Watched(ops, 1, 2, {"a": SMALL}, [range(31, 32)])
    watched.attention(np.zeros((1, 2, 4), np.float32), kv, step)
    assert watched.recalls["a"].as_dict() == {
        "by_layer_and_head": [None],
        "mean": None,
        "far": None,
        "far_mass": None,
    }


def test_a_passage_stands_twice() -> None:
    layout = lay_out([7], range(100, 2000), 1024)
    assert len(layout.ids) == 1024 and layout.ids[0] == 7 and layout.passage == 128
    for a, b in zip(layout.original, layout.copy, strict=True):
        assert layout.ids[a] == layout.ids[b]
    assert layout.original.stop <= layout.running.start and layout.running.stop == layout.second == 896
    with pytest.raises(ConfigError, match="has 801 tokens, a length of 1,024 takes 896"):
        lay_out([7], range(800), 1024)
    with pytest.raises(ConfigError, match="511 tokens is too short"):
        lay_out([], range(800), 511)


@pytest.mark.parametrize("sparse", [None, TINY])
def test_losses_are_those_of_an_llm(model: str, sparse: SparseConfig | None) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 700).tolist()
    layout = lay_out([], ids, 700)
    options = EngineOptions(attention="sparse", sparse=TINY, kv="float32", context=700, chunk=96, threads=1)
    reader = Reader(inspect(model, options))
    found = reader.losses(layout, sparse)
    asked: Any = {"attention": "dense"} if sparse is None else {"attention": "sparse", "sparse": sparse}
    with LLM(model, kv="float32", context=700, threads=1, **asked) as llm:
        wanted = llm.nll(list(layout.ids))
    for stretch in (layout.original, layout.running, layout.copy):
        part = slice(stretch.start, stretch.stop)
        np.testing.assert_allclose(found[part], wanted[part.start - 1 : part.stop - 1], atol=1e-4)
    if sparse is None:
        watched, recalls = reader.watch(layout, {"a": TINY, "all": replace(TINY, topk=44)})
        part = slice(layout.copy.start, layout.copy.stop)
        assert np.array_equal(watched[part], found[part])
        assert recalls["a"].queries.tolist() == [64, 64]
        shares = [recalls[name].as_dict()["mean"] for name in ("a", "all")]
        assert shares[0] < 0.5 and shares[1] == pytest.approx(1.0)


def result(name: str, running: float, copy: float, cache: float, original: float = 3.0) -> Result:
    return Result(name=name, sparse={}, places=(running, running), original=original, copy=copy, cache=cache)


def test_the_cheapest_is_within_the_wanted_loss_of_both_texts() -> None:
    dense = result("dense", 2.0, 0.0, 1.0)
    found = costs(
        [dense, result("a", 2.01, 0.3, 0.1), result("b", 2.018, 0.02, 0.3), result("c", 2.0, 0.0, 0.5)]
    )
    assert [one.copy for one in found] == pytest.approx([0.1, 0.02 / 3, 0.0])
    assert [one.running for one in found] == pytest.approx([0.005, 0.009, 0.0])
    names = [None if (best := cheapest(found, loss)) is None else best.result.name for loss in (0.1, 0.01, 0)]
    assert names == ["a", "b", "c"]
    assert cheapest(found[:1], 0.01) is None
    assert cheapest(costs([dense, result("all", 2.0, 0.0, 1.0)]), 0.5) is None  # it saves nothing


def test_who_looks_nothing_up_is_judged_by_running_text_alone() -> None:
    found = costs([result("dense", 2.0, 2.95, 1.0), result("a", 2.01, 4.0, 0.1)])
    assert found[0].copy is None
    best = cheapest(found, 0.01)
    assert best is not None and best.result.name == "a"


def test_names_are_what_the_option_takes() -> None:
    assert name_of(TINY) == SETTING
    assert name_of(SparseConfig(use_nope=True, dense_len=-1)) == (
        "topk=64,window=2048,kernel=32,stride=16,use_nope=on"
    )


LAYOUT = Layout(ids=tuple(range(512)), first=32, passage=64)
SHARES = {"by_layer_and_head": [None, [0.5, 0.25]], "mean": 0.5, "far": None, "far_mass": None}
LOSSES = {"places": [1.0] * measuring.PLACES, "original": 1.0, "copy": 1.0}
READINGS: dict[str, dict[str, Any]] = {
    "dense": {**LOSSES, "recalls": {SETTING: SHARES}},
    SETTING: {**LOSSES, "sparse": asdict(TINY), "blocks": 0.5, "cache": 0.25},
}


def test_what_was_kept_is_not_read_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", {})
    for name, one in READINGS.items():
        kept.put(one, "reading", name)
    ticks: list[tuple[int, int]] = []

    def opened() -> Reader:
        raise AssertionError("nothing is to be read")

    found = measuring.measure(opened, LAYOUT, [TINY], kept, lambda *args: ticks.append(args))
    assert [(one.name, one.cache) for one in found] == [("dense", 1.0), (SETTING, 0.25)]
    assert found[1].recall == SHARES and ticks == [(512, 1024), (1024, 1024)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dense", 7),
        ("dense", []),
        ("dense", LOSSES),
        ("dense", {**READINGS["dense"], "recalls": {}}),
        ("dense", {**READINGS["dense"], "recalls": {SETTING: {**SHARES, "mean": "half"}}}),
        ("dense", {**READINGS["dense"], "places": [1.0]}),
        (SETTING, {**READINGS[SETTING], "cache": None}),
        (SETTING, {**READINGS[SETTING], "copy": None}),
        (SETTING, {**READINGS[SETTING], "sparse": {"topk": -1}}),
    ],
)
def test_a_kept_reading_that_is_none_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    kept = Kept(tmp_path, {})
    for place, one in {**READINGS, name: value}.items():
        kept.put(one, "reading", place)
    with pytest.raises(ConfigError, match=r"remove .*\.json to have that piece made anew"):
        measuring.measure(lambda: pytest.fail("it is kept"), LAYOUT, [TINY], kept)


@pytest.mark.parametrize("value", [7, {}, {"prefill": 1.0}, {"prefill": 1.0, "decode": "fast"}])
def test_kept_times_that_are_none_are_refused(model: str, tmp_path: Path, value: Any) -> None:
    kept = Kept(tmp_path, {})
    kept.put(value, "times", SETTING)
    with pytest.raises(ConfigError, match=r"remove .*\.json to have that piece made anew"):
        measuring.time_settings(inspect(model, EngineOptions()), 640, [TINY], kept)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_run_that_is_killed_goes_on_where_it_was(model: str, tmp_path: Path) -> None:
    """Of nine readings two are kept when it is killed: they stay as they are, and the end is the same."""
    args = ["eval", "sparse", model, "--length", "1024", "--no-speeds", "--json"]
    assert run([*args, str(tmp_path / "whole.json")]) == 0
    args += [str(tmp_path / "found.json"), "--keep", str(tmp_path / "kept")]

    def pieces() -> dict[str, int]:
        found = (tmp_path / "kept").glob("*.json")
        return {one.name: one.stat().st_mtime_ns for one in found if one.name != "about.json"}

    with subprocess.Popen([sys.executable, "-m", "minicpm4", *args], stdout=subprocess.DEVNULL) as process:
        until(lambda: len(pieces()) >= 2 or process.poll() is not None)
        process.kill()
    before = pieces()
    assert process.returncode == -signal.SIGKILL and 2 <= len(before) < 9
    assert run(args) == 0
    after = pieces()
    assert len(after) == 9 and before.items() <= after.items()
    whole, found = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "found"))
    assert found["results"] == whole["results"] and found["named"] == whole["named"]


@pytest.fixture
def command(model: str, tmp_path: Path) -> list[str]:
    args = ["eval", "sparse", model, "--length", "640", "--setting", SETTING]
    return [*args, "--keep", str(tmp_path / "kept")]


def test_the_command_keeps_what_auto_uses(
    model: str, command: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, picture = tmp_path / "found.json", tmp_path / "heat.svg"
    more = ["--loss", "90%", "--json", str(found), "--plot", str(picture), "--write"]
    assert run([*command, *more]) == 0
    out = capsys.readouterr().out
    report = json.loads(found.read_text())
    assert report["named"] == SETTING and f"--sparse {SETTING}" in out
    assert [one["name"] for one in report["results"]] == ["dense", SETTING]
    assert len(report["results"][1]["recall"]["by_layer_and_head"]) == 2
    assert picture.read_text().count("%<") == 8
    assert len(list(place.iterdir())) == 1 and "kept for --sparse auto" in out
    with LLM(model, sparse="auto", context=640) as llm:
        assert llm.sparse == TINY and "sparse as measured at 640 tokens" in llm.description


def test_the_command_keeps_nothing_where_no_setting_will_do(
    command: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--loss", "0%", "--write", "--no-speeds"]) == 2
    caught = capsys.readouterr()
    assert "take dense attention" in caught.out and "nothing was kept" in caught.err
    (dense,) = [row for row in caught.out.splitlines() if "dense" in row.split()[:2]]
    assert dense.count("–") == 2 and not place.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--loss", "0.01"], "--loss 0.01 is no share"),
        (["--loss", "0"], "from 0 to below 100, with its sign"),
        (["--setting", "auto"], "--setting auto has no meaning"),
        (["--loss", "120%"], "--loss 120% is no share"),
        (["--length", "100"], "--length 100 is outside 512"),
        (["--length", "2048"], "--length 2,048 is more than the 1,024 tokens of context"),
        (["--sparse", "topk=4"], "--sparse is not for eval sparse"),
        (["--draft", "suffix"], "--draft is not for eval sparse"),
        (["--setting", "topc=4"], "--setting has an unknown key 'topc'"),
        (["--setting", "kernel=8,stride=3"], "is not a multiple of"),
        (["--plot", "heat.png"], "does not end in .svg"),
    ],
)
def test_wrong_options_are_refused(
    model: str, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "sparse", model, *args]) == 2
    assert message in capsys.readouterr().err
