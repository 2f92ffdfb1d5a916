"""A source whose embeddings are quantised: they stay so where the layout can, and growth is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.evals import calibration_texts, conversion, model_writer
from minicpm4.evals.growth import expected, stored_nbytes
from minicpm4.formats import open_checkpoint
from minicpm4.formats.packing import unpack
from minicpm4.model.source import open_model
from minicpm4.quantize.options import QuantizeOptions
from tests.fixtures.random_checkpoint import make_checkpoint

EMBED = "model.embed_tokens.weight"
ROUND = ["--weights", "int4", "--method", "rtn", "--group", "32"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers in Q4_1, embeddings in Q8_0."""
    folder = tmp_path_factory.mktemp("ends")
    model = make_checkpoint(folder / "model", seed=4, tie=True)
    file = folder / "source.gguf"
    types = ["--gguf-type", "q4_1", "--gguf-type", "embed_tokens=q8_0"]
    assert run(["convert", str(model), str(file), "--to", "gguf", *types]) == 0
    return file


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def same_embeddings(source: Path, out: Path) -> bool:
    one, two = (unpack(open_checkpoint(path).load(EMBED)) for path in (source, out))
    return bool(np.array_equal(one, two))


@pytest.mark.parametrize(("layout", "out"), [("gguf", "out.gguf"), ("mlx", "out")])
def test_embeddings_stay_quantised_where_the_layout_can(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, out: str
) -> None:
    assert run(["convert", str(source), str(tmp_path / out), "--to", layout, *ROUND]) == 0
    old, new = (open_checkpoint(path).tensors for path in (source, tmp_path / out))
    assert new[EMBED].spec == old[EMBED].spec and same_embeddings(source, tmp_path / out)
    assert new[EMBED].nbytes < 1.1 * old[EMBED].nbytes
    error = capsys.readouterr().err
    assert "no place" not in error
    assert ("--override 'embed_tokens=int4-g64'" in error) == (layout == "mlx")  # whose scales take more


def test_the_direct_way_to_gguf_gives_what_the_detour_gives(source: Path, tmp_path: Path) -> None:
    folder, detour, direct = tmp_path / "mlx", tmp_path / "detour.gguf", tmp_path / "direct.gguf"
    assert run(["convert", str(source), str(folder), "--to", "mlx", *ROUND]) == 0
    assert run(["convert", str(folder), str(detour), "--to", "gguf"]) == 0
    assert run(["convert", str(source), str(direct), "--to", "gguf", *ROUND]) == 0
    one, two = open_checkpoint(detour), open_checkpoint(direct)
    assert {name: info.dtype for name, info in one.tensors.items()} == {
        name: info.dtype for name, info in two.tensors.items()
    }


@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq", "awq"])
def test_growth_is_told_with_the_option_that_avoids_it(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    layout: str,
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    args = ["convert", str(source), str(out), "--to", layout, *ROUND]
    assert run([*args, "--json", str(report)]) == 0
    said, error = capsys.readouterr()
    assert "before)" in said and "the result is larger than its source" in error
    ahead = caplog.text  # before any work
    assert "the result will be larger" in ahead and "--override 'embed_tokens=bf16'" in ahead
    assert f"{EMBED}: " in error and "(Q8_0)" in error and "(F32)" in error
    assert "--override 'embed_tokens=bf16'" in error and same_embeddings(source, out)
    found = json.loads(report.read_text())
    assert found["nbytes"] > found["source_nbytes"] > 0
    args[2] = str(tmp_path / "small")
    assert run([*args, "--override", "embed_tokens=bf16"]) == 0
    new = open_checkpoint(tmp_path / "small").tensors[EMBED]
    assert new.dtype == "BF16" and new.nbytes * 2 == open_checkpoint(out).tensors[EMBED].nbytes


@pytest.mark.parametrize("kind", ["int8-g64", "int4-g32"])
def test_compressed_tensors_has_quantised_embeddings_where_they_are_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """And the report says that few read them; they go on from there as floats of the same values."""
    out, again = tmp_path / "out", tmp_path / "again"
    assert run(["convert", str(source), str(out), *ROUND, "--override", f"embed_tokens={kind}"]) == 0
    assert "transformers" in capsys.readouterr().err
    assert str(open_checkpoint(out).tensors[EMBED].spec) == kind
    groups = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"].values()
    assert any({"Embedding", "model.embed_tokens"} & set(one["targets"]) for one in groups)
    assert run(["convert", str(out), str(again), "--weights", "auto"]) == 0
    assert not open_checkpoint(again).tensors[EMBED].spec.row.group and same_embeddings(out, again)
    assert "transformers" not in capsys.readouterr().err


@pytest.mark.parametrize("own", ["", "down_proj"])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq", "mlx", "hf", "llama", "gguf"])
def test_what_is_expected_is_near_what_is_written(
    source: Path, tmp_path: Path, layout: str, rotated: bool, own: str
) -> None:
    """Matrices that stay as they are stored counted as their codes, which a layout may have no place for."""
    if own and layout == "gptq":
        pytest.skip("all its matrices are in one format")
    out = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    words = [*(["--rotate"] if rotated else []), *(["--override", f"{own}=float"] if own else [])]
    assert run(["convert", str(source), str(out), "--to", layout, *ROUND, *words]) == 0
    opened, made = open_model(source), open_model(out)
    options = QuantizeOptions(method="rtn", group=32, rotate=rotated, overrides={own: "float"} if own else {})
    specs = options.specs(opened.config)
    found = expected(opened.checkpoint, made.config, specs, layout, rotated=rotated)
    size = stored_nbytes(made.checkpoint.tensors)
    assert abs(stored_nbytes(found) - size) < 0.1 * size


def test_as_they_are_stored_layers_keep_codes_and_embeddings_become_floats(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A layout without quantised embeddings refused such a model, and named no way out."""
    types = ["--to", "gguf", "--gguf-type", "q4_0", "--gguf-type", "embed_tokens=q8_0"]
    assert run(["convert", str(source), str(tmp_path / "plain.gguf"), *ROUND, *types]) == 0
    out = tmp_path / "out"
    assert run(["convert", str(tmp_path / "plain.gguf"), str(out), "--weights", "auto"]) == 0
    new = open_checkpoint(out)
    assert new.tensors[EMBED].dtype == "F32" and same_embeddings(source, out)
    assert new.tensors["model.layers.0.mlp.up_proj.weight"].spec.kind == "int4"


def test_a_folder_of_floats_names_the_way_to_a_small_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), str(tmp_path / "out"), "--to", "llama"]) == 0
    error = capsys.readouterr().err
    assert "matrices of layers: " in error and "(Q4_1)" in error and "--to gguf leaves them" in error


DOWN = [f"model.layers.{index}.mlp.down_proj.weight" for index in range(2)]


@pytest.mark.parametrize(
    ("layout", "kept"), [("gguf", "Q4_1"), ("mlx", "int4"), ("compressed-tensors", ""), ("awq", "")]
)
def test_matrices_left_as_they_are_stay_as_they_are_stored(
    source: Path, tmp_path: Path, layout: str, kept: str
) -> None:
    """They became float32, in GGUF files too; where a layout has no place for them they still are floats."""
    out, report = tmp_path / ("out.gguf" if layout == "gguf" else "out"), tmp_path / "report.json"
    words = [*ROUND, "--override", "down_proj=float", "--json", str(report)]
    assert run(["convert", str(source), str(out), "--to", layout, *words]) == 0
    old, new = open_checkpoint(source), open_checkpoint(out)
    for name in DOWN:
        np.testing.assert_array_equal(unpack(new.load(name)), unpack(old.load(name)))
        info = new.tensors[name]
        assert kept in (info.dtype, info.spec.kind) if kept else not info.spec.row.group
    assert len(json.loads(report.read_text())["matrices"]) == 12


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_floats_left_as_they_are_stay_in_the_folder_s_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """They became F32 under a config.json that says bfloat16; an interrupted run keeps them so, too."""
    model, out = make_checkpoint(tmp_path / "model", seed=4, dtype="bfloat16"), tmp_path / "out"
    words = ["--group", "32", "--method", method, "--override", "q_proj=float"]
    words += [] if method == "rtn" else ["--calibration", "README.md", "--samples", "4", "--length", "128"]
    write = model_writer.write_model

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(model_writer, "write_model", killed)
        assert run(["convert", str(model), str(out), *words]) == 130
    assert model_writer.write_model is write and run(["convert", str(model), str(out), *words]) == 0
    old, new = open_checkpoint(model), open_checkpoint(out)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for index in range(2):
        name = f"model.layers.{index}.self_attn.q_proj.weight"
        assert new.tensors[name].dtype == "BF16"
        np.testing.assert_array_equal(new.load(name).codes, old.load(name).codes)


def test_growth_of_a_gguf_file_names_the_way_round_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that leaving --gguf-type out, which was not given, would do."""
    words = ["--weights", "int8", "--method", "rtn"]
    assert run(["convert", str(source), str(tmp_path / "out.gguf"), *words]) == 0
    assert "--weights auto without --gguf-type leaves them as they are stored" in capsys.readouterr().err


def test_turned_ends_that_are_rounded_name_no_layout_that_keeps_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--to gguf keeps them as they are`` was told: there they are floats four times the size."""
    words = ["--rotate", "--override", "embed_tokens=int8-g32", "--override", "lm_head=int8-g32"]
    assert run(["convert", str(source), str(tmp_path / "out"), *ROUND, *words]) == 0
    told = capsys.readouterr().err
    assert "--override 'lm_head=int4-g64' takes fewer bits\n" in told and "keeps them" not in told


def test_what_a_budget_may_take_is_told_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A larger result was told afterwards alone."""
    monkeypatch.setattr(calibration_texts, "_own", interrupted)
    args = ["convert", str(source), str(tmp_path / "out.gguf"), "--weights", "int4", "--bits"]
    for bits, told in ((12, True), (4.6, False)):
        caplog.clear()
        assert run([*args, str(bits)]) == 130
        assert (f"since --bits {bits} are more than the " in caplog.text) == told


def test_little_text_is_told_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both were told, if at all, after a conversion that takes hours."""
    monkeypatch.setattr(conversion, "quantize", interrupted)
    text = tmp_path / "text.txt"
    text.write_text("some words, and then a few more " * 60)
    args = ["convert", str(source), str(tmp_path / "out"), "--calibration", str(text), "--group", "32"]
    assert run([*args, "--samples", "900", "--length", "64"]) == 130
    assert "900 texts of 64 tokens were asked for, the files have " in caplog.text
    assert "are too few" not in caplog.text
    caplog.clear()
    assert run([*args, "--samples", "2", "--length", "64"]) == 130
    assert "were asked for" not in caplog.text
    assert "128 tokens to calibrate on are too few: all matrices will be rounded to nearest" in caplog.text


@pytest.mark.parametrize("weights", ["int4", "auto"])
def test_embeddings_that_transformers_refuses_are_told_before_the_work(
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
) -> None:
    """Once alone in the report, after minutes of work."""
    monkeypatch.setattr(conversion, "work_folder", interrupted)
    words = ["--to", "compressed-tensors", "--override", "embed_tokens=int8-g32", "--weights", weights]
    words += ROUND[2:] if weights == "int4" else []
    assert run(["convert", str(source), str(tmp_path / "out"), *words]) == 130
    assert "transformers (5.23 with compressed-tensors 0.20) does not" in caplog.text


def test_a_source_that_rounding_spoils_is_told_of_before_the_work(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is rounded already, and one that becomes ternary untrained; not one that was trained so."""
    floats, trained = make_checkpoint(tmp_path / "floats", seed=4), tmp_path / "trained"
    again, ternary = "rounded already (Q4_1), will be rounded once more", "not trained for ternary"
    words = ["--weights", "ternary", "--method", "rtn"]
    assert run(["convert", str(floats), str(trained), "--to", "hf", *words]) == 0
    monkeypatch.setattr(conversion, "work_folder", interrupted)
    for model, weights, told in (
        (source, "int4", []),  # in its own groups
        (source, "int8", [again]),
        (floats, "ternary", [ternary]),
        (floats, "int8", []),
        (trained, "ternary", []),
    ):
        caplog.clear()
        out = [str(tmp_path / "out"), "--to", "hf"]
        assert run(["convert", str(model), *out, "--weights", weights, "--method", "rtn"]) == 130
        assert [one for one in (again, ternary) if one in caplog.text] == told
