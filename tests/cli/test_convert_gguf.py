"""`minicpm4 convert --to gguf`: a file that is the same model, weights, positions and text."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.engine.load import suggestion
from minicpm4.formats import open_checkpoint
from minicpm4.formats.packing import unpack
from minicpm4.model.source import open_model
from tests.cli import written
from tests.cli.written import logits
from tests.fixtures.random_checkpoint import make_checkpoint

convert = partial(written.convert, "gguf")

TEXT = "Hello, world! 12345 naïve 今天 <|im_start|>user\nhi<|im_end|> it's  done\n"
LONG = [1.0 + 0.5 * i for i in range(8)]
MODELS: dict[str, dict[str, Any]] = {
    "minicpm": {},
    "minicpm-tied": {"tie": True},
    "minicpm-longrope": {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": LONG,
            "long_factor": LONG[::-1],
            "original_max_position_embeddings": 256,
        }
    },
    "llama": {"model_type": "llama"},
    "llama-biases": {"model_type": "llama", "extra_config": {"attention_bias": True, "mlp_bias": True}},
    "qwen2": {"model_type": "qwen2", "tie": True},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_the_same_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"head_dim": 16, "seed": 2, "dtype": "bfloat16", **MODELS[name]}
    model, out = make_checkpoint(tmp_path / "model", **shape), tmp_path / "out.gguf"
    suggested = {"temperature": 1, "top_p": 0.8, "top_k": 20}
    (model / "generation_config.json").write_text(json.dumps(suggested))
    assert convert(model, out) == 0
    assert "equal" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"model", "out.gguf"}
    old, new = open_model(model), open_model(out)
    for tensor in old.checkpoint.tensors:
        assert new.checkpoint.tensors[tensor].shape == old.checkpoint.tensors[tensor].shape
    assert {new.checkpoint.tensors[t].dtype for t in new.checkpoint.tensors} == {"BF16", "F32"}
    np.testing.assert_allclose(logits(out), logits(model), rtol=0, atol=1e-4)
    ours, theirs = old.text(), new.text()
    assert theirs.encode(TEXT) == ours.encode(TEXT) and theirs.chat_template == ours.chat_template
    assert set(theirs.end_ids) >= set(ours.end_ids)
    assert suggestion(new) == pytest.approx(suggested, rel=1e-6)
    assert len(new.checkpoint.metadata()["tokenizer.ggml.tokens"]) == old.config.vocab_size


@pytest.mark.parametrize(
    ("more", "types"),
    [
        (["--weights", "int4", "--method", "rtn"], {"Q4_0"}),
        (["--weights", "int4", "--method", "rtn", "--group", "64"], {"Q4_0"}),
        (["--weights", "int8", "--method", "rtn"], {"Q8_0"}),
        (["--weights", "ternary", "--method", "rtn"], {"Q2_0"}),
        (["--weights", "ternary", "--method", "rtn", "--group", "256"], {"TQ2_0"}),
        (
            ["--weights", "ternary", "--method", "rtn", "--group", "256", "--gguf-type", "tq1_0"],
            {"TQ1_0"},
        ),
        (["--weights", "int4", "--method", "rtn", "--override", "down_proj=int8-g32"], {"Q4_0", "Q8_0"}),
        (["--weights", "int4", "--method", "rtn", "--gguf-type", "q4_1"], {"Q4_1"}),
    ],
)
def test_what_was_rounded_is_in_the_file_to_the_bit(more: list[str], types: set[str], tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    out, folder, report = tmp_path / "new" / "out.gguf", tmp_path / "hf", tmp_path / "report.json"
    assert convert(model, out, *more, "--json", str(report)) == 0
    new = open_checkpoint(out)
    layers = [name for name in new.tensors if ".layers." in name and len(new.tensors[name].shape) == 2]
    assert {new.tensors[name].dtype for name in layers} == types
    plain = [one for one in more if one not in ("--gguf-type", "tq1_0", "q4_1")]
    if "--group" not in more and "ternary" not in more:
        plain += ["--group", "32"]
    assert run(["convert", str(model), str(folder), "--to", "hf", *plain]) == 0
    rounded = open_checkpoint(folder)
    for name in layers:
        np.testing.assert_array_equal(unpack(new.load(name)), unpack(rounded.load(name)), err_msg=name)
    found = json.loads(report.read_text())["types"]
    assert {row["error"] for row in found} == {0.0} and len(found) == len(layers) + 2


def test_what_is_quantised_already_stays_what_it_is(tmp_path: Path) -> None:
    """From GPTQ and compressed-tensors folders, and from floats on a grid: nothing is rounded again."""
    model = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    rounding = {
        "gptq": ("Q4_0", "--weights", "int4", "--group", "128"),
        "compressed-tensors": ("Q8_0", "--weights", "int8", "--group", "32"),
        "hf": ("Q2_0", "--weights", "ternary", "--group", "64"),
    }
    for layout, (kind, *more) in rounding.items():
        folder, out = tmp_path / layout, tmp_path / f"{layout}.gguf"
        assert run(["convert", str(model), str(folder), "--to", layout, "--method", "rtn", *more]) == 0
        assert convert(folder, out) == 0
        old, new = open_checkpoint(folder), open_checkpoint(out)
        for name, info in new.tensors.items():
            if ".layers." in name and len(info.shape) == 2:
                assert info.dtype == kind
                np.testing.assert_array_equal(unpack(new.load(name)), unpack(old.load(name)))


def test_a_type_that_is_asked_for_is_told_with_its_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    out, report = tmp_path / "out.gguf", tmp_path / "report.json"
    more = ["--gguf-type", "q4_k", "--gguf-type", "embed|lm_head=q6_k", "--gguf-type", "v_proj=q8_0"]
    assert convert(model, out, *more, "--json", str(report)) == 0
    printed = capsys.readouterr().out
    assert "farthest" in printed and "%" in printed
    rows = {row["name"]: row for row in json.loads(report.read_text())["types"]}
    assert rows["lm_head.weight"]["type"] == rows["model.embed_tokens.weight"]["type"] == "Q6_K"
    assert rows["model.layers.1.self_attn.v_proj.weight"]["type"] == "Q8_0"
    old, new = open_checkpoint(model), open_checkpoint(out)
    for name, row in rows.items():
        was, now = unpack(old.load(name)).astype(np.float64), unpack(new.load(name))
        assert math.isclose(
            row["error"], float(np.linalg.norm(now - was) / np.linalg.norm(was)), rel_tol=1e-5
        )
    assert 0.03 < rows["model.layers.0.self_attn.q_proj.weight"]["error"] < 0.09
    assert rows["model.layers.0.self_attn.v_proj.weight"]["error"] < 0.006


def test_a_file_of_another_is_written_as_it_was(tmp_path: Path) -> None:
    """SmolLM2's own file: types, values, vocabulary and template are those it had."""
    out = tmp_path / "out.gguf"
    assert convert(Path("smollm2-135m-instruct"), out) == 0
    old, new = open_model("smollm2-135m-instruct").checkpoint, open_checkpoint(out)
    for name in new.tensors:
        assert new.tensors[name].dtype == old.tensors[name].dtype
        if name.endswith("norm.weight"):
            np.testing.assert_array_equal(new.load_vector(name), old.load_vector(name))
        elif name.startswith(("model.layers.7.", "model.embed")):
            np.testing.assert_array_equal(unpack(new.load(name)), unpack(old.load(name)))
    for key, value in old.metadata().items():
        if key.startswith(("tokenizer.", "llama.")):
            assert new.metadata()[key] == value, key


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gguf-type", "q4_k_m"], "q4_k"),
        (["--gguf-type", "q6_k"], "do not fill blocks of 256"),
        (["--gguf-type", "nothing=q8_0"], "no matrix"),
        (["--gguf-type", "=q8_0"], "PATTERN=TYPE. such as q4_k"),
        (["--gguf-type", "[=q8_0"], "Python's re"),
        (["--weights", "auto", "--method", "rtn"], "--method is for"),
        (["--rotate"], "--rotate is for"),
        (["--weights", "int4", "--method", "rtn", "--gguf-type", "tq2_0"], "do not fill"),
    ],
)
def test_wrong_settings_are_named_before_any_work(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", seed=9)
    assert convert(model, tmp_path / "out.gguf", *more) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert {file.name for file in tmp_path.iterdir()} == {"model"}


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = make_checkpoint(tmp_path / "model", seed=9), tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    assert convert(model, out) == 2 and "exists" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert convert(model, tmp_path / "out") == 2 and "model.gguf" in capsys.readouterr().err
    assert run(["convert", str(model), str(tmp_path / "out"), "--gguf-type", "q8_0"]) == 2
    assert "no types of GGUF" in capsys.readouterr().err


def test_what_a_file_cannot_say_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse = {"kernel_size": 32, "kernel_stride": 16, "block_size": 64, "topk": 8, "dense_len": 128}
    model = make_checkpoint(tmp_path / "model", seed=9, sparse_config=sparse)
    for file in model.glob("*token*"):
        file.unlink()
    assert convert(model, tmp_path / "out.gguf") == 0
    assert "sparse attention" in capsys.readouterr().err
    assert open_checkpoint(tmp_path / "out.gguf").metadata()["tokenizer.ggml.model"] == "no_vocab"


def test_a_quantised_folder_changes_its_layout_and_no_value(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", seed=4)
    first, second, file = tmp_path / "gptq", tmp_path / "compressed", tmp_path / "m.gguf"
    assert run(["convert", str(model), str(first), "--to", "gptq", "--method", "rtn", "--group", "32"]) == 0
    assert run(["convert", str(first), str(second), "--weights", "auto"]) == 0
    old, new = open_checkpoint(first), open_checkpoint(second)
    for name, info in new.tensors.items():
        if len(info.shape) == 2:
            assert info.spec == old.tensors[name].spec
            np.testing.assert_array_equal(unpack(new.load(name)), unpack(old.load(name)))
    assert convert(first, file, "--gguf-type", "q4_1") == 0  # now with offsets
    assert run(["convert", str(file), str(tmp_path / "out"), "--weights", "auto"]) == 0
    third = open_checkpoint(tmp_path / "out")
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        np.testing.assert_array_equal(unpack(third.load(name)), unpack(old.load(name)))


@pytest.mark.parametrize("temperature", [0.5, 0])
def test_a_folder_keeps_the_sampling_that_a_file_suggests(tmp_path: Path, temperature: float) -> None:
    """It was dropped without a word."""
    model, file, out = make_checkpoint(tmp_path / "model", seed=2), tmp_path / "m.gguf", tmp_path / "out"
    said = {"temperature": temperature, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    (model / "generation_config.json").write_text(json.dumps(said))
    assert convert(model, file) == 0
    assert run(["convert", str(file), str(out), "--weights", "auto", "--to", "hf"]) == 0
    written = json.loads((out / "generation_config.json").read_text())
    assert written == written | said | {"do_sample": temperature > 0}
    assert suggestion(open_model(out)) == suggestion(open_model(model))


def test_nothing_is_rounded_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A type was taken beside --bits and --weights, and the report spoke of values as they were rounded."""
    model = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    out = tmp_path / "out.gguf"
    once = ["--weights", "int4", "--method", "rtn"]
    for more, said in (
        ([*once, "--gguf-type", "q4_k"], "would be rounded twice: to int4-g32, and from that to Q4_K"),
        ([*once, "--gguf-type", "bf16"], "and from that to BF16"),
        (["--weights", "ternary", "--gguf-type", "tq1_0"], "TQ1_0 holds ternary with --group 256; or"),
        (["--weights", "int4", "--bits", "6", "--gguf-type", "embed=q6_k"], "--bits chooses what"),
    ):
        assert convert(model, out, *more) == 2
        assert said in capsys.readouterr().err and not out.exists()
    assert convert(model, out, *once, "--gguf-type", "f32", "--gguf-type", "embed=q6_k") == 0
    assert "once more" not in capsys.readouterr().out
    more = ["--override", "v_proj=int8-g32", "--gguf-type", "proj=q4_k"]
    assert convert(model, tmp_path / "more.gguf", *more) == 0
    assert "every value as it was rounded, 2 matrices once more, to their type" in capsys.readouterr().out


def test_all_that_a_type_does_not_fit_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", intermediate_size=256)
    out = tmp_path / "out.gguf"
    assert convert(model, out, "--gguf-type", "q4_k") == 2
    remedy = re.search(r"--gguf-type '(.*)'", capsys.readouterr().err)
    assert remedy is not None and set(remedy[1].removesuffix("=q8_0").split("|")) >= {"q_proj", "up_proj"}
    assert convert(model, out, "--gguf-type", "q4_k", "--gguf-type", remedy[1]) == 0
