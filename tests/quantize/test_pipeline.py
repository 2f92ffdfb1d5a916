"""Whole models: what is folded in changes nothing, rounding is as its report says, a killed run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.names import EMBED
from minicpm4.formats.packing import unpack
from minicpm4.formats.quantised_write import QUANTISED
from minicpm4.kernels.registry import host_table
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize.export import check_again, write_model
from minicpm4.quantize.options import METHODS, QuantizeOptions, parse_format
from minicpm4.quantize.parts import ENDS, head_of
from minicpm4.quantize.pipeline import quantize
from minicpm4.quantize.rotate import orthogonal
from minicpm4.quantize.rounded import Rounded
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.quantize.conftest import logits

IDS = [5, 9, 40, 41, 200, 7, 7, 90]


def texts(count: int = 6, length: int = 60) -> list[list[int]]:
    return np.random.default_rng(3).integers(3, 320, (count, length)).tolist()


def rounded(found: OpenModel, folder: Path, **options: Any) -> Rounded:
    settings = QuantizeOptions(**{"group": 32, **options})
    return quantize(
        found.checkpoint, found.config, settings, texts(), host_table(), folder, {"for": "a test"}
    )


@pytest.mark.usefixtures("nothing_rounded")
def test_what_is_folded_in_changes_nothing(model: OpenModel, tmp_path: Path) -> None:
    """Rotation and smoothing, with every matrix left a float."""
    made = rounded(model, tmp_path / "work", method="awq", rotate=True)
    written = write_model(made, tmp_path / "out", "hf", None)
    assert written.bits > 16
    wanted = logits(model.path, IDS)
    np.testing.assert_allclose(logits(tmp_path / "out", IDS), wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq", "p-gptq", "s-gptq", "s-p-gptq"])
def test_every_method_gives_a_model_near_the_first(model: OpenModel, tmp_path: Path, method: str) -> None:
    made = rounded(model, tmp_path / "work", method=method, weights="int8")
    write_model(made, tmp_path / "out", "compressed-tensors", None)
    check_again(made, tmp_path / "out")
    wanted = logits(model.path, IDS)
    assert np.abs(logits(tmp_path / "out", IDS) - wanted).max() < 0.1 * np.abs(wanted).max()
    assert len(made.rows) == 14 and {row.format for row in made.rows} == {"int8-g32"}
    assert {row.how for row in made.rows} <= {method, method.removeprefix("s-")}
    if method != "rtn":
        assert all(0 < row.error < 1e-3 for row in made.rows)


def test_gptq_is_nearer_than_rounding_to_nearest(model: OpenModel, tmp_path: Path) -> None:
    wanted, errors = logits(model.path, IDS), {}
    for method in ("rtn", "gptq"):
        made = rounded(model, tmp_path / method, method=method)
        write_model(made, tmp_path / f"{method}-out", "gptq", None)
        # On the calibration texts, whose statistics it knows.
        ids = texts()[0]
        with (
            LLM(str(tmp_path / f"{method}-out"), kv="float32") as llm,
            LLM(str(model.path), kv="float32") as old,
        ):
            errors[method] = float(((llm.logits(ids) - old.logits(ids)) ** 2).mean())
    assert errors["gptq"] < errors["rtn"], errors
    assert wanted.size


@pytest.mark.parametrize("layout", [*QUANTISED, "hf"])
def test_layouts_hold_the_same_model(tmp_path: Path, layout: str) -> None:
    # Marlin's blocks take heads and widths of so many, and groups of 128.
    wide = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32} if layout == "marlin" else {}
    model = open_model(make_checkpoint(tmp_path / "model", seed=2, **wide))
    made = rounded(model, tmp_path / "work", group=128 if layout == "marlin" else 32)
    write_model(made, tmp_path / "out", layout, None)
    check_again(made, tmp_path / "out")
    own = {name: unpack(t) for index in range(2) for name, t in made.layer(index).items()}
    found = open_model(tmp_path / "out").checkpoint
    for name, values in own.items():
        if len(found.tensors[name].shape) == 2:
            np.testing.assert_array_equal(unpack(found.load(name)), values, err_msg=name)


@pytest.mark.parametrize("tie", [False, True])
def test_weights_become_bf16(tmp_path: Path, tie: bool) -> None:
    """All matrices, embeddings and head too, and config.json says so; norms stay float32."""
    model = open_model(make_checkpoint(tmp_path / "model", seed=2, tie=tie))
    made = rounded(model, tmp_path / "work", weights="bf16", method="rtn")
    assert len(made.rows) == 16 - tie and {row.format for row in made.rows} == {"bf16"}
    written = write_model(made, tmp_path / "out", "hf", None)
    check_again(made, tmp_path / "out")
    assert written.bits == 16
    found = open_model(tmp_path / "out").checkpoint
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name, info in found.tensors.items():
        if len(info.shape) == 1:
            np.testing.assert_array_equal(found.load_vector(name), model.checkpoint.load_vector(name))
            continue
        wanted = bf16_to_f32(f32_to_bf16(unpack(model.checkpoint.load(name))))
        assert info.dtype == "BF16"
        np.testing.assert_array_equal(unpack(found.load(name)), wanted, err_msg=name)


@pytest.mark.parametrize(
    ("options", "down", "up"),
    [
        ({"weights": "bf16", "method": "rtn", "overrides": {"down_proj": "int4-g32"}}, "int4-g32", "bf16"),
        ({"method": "awq", "overrides": {"down_proj": "bf16"}}, "bf16", "int4-g32"),
        ({"method": "gptq", "overrides": {"down_proj": "bf16"}}, "bf16", "int4-g32"),
        ({"method": "rtn", "overrides": {"down_proj": "f32"}}, "f32", "int4-g32"),
    ],
)
def test_floats_and_codes_stand_side_by_side(
    tmp_path: Path, options: dict[str, Any], down: str, up: str
) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=2))
    made = rounded(model, tmp_path / "work", **options)
    assert {row.format for row in made.rows if "down_proj" in row.name} == {down}
    assert {row.format for row in made.rows if "up_proj" in row.name} == {up}
    write_model(made, tmp_path / "out", "compressed-tensors", None)
    check_again(made, tmp_path / "out")
    found = open_model(tmp_path / "out").checkpoint
    assert str(found.tensors["model.layers.1.mlp.down_proj.weight"].spec) == down
    again = rounded(model, tmp_path / "work", **options)  # of what is kept
    assert sorted(again.rows, key=str) == sorted(made.rows, key=str)


@pytest.mark.parametrize("more", [{}, {"rotate": True}, {"tie": True}])
def test_embeddings_and_head_are_in_the_report(tmp_path: Path, more: dict[str, bool]) -> None:
    """Rounded ones were left out."""
    tie, rotate = more.get("tie", False), more.get("rotate", False)
    model = open_model(make_checkpoint(tmp_path / "model", seed=2, tie=tie))
    overrides = {"embed_tokens": "int8-g32"} | ({} if tie else {"lm_head": "int4-g64"})
    made = rounded(model, tmp_path / "work", rotate=rotate, overrides=overrides)
    found = {row.name: row for row in made.rows}
    assert list(found)[: 1 + (not tie)] == ["model.embed_tokens", "lm_head"][: 1 + (not tie)]
    assert len(found) == len(made.rows) == 15 + (not tie)
    for name, bits in {"model.embed_tokens": ("int8-g32", 8.5), "lm_head": ("int4-g64", 4.25)}.items():
        if name == "lm_head" and tie:
            continue
        row = found[name]
        assert (row.format, row.bits, row.how) == (bits[0], bits[1], "rtn") and row.error is not None
        wanted = unpack(model.checkpoint.load(f"{name}.weight"))
        if not rotate:  # which turns them before
            one = head_of(made) if name == "lm_head" else made.part(ENDS)[EMBED]
            missed = unpack(one) - wanted
            assert row.error == pytest.approx(float((missed**2).sum() / (wanted**2).sum()), rel=1e-4)
        assert 0 < row.error < 0.02
    assert rounded(model, tmp_path / "work", rotate=rotate, overrides=overrides).rows == made.rows


@pytest.mark.parametrize("method", [name for name in METHODS if name != "rtn"])
def test_too_few_rows_are_rounded_to_nearest_and_named(tmp_path: Path, method: str) -> None:
    """To the bit as by rtn, norms too: AWQ's factors were folded in all the same."""
    model = open_model(make_checkpoint(tmp_path / "model", seed=5))
    few = [text[:20] for text in texts(2)]
    made, plain = (
        quantize(
            model.checkpoint,
            model.config,
            QuantizeOptions(group=32, method=one),
            few,
            host_table(),
            tmp_path / one,
            {},
        )
        for one in (method, "rtn")
    )
    assert {row.how for row in made.rows} == {"too few rows: rtn"}
    for index in range(2):
        found, wanted = made.layer(index), plain.layer(index)
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(unpack(found[name]), unpack(wanted[name]), err_msg=name)


@pytest.mark.parametrize("size", [16, 48, 96, 576])
def test_rotations_are_orthogonal(size: int) -> None:
    turned = orthogonal(size, 7)
    np.testing.assert_allclose(turned @ turned.T, np.eye(size), atol=1e-12)
    np.testing.assert_array_equal(turned, orthogonal(size, 7))
    assert np.abs(turned).max() < 0.9  # spreads, and does not only exchange


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": "int5"}, "int5"),
        ({"weights": "bf16"}, "gptq chooses codes, bf16 has none"),
        ({"weights": "f64", "method": "rtn"}, "f64"),
        ({"method": "gptqq"}, "gptq"),
        ({"group": 48}, "a group of 48 is not a positive multiple of 32"),
        ({"overrides": {"(": "float"}}, "regular expression"),
        ({"overrides": {"x": "int4"}}, "int4"),
        ({"skip_first": -1}, "skip_first"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 32}, "seed"),
        ({"damping": 0.0}, "damping"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QuantizeOptions(**settings)


def test_formats_by_pattern(tmp_path: Path) -> None:
    config = open_model(make_checkpoint(tmp_path / "model")).config
    options = QuantizeOptions(group=32, overrides={"down_proj": "int8-g64", r"layers\.1\..*_proj": "float"})
    specs = options.specs(config)
    assert str(specs["model.layers.0.mlp.down_proj.weight"]) == "int8-g64"
    assert specs["model.layers.1.mlp.down_proj.weight"] is None and specs["lm_head.weight"] is None
    with pytest.raises(ConfigError, match="no matrix"):
        replace(options, overrides={"nothing": "float"}).specs(config)
    with pytest.raises(ConfigError, match="do not fit"):
        replace(options, group=128, overrides={}).specs(config)
    assert parse_format("float") is None


def test_a_quantised_head_that_stays_loses_nothing(tmp_path: Path) -> None:
    """It was rounded to bf16 once more."""
    model = open_model(make_checkpoint(tmp_path / "model", seed=6))
    made = rounded(model, tmp_path / "work", method="rtn", head="int8-g32")
    write_model(made, tmp_path / "small", "compressed-tensors", None)
    small = open_model(tmp_path / "small")
    again = rounded(small, tmp_path / "again", method="rtn")
    write_model(again, tmp_path / "out", "compressed-tensors", None)
    name = "lm_head.weight"
    found = open_model(tmp_path / "out").checkpoint.load(name)
    np.testing.assert_array_equal(unpack(found), unpack(small.checkpoint.load(name)))


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=6)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])["model.layers.1.mlp.up_proj.weight"]
    at = start + entry["data_offsets"][0]
    data[at : at + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds a value"):
        rounded(open_model(folder), tmp_path / "work")


@pytest.mark.parametrize("pattern", ["x{99999999999999}", "(" * 6000 + ")" * 6000])
def test_patterns_that_python_gives_up_on_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="regular expression"):
        QuantizeOptions(overrides={pattern: "float"})


def test_a_head_that_is_the_embeddings_has_no_format(tmp_path: Path) -> None:
    """It was passed over."""
    config = open_model(make_checkpoint(tmp_path / "model", tie=True)).config
    with pytest.raises(ConfigError, match="tied"):
        QuantizeOptions(group=32, head="int8-g32").specs(config)
    with pytest.raises(ConfigError, match="no matrix"):
        QuantizeOptions(group=32, overrides={"lm_head": "int8-g32"}).specs(config)
    specs = QuantizeOptions(group=32, head="int8-g32", rotate=True).specs(config)
    assert str(specs["lm_head.weight"]) == "int8-g32"


def test_act_order_is_of_gptq_alone() -> None:
    with pytest.raises(ConfigError, match="act_order"):
        QuantizeOptions(method="awq", act_order=True)
