"""Logits of what was written, against those of what it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.cli import run
from minicpm4.errors import CheckpointError, TextError
from minicpm4.kernels.registry import exact_isa, exact_table
from minicpm4.model.source import open_model
from minicpm4.quantize.parts import Stored, WithConfig
from minicpm4.quantize.proof import TOKENS, check_tokens, final_logits, prove
from tests.fixtures.random_checkpoint import make_checkpoint

SHAPES: list[dict[str, Any]] = [{}, {"model_type": "qwen2", "tie": True}, {"model_type": "qwen3"}]


def stored(folder: Path) -> Stored:
    found = open_model(folder)
    return Stored(found.checkpoint, found.config)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_a_layer_at_a_time_gives_the_logits_of_the_engine(
    tmp_path: Path, shape: dict[str, Any], packed: bool
) -> None:
    folder = make_checkpoint(tmp_path / "m", **shape)
    ids = np.random.default_rng(1).integers(0, 320, TOKENS).tolist()
    with LLM(str(folder), context=80, kv="float32", isa=exact_isa()) as llm:
        wanted = llm.logits(ids)
    found = final_logits(stored(folder), ids, exact_table(), packed=packed)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    assert prove(stored(folder), stored(folder), exact_table()) < 1e-5


def test_weights_in_floats_are_multiplied_in_float32_at_a_faster_level(tmp_path: Path) -> None:
    folder = tmp_path / "int4"
    assert (
        run(["convert", str(make_checkpoint(tmp_path / "m")), str(folder), "--to", "hf", "--method", "rtn"])
        == 0
    )
    ids = np.random.default_rng(1).integers(0, 320, 40).tolist()
    with LLM(str(folder), context=48, kv="float32", isa=exact_isa()) as llm:
        assert "int4" in llm.description  # the grid is found
        wanted = llm.logits(ids)
    with LLM(str(folder), context=48, kv="float32", weights="f32", isa=exact_isa(floats=True)) as llm:
        assert "int4" not in llm.description
        np.testing.assert_allclose(llm.logits(ids), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "change",
    [
        lambda config: replace(config, rope_theta=2e4),
        lambda config: replace(config, rms_norm_eps=1e-2),
        lambda config: replace(config, scale_emb=12.01),
        lambda config: replace(config, dim_model_base=33),
    ],
)
def test_a_configuration_that_is_another_is_found(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    made = stored(make_checkpoint(tmp_path / "m"))
    with pytest.raises(CheckpointError, match="apart from those it was made for"):
        prove(made, WithConfig(made, change(made.config)), exact_table())


def test_convert_keeps_nothing_of_a_model_that_computes_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minicpm4.quantize import export

    real = export.end_folder

    def wrong(folder: Path, content: dict[str, Any]) -> None:
        real(folder, content | {"rope_theta": 123.0})

    monkeypatch.setattr(export, "end_folder", wrong)
    source, target = make_checkpoint(tmp_path / "m"), tmp_path / "made"
    args = ["convert", str(source), str(target), "--method", "rtn", "--group", "32"]
    assert run(args) == 2 and "logits of the written model" in capsys.readouterr().err
    assert not target.exists()
    monkeypatch.setattr(export, "end_folder", real)
    assert run(args) == 0 and json.loads((target / "config.json").read_text())["rope_theta"] == 1e4


@pytest.mark.parametrize("types", [[], ["--gguf-type", "q4_1"]])
def test_gguf_files_are_computed_with_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], types: list[str]
) -> None:
    from minicpm4.evals import model_writer

    source, target = make_checkpoint(tmp_path / "m"), tmp_path / "made.gguf"
    args = ["convert", str(source), str(target), "--to", "gguf", *types]
    real = model_writer.read_config
    monkeypatch.setattr(model_writer, "read_config", lambda found: replace(real(found), rope_theta=123.0))
    assert run(args) == 2 and "logits of the written model" in capsys.readouterr().err
    assert not target.exists()
    monkeypatch.setattr(model_writer, "read_config", real)
    assert run(args) == 0 and target.exists()


def test_scales_that_are_folded_wrongly_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minicpm4.quantize import parts

    real = parts.times
    monkeypatch.setattr(parts, "times", lambda values, factor: real(values, 1.01 * factor))
    source, target = make_checkpoint(tmp_path / "m"), tmp_path / "llama"
    assert run(["convert", str(source), str(target), "--to", "llama"]) == 2
    assert "logits of the written model" in capsys.readouterr().err and not target.exists()


def test_tokens_that_are_others_are_found(tmp_path: Path) -> None:
    text = open_model(make_checkpoint(tmp_path / "m")).text()
    check_tokens(text, text)
    other = SimpleNamespace(encode=lambda text: [1], backend=text.tokenizer.backend)
    with pytest.raises(TextError, match="as other tokens"):
        check_tokens(text, SimpleNamespace(tokenizer=other))
