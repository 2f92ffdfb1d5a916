"""`minicpm4 convert`: refusals that name the way out, defaults by layout, and what a report states."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from minicpm4.cli import run, terminal
from minicpm4.evals import model_writer
from minicpm4.formats import open_checkpoint
from minicpm4.formats.gguf_parse import parse_gguf
from minicpm4.formats.packing import unpack
from tests.fixtures.random_checkpoint import make_checkpoint

RTN = ["--method", "rtn"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("choices") / "model", seed=9)


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("out", ["--weights", "ternary", "--group", "32"], "ternary goes into mlx, gguf and hf"),
        ("out", ["--weights", "int3"], "choose auto, f32, bf16, int8, int4 or ternary"),
        ("out", ["--weights", "int4-g64"], "int4 or ternary and say --group"),
        ("out", ["--to", "marlin"], "marlin has no form of this model"),
        ("out.gguf", ["--to", "mlx"], "out.gguf is the name of a GGUF file, --to mlx writes a folder"),
        ("out.gguf", ["--gguf-type", "q4_k"], "Q4_K takes multiples of 256: choose another type for all"),
    ],
)
def test_a_refusal_names_the_way_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, more: list[str], said: str
) -> None:
    more = more if "--gguf-type" in more else [*RTN, *more]
    assert run(["convert", str(model), str(tmp_path / out), *more]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_groups_of_16_have_a_way_into_mlx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    file, out = tmp_path / "six.gguf", str(tmp_path / "out")
    assert run(["convert", str(model), str(file), "--gguf-type", "q6_k", "--gguf-type", "embed=q6_k"]) == 0
    assert run(["convert", str(file), out, "--to", "mlx", "--weights", "auto"]) == 2
    error = capsys.readouterr().err
    assert "int8-g16" in error and "--weights int4 --group 128" in error
    assert run(["convert", str(file), out, "--to", "mlx", "--weights", "int4", "--group", "128", *RTN]) == 0


def test_a_name_that_ends_in_gguf_is_a_file(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.gguf"
    assert run(["convert", str(model), str(file)]) == 0 and file.is_file()


def test_marlin_has_groups_of_128_unless_said(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    assert run(["convert", str(model), str(tmp_path / "out"), "--to", "marlin", *RTN]) == 0
    spec = open_checkpoint(tmp_path / "out").tensors["model.layers.0.mlp.down_proj.weight"].spec
    assert spec.group_size == 128


def test_offsets_are_rounded_away_for_a_type_without(model: Path, tmp_path: Path) -> None:
    first, second, report = tmp_path / "one.gguf", tmp_path / "two.gguf", tmp_path / "report.json"
    assert run(["convert", str(model), str(first), "--gguf-type", "q4_1"]) == 0
    assert run(["convert", str(first), str(second), "--gguf-type", "q4_0", "--json", str(report)]) == 0
    rows = {row["name"]: row for row in json.loads(report.read_text())["types"]}
    name = "model.layers.0.mlp.up_proj.weight"
    was, now = (unpack(open_checkpoint(file).load(name)) for file in (first, second))
    assert rows[name]["type"] == "Q4_0" and 0.01 < rows[name]["error"] < 0.2
    assert rows[name]["error"] == pytest.approx(float(np.linalg.norm(now - was) / np.linalg.norm(was)), 1e-4)


def test_a_comparison_states_its_windows(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = ["--test", "examples/how_sqlite_is_tested.txt", "--length", "64", "--samples"]
    for count, said in (("2", "2 windows of 64 tokens"), ("1", "1 window of 64 tokens")):
        out = str(tmp_path / count)
        assert run(["convert", str(model), out, "--group", "32", *RTN, *test, count]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_how_far_logits_are_apart_is_always_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    """It was told of what was refused alone."""
    monkeypatch.setattr(model_writer, "prove", lambda *_: 3.25e-6)
    report = tmp_path / "report.json"
    given = ["convert", str(model), str(tmp_path / out), "--weights", "int4", *RTN, "--json", str(report)]
    assert run(given) == 0
    assert "64 tokens, logits 3e-06 of the largest apart (0.0001 at most)" in capsys.readouterr().out
    assert json.loads(report.read_text())["logits_apart"] == 3.25e-6


def test_where_no_terminal_is_a_line_tells_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress_or_lines("rounding", "layers") as progress:
        assert progress is not None
        for done in range(1, 7):
            now[0] += 6
            progress(done, 6)
    assert capsys.readouterr().err.splitlines() == [
        "rounding: 2 of 6 layers, 6 s each, 24 s left",
        "rounding: 4 of 6 layers, 6 s each, 12 s left",
        "rounding: 6 of 6 layers, 6 s each",
    ]


def test_what_was_done_before_has_no_part_in_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """900 of 1,000 layers that were there already made 902 in 40 seconds."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress_or_lines("rounding", "layers", before=900) as progress:
        assert progress is not None
        for done in (901, 902):
            now[0] += 20
            progress(done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "rounding: 901 of 1000 layers, 20 s each, 33 minutes left",
        "rounding: 902 of 1000 layers, 20 s each, 32.7 minutes left",
    ]


@pytest.mark.parametrize(
    ("more", "group"),
    [([], 32), (["--to", "mlx"], 64), (["--to", "mlx", "--weights", "ternary"], 64), (["--group", "64"], 64)],
)
def test_groups_of_32_unless_a_layout_pays_twice(
    model: Path, tmp_path: Path, more: list[str], group: int
) -> None:
    assert run(["convert", str(model), str(tmp_path / "out"), *RTN, *more]) == 0
    spec = open_checkpoint(tmp_path / "out").tensors["model.layers.0.mlp.down_proj.weight"].spec
    assert spec.group_size == group


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("out.gguf", ["--calibration", "README.md"], "--calibration is for those that are rounded"),
        ("out.gguf", ["--head", "int8-g32"], "--override lm_head=int8-g32 rounds it alone"),
        ("out", [*RTN, "--act-order"], "--act-order is GPTQ's, not --method rtn's"),
        ("out", ["--method", "awq", "--act-order"], "--act-order is GPTQ's"),
        ("out", ["--weights", "bf16", "--skip-first", "4"], "leave --skip-first out"),
        ("out.gguf", ["--seed", "4"], "--seed"),
        ("out", ["--bits", "3"], "--bits 3.0 is outside 4 to 16"),
        ("out", ["--bits", "nan"], "--bits nan is outside 4 to 16"),
        ("out", ["--method", "p-gptq", "--skip-first", "65"], "--skip-first 65 is outside 0 to 64"),
        ("out", [*RTN, "--rotate", "--seed", "-1"], "--seed -1 is outside 0 to"),
        ("out", ["--method", "gtpq"], "--method = 'gtpq' is not a choice"),
        ("out", [*RTN, "--stored-prefix", "auto", "--length", "64"], "--length"),
        ("out", ["--to", "marlin", "--stored-prefix", "auto"], "marlin has no"),
        ("out.gguf", ["--stored-prefix", "auto"], "leave --stored-prefix out"),
    ],
)
def test_what_is_not_used_is_refused_by_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, more: list[str], said: str
) -> None:
    assert run(["convert", str(model), str(tmp_path / out), *more]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_info_tells_what_floats_on_a_grid_become(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said f32, and loading packed them."""
    out = str(tmp_path / "out")
    assert run(["convert", str(model), out, "--weights", "int4", "--to", "hf", *RTN]) == 0
    capsys.readouterr()
    for more, said in (([], "int4-g32, on whose grid its values lie"), (["--weights", "bf16"], "bf16")):
        assert run(["info", out, *more]) == 0
        rows = [one for one in capsys.readouterr().out.splitlines() if one.startswith("F32 ")]
        assert [row for row in rows if said in row and " 14 " in row] or (more and said in rows[0])
    assert run(["info", str(model)]) == 0 and "on whose grid" not in capsys.readouterr().out


def held(model: Path, stored: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The row of `minicpm4 info` on matrices that are stored so."""
    assert run(["info", str(model)]) == 0
    rows = [one for one in capsys.readouterr().out.splitlines() if one.startswith(f"{stored} ")]
    return "\n".join(rows)


def test_info_is_not_misled_by_rows_of_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first rows of an embedding, of tokens that nobody trained, are on any grid."""
    model = make_checkpoint(tmp_path / "model", seed=9, vocab_size=640, dtype="bfloat16")
    file = model / "model.safetensors"
    with file.open("r+b") as data:
        (length,) = struct.unpack("<Q", data.read(8))
        place = json.loads(data.read(length))["model.embed_tokens.weight"]["data_offsets"]
        data.seek(8 + length + place[0])
        data.write(bytes((place[1] - place[0]) * 3 // 4))
    assert "on whose grid" not in held(model, "BF16", capsys)


@pytest.mark.parametrize("fourth", [False, True])
def test_info_tells_codes_that_narrow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fourth: bool
) -> None:
    """Q2_0 is read as int4, and held as ternary weights unless its fourth number occurs."""
    model = make_checkpoint(tmp_path / "model", seed=9, hidden_size=64, intermediate_size=128, head_dim=16)
    out = tmp_path / "out.gguf"
    assert run(["convert", str(model), str(out), "--gguf-type", "q2_0"]) == 0
    if fourth:
        raw = bytearray(out.read_bytes())
        for tensor in parse_gguf(memoryview(bytes(raw)), out).tensors:
            if tensor.type.name == "Q2_0":
                for block in range(tensor.offset, tensor.offset + tensor.nbytes, tensor.type.nbytes):
                    raw[block + 2] |= 3
        out.write_bytes(raw)
    capsys.readouterr()
    told = held(out, "Q2_0", capsys)
    assert ("ternary-g64" in told) != fourth and (not fourth or "int4-g64" in told)


@pytest.mark.parametrize(
    ("more", "head"),
    [
        (["--weights", "bf16"], "bf16"),
        (["--weights", "bf16", "--head", "float"], "f32"),
        (["--weights", "bf16", "--head", "float", "--override", "lm_head=bf16"], "bf16"),
        (["--weights", "auto", "--to", "hf", "--head", "float"], "f32"),
        ([*RTN, "--head", "float"], "f32"),
        ([*RTN, "--head", "int8-g32"], "int8-g32"),
    ],
)
def test_a_head_is_what_it_is_said_to_be(model: Path, tmp_path: Path, more: list[str], head: str) -> None:
    """`--head float` with `--weights bf16` was as if nothing was said."""
    assert run(["convert", str(model), str(tmp_path / "out"), *more]) == 0
    assert str(open_checkpoint(tmp_path / "out").tensors["lm_head.weight"].spec) == head


def test_a_budget_leaves_a_head_that_is_to_stay(model: Path, tmp_path: Path) -> None:
    given = ["convert", str(model), "--weights", "int4", "--samples", "2", "--length", "64", "--bits", "13"]
    for name, more in (("one.gguf", []), ("two.gguf", ["--head", "float"])):
        assert run([*given[:2], str(tmp_path / name), *given[2:], *more]) == 0
        spec = open_checkpoint(tmp_path / name).tensors["lm_head.weight"].spec
        assert (str(spec) == "f32") == bool(more)
