"""Weights that were converted once are read back the same, and the folder of them stays within its bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.errors import ConfigError
from minicpm4.files import writing
from minicpm4.formats.packing import pack_from_float
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.model import loader, packed_cache, packed_file
from minicpm4.model.packed_cache import LIMIT_VARIABLE, VARIABLE, clear, kept_files
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.kept import assert_same, load, only


@pytest.mark.parametrize("weights", ["int4", "int8", "ternary", "auto"])
def test_the_second_load_is_like_the_first(folder: Path, place: Path, weights: str) -> None:
    first = load(folder, weights)
    if weights == "auto":  # nothing is converted, so nothing is kept
        assert not place.exists()
        return
    assert "kept for the next start" in first.notes
    assert only(place).stat().st_mode & 0o077 == 0
    second = load(folder, weights)
    assert "kept ones, " in second.notes and "MB read in" in second.notes
    assert_same(first, second)
    codes = second.weights.embed.codes
    assert codes.ctypes.data % 64 == 0 and codes.flags.writeable  # not mapped


def test_what_is_quick_to_convert_is_not_kept(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "WORTH_KEEPING", 60.0)
    assert "kept" not in load(folder).notes
    assert not place.exists()


def test_each_choice_and_layout_has_its_own(folder: Path, place: Path) -> None:
    for weights, layout in (("int4", "rows"), ("int8", "rows"), ("int4", "panels-1")):
        assert "converted" in load(folder, weights, layout).notes
    assert len(list(place.iterdir())) == len(kept_files()) == 3
    assert {(one.weights, one.layout) for one in kept_files()} >= {("int4", "panels-1"), ("int8", "rows")}


@pytest.mark.parametrize("weights", ["int4", "int8", "ternary"])
def test_an_op_tables_own_layout_is_kept(ops: OpTable, folder: Path, weights: str) -> None:
    options: dict[str, Any] = {"layout": ops.layout, "ops": ops}
    first, second = (load(folder, weights, **options) for _ in range(2))
    assert "kept for the next start" in first.notes and "kept ones" in second.notes
    assert_same(first, second)
    gate = second.weights.layers[0].feed_forward.gate.weight
    assert gate.layout == ("panels" if gate.spec.kind in ops.layout.split("-") else "rows")


def test_a_changed_checkpoint_replaces_its_file(folder: Path, place: Path) -> None:
    load(folder)
    make_checkpoint(folder, dtype="bfloat16", seed=1)
    fresh = load(folder)
    assert "kept weights ignored: they are of other files" in fresh.notes
    assert "kept for the next start" in fresh.notes
    assert_same(fresh, load(folder))
    only(place)


def test_what_config_json_says_of_quantised_weights_is_part_of_them(place: Path, tmp_path: Path) -> None:
    """The same tensors are other weights in another version of GPTQ's layout."""
    source = make_checkpoint(tmp_path / "source", hidden_size=64, intermediate_size=128)
    assert run(["convert", str(source), str(tmp_path / "small"), "--method", "rtn", "--to", "gptq"]) == 0
    file = tmp_path / "small" / "config.json"
    said = json.loads(file.read_text())
    said["quantization_config"]["sym"] = False
    file.write_text(json.dumps(said))
    load(tmp_path / "small", "int8")
    assert "kept ones" in load(tmp_path / "small", "int8").notes
    said["quantization_config"]["checkpoint_format"] = "gptq_v2"
    file.write_text(json.dumps(said))
    assert "kept weights ignored" in load(tmp_path / "small", "int8").notes


def test_a_file_touched_alone_is_another(folder: Path) -> None:
    load(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert "ignored" in load(folder).notes


@pytest.mark.parametrize("blocked", ["a file", "off"])
def test_where_nothing_can_be_written_nothing_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, "off" if blocked == "off" else str(tmp_path / "file"))
    notes = load(folder).notes
    assert ("not kept: cannot write" in notes) == (blocked != "off")
    assert kept_files() == []


def test_an_interrupt_leaves_no_part(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packed_file, "hashlib", SimpleNamespace(sha256=interrupted))
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    assert list(place.iterdir()) == []


def test_the_disk_is_not_filled(folder: Path, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(packed_cache, "SPARE", (1 << 62, 0.05))
    assert "not kept: the disk has" in load(folder).notes
    assert list(place.iterdir()) == []


def test_what_was_used_longest_ago_goes_first(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, layout="a")
    each = only(place).stat().st_size
    load(folder, layout="b")
    for age, one in enumerate(kept_files()):
        os.utime(one.file, (1000 - age, 1000 - age))
    load(folder, layout="a")  # used just now
    stranger = place / "model.safetensors"
    stranger.write_bytes(b"mine")
    monkeypatch.setenv(LIMIT_VARIABLE, str(2.5 * each / 1e9))
    load(folder, layout="c")
    assert {one.layout for one in kept_files()} == {"a", "c"}
    monkeypatch.setenv(LIMIT_VARIABLE, str(0.5 * each / 1e9))
    assert "are more than MINICPM4_KEPT_WEIGHTS_LIMIT" in load(folder, layout="d").notes
    assert clear()[0] == 2
    assert [*place.iterdir()] == [stranger]


def test_what_dead_processes_left_is_removed(folder: Path, place: Path) -> None:
    dead = place / ".minicpm4-a.safetensors.0a1b2c3d.part"
    dead.mkdir(parents=True)
    for name in ("lock", "new"):
        (dead / name).touch()
    (place / "theirs.part").touch()
    with writing(place / "minicpm4-b.safetensors") as out:
        out.write(b"of a process that lives")
        load(folder)
        assert not dead.exists() and len(list(place.glob(".minicpm4-b.*.part"))) == 1
    assert (place / "theirs.part").exists()


def test_a_limit_must_be_a_number(folder: Path, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    for bad in ("many", "-1", "nan"):
        monkeypatch.setenv(LIMIT_VARIABLE, bad)
        with pytest.raises(ConfigError, match="is not a number of GB"):
            load(folder)
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert "kept" not in load(folder).notes
    assert not place.exists()


LOADER = """
import sys
from minicpm4.model import loader, packed_cache, source
from minicpm4.model.packed_cache import weight_cache
from minicpm4.model.weight_plan import plan_weights
loader.WORTH_KEEPING, packed_cache.SPARE = 0.0, (0, 0.0)
found = source.open_model(sys.argv[1])
checkpoint = found.checkpoint
cache = weight_cache(checkpoint, "int4", "rows")
print("ready", flush=True)
input()
plan = plan_weights(checkpoint, found.config, "int4")
model = loader.load_weights(checkpoint, found.config, plan, cache=cache)
print(model.notes)
"""


def test_two_processes_at_once(folder: Path, place: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOADER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    notes = [process.communicate(timeout=60)[0] for process in started]
    assert all("kept for" in said or "kept ones" in said for said in notes), notes
    third = load(folder)
    assert "kept ones" in third.notes
    only(place)
    clear()
    assert_same(third, load(folder))


def test_conversion_gives_the_numbers_of_this_version() -> None:
    """If this fails on purpose, raise packed_cache.VERSION with it: kept weights hold the old numbers."""
    values = np.arange(-2048, 2048, dtype=np.float32).reshape(32, 128) % 97 - 48
    digest = sha256()
    for kind in ("int8", "int4", "ternary"):
        tensor = pack_from_float(values, QuantSpec(kind=kind, group_size=64))
        assert tensor.scales is not None
        digest.update(tensor.codes.tobytes() + tensor.scales.tobytes())
    assert (packed_cache.VERSION, digest.hexdigest()[:16]) == (3, "fa1be577836139f7")
