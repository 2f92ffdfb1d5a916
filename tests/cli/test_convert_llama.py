"""`minicpm4 convert --to llama`: MiniCPM's scales folded in, the same logits from a plain Llama."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.cli import run
from minicpm4.formats import open_checkpoint
from minicpm4.formats.packing import unpack
from minicpm4.model.source import open_model
from tests.cli import written
from tests.cli.written import IDS, logits
from tests.fixtures.random_checkpoint import make_checkpoint

convert = partial(written.convert, "llama")

ONES, RISING = [1.0] * 8, [1.0 + 0.5 * i for i in range(8)]


def longrope(short: list[float]) -> dict[str, Any]:
    table = {"rope_type": "longrope", "short_factor": short, "long_factor": RISING}
    return {"rope_scaling": table | {"original_max_position_embeddings": 256}}


MODELS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie": True},
    "longrope": longrope(RISING),
    "llama": {"model_type": "llama"},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_llama_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", seed=3, dtype="bfloat16", head_dim=16, **MODELS[name])
    out = tmp_path / "out"
    assert convert(model, out) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama" and "scale_emb" not in config
    expected = logits(model)
    np.testing.assert_allclose(logits(out), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    old, new = open_checkpoint(model), open_checkpoint(out)
    layer = "model.layers.1.mlp.down_proj.weight"
    assert new.tensors[layer].dtype == "BF16"
    np.testing.assert_array_equal(old.load(layer).codes, new.load(layer).codes)
    # Other readers make all floats the type that config.json names: it must change none.
    widest = "float32" if name in ("untied", "tied", "longrope") else "bfloat16"
    assert config["torch_dtype"] == widest


@pytest.mark.parametrize("kind", ["int4-g32", "int8-g32", "ternary-g64"])
def test_layers_stay_on_their_grid(kind: str, tmp_path: Path) -> None:
    weights, _, group = kind.partition("-g")
    model, out = make_checkpoint(tmp_path / "model", seed=3), tmp_path / "out"
    rounding = ["--weights", weights, "--group", group, "--method", "rtn"]
    assert convert(model, out, *rounding) == 0
    assert run(["convert", str(model), str(tmp_path / "hf"), "--to", "hf", *rounding]) == 0
    first, second = open_checkpoint(out), open_checkpoint(tmp_path / "hf")
    for name in first.tensors:
        if ".layers." in name and len(first.tensors[name].shape) == 2:
            np.testing.assert_array_equal(unpack(first.load(name)), unpack(second.load(name)))
    expected = logits(tmp_path / "hf")
    np.testing.assert_allclose(logits(out), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_plain_positions_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = make_checkpoint(tmp_path / "same", seed=3, head_dim=16, **longrope(ONES))
    config = json.loads((same / "config.json").read_text())
    config["rope_scaling"]["attention_factor"] = 1.0
    (same / "config.json").write_text(json.dumps(config))
    assert convert(same, tmp_path / "out", "--plain-rope") == 0
    assert "up to 256 are those" in capsys.readouterr().err
    found = open_model(tmp_path / "out").config
    assert found.rope_scaling is None and found.max_position_embeddings == 256
    with LLM(str(same), context=200, kv="float32", backend="ref") as llm:
        expected = llm.logits(IDS)
    np.testing.assert_allclose(logits(tmp_path / "out"), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    other = make_checkpoint(tmp_path / "other", seed=3, head_dim=16, **longrope(RISING))
    assert convert(other, tmp_path / "plain", "--plain-rope") == 0
    assert "divided by 1 to 4.5 and are plain now" in capsys.readouterr().err
    assert convert(tmp_path / "plain", tmp_path / "again", "--plain-rope") == 2
    assert "no rotary scaling" in capsys.readouterr().err


def test_what_is_no_llama_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_checkpoint(tmp_path / "model", model_type="qwen2")
    assert convert(model, tmp_path / "out") == 2
    assert "qwen2 model is no Llama" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"model"}
