"""What vLLM reads of the folders that `minicpm4 convert` writes for it, and what it refuses; vLLM is not run.

``schemes`` takes, in words of its own, the steps of vllm/model_executor/layers/quantization, from config.json
to the format of each of vLLM's matrices: compressed_tensors/compressed_tensors.py (from_config, get_scheme),
compressed_tensors/utils.py (what is ignored, targets of matrices that are fused), gptq_marlin.py (later
auto_gptq.py: bits and symmetry), utils/gptq_utils.py (which matrices are quantised), utils/marlin_utils.py
(groups)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minicpm4.cli import run
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.safetensors import open_tensors
from minicpm4.model.source import open_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fixtures.zero_points import shifted

FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
GROUPS = (32, 64, 128)
Scheme = tuple[int, int, bool]
"""Bits, group, and whether there are no zero points."""


class Refused(Exception):
    """By vLLM."""


def one(found: list[Any]) -> Any:
    """Of matrices that are one in vLLM what they have in common."""
    if any(each != found[0] for each in found):
        raise Refused(found)
    return found[0]


def compressed(said: dict[str, Any], names: list[str], kind: str) -> Scheme | None:
    """``names`` of matrices that are one, of the class ``kind``. None: floats."""
    if one([name in said["ignore"] for name in names]):
        return None
    groups = {target: group for group in said["config_groups"].values() for target in group["targets"]}
    own = [groups[name] for name in names if name in groups]
    group = one(own) if len(own) == len(names) else groups[kind]
    weights = group["weights"]
    assert said["format"] == "pack-quantized" and group.get("format") in (None, said["format"])
    assert group.get("input_activations") is None and group.get("output_activations") is None
    assert weights["num_bits"] in (4, 8) and weights["type"] == "int" and weights["dynamic"] is False
    assert weights["strategy"] == "group" and weights["group_size"] in GROUPS
    assert weights.get("actorder") is None
    return weights["num_bits"], weights["group_size"], weights["symmetric"]


def gptq(said: dict[str, Any], quantised: list[bool]) -> Scheme | None:
    """Of matrices that are one, whose tensors tell which are ``quantised``: no module is named."""
    assert said["desc_act"] is False and said["lm_head"] is False and not said.get("dynamic")
    assert said["checkpoint_format"] in ("gptq", "gptq_v2") and "modules_in_block_to_quantize" not in said
    if (said["bits"], said["sym"]) not in ((4, True), (8, True)):
        raise Refused(said)
    assert said["group_size"] in GROUPS
    return (said["bits"], said["group_size"], True) if one(quantised) else None


def tensors(found: dict[str, Any], name: str, method: str, scheme: Scheme | None) -> None:
    """A matrix has the tensors that vLLM makes room for, of that size."""
    own = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
    own.pop("bias", None)
    if scheme is None:
        assert own.keys() == {"weight"}, name
        return
    (bits, group, symmetric), gptq = scheme, method == "gptq"
    shapes = {key: tuple(value.entry.shape) for key, value in own.items()}
    kinds = {key: value.entry.dtype for key, value in own.items()}
    codes = shapes["qweight" if gptq else "weight_packed"]
    rows, columns = (codes[1], codes[0] * 32 // bits) if gptq else (codes[0], codes[1] * 32 // bits)
    if gptq:
        assert shapes == {
            "qweight": (columns * bits // 32, rows),
            "qzeros": (columns // group, rows * bits // 32),
            "scales": (columns // group, rows),
            "g_idx": (columns,),
        }
        assert kinds == {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}
        return
    zeros = {} if symmetric else {"weight_zero_point": (rows * bits // 32, columns // group)}
    assert shapes == {
        "weight_packed": (rows, columns * bits // 32),
        "weight_scale": (rows, columns // group),
        "weight_shape": (2,),
        **zeros,
    }
    assert kinds.pop("weight_scale") == "F16" and kinds.pop("weight_shape") == "I64"
    assert set(kinds.values()) == {"I32"}


def schemes(folder: Path) -> dict[str, Scheme | None]:
    """The format of each matrix that vLLM will have, by the first of its parts. Raises Refused."""
    config = json.loads((folder / "config.json").read_text())
    said, found = config["quantization_config"], open_tensors(folder / "model.safetensors")
    method, made = said["quant_method"], {}
    for index in range(config["num_hidden_layers"]):
        for parts in FUSED:
            names = [f"model.layers.{index}.{part}" for part in parts]
            if method == "compressed-tensors":
                scheme = compressed(said, names, "Linear")
            else:
                scheme = gptq(said, [f"{name}.qweight" in found for name in names])
            for name in names:
                tensors(found, name, method, scheme)
            made[names[0]] = scheme
    if method == "compressed-tensors" and not config["tie_word_embeddings"]:
        made["lm_head"] = compressed(said, ["lm_head"], "Linear")
        tensors(found, "lm_head", method, made["lm_head"])
    else:  # of GPTQ "lm_head" tells
        assert "lm_head.qweight" not in found
    assert "model.embed_tokens.weight" in found
    return made


@pytest.fixture(scope="module", params=["llama", "qwen2", "minicpm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "seed": 5}
    shape |= {"model_type": request.param, "tie": request.param == "qwen2", "dtype": "bfloat16"}
    return make_checkpoint(tmp_path_factory.mktemp("vllm") / "model", **shape)


@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize(("weights", "bits"), [("int4", 4), ("int8", 8)])
@pytest.mark.parametrize("group", GROUPS)
def test_one_format_is_read(
    model: Path, layout: str, weights: str, bits: int, group: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--to", layout, "--method", "rtn", "--weights", weights, "--group", str(group)]
    assert run(["convert", str(model), str(out), *words]) == 0
    found = schemes(out)
    found.pop("lm_head", None)
    assert len(found) == 8 and set(found.values()) == {(bits, group, True)}


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (["--override", "down_proj=int8-g64"], ""),
        (["--override", "layers.0=int8-g32", "--override", "o_proj=float"], ""),
        (["--override", "[qkv]_proj=int8-g32", "--override", "(gate|up)_proj=float"], ""),
        (
            ["--override", "k_proj=int8-g32"],
            "model.layers.0.self_attn has q_proj in int4-g32, k_proj in int8-g32",
        ),
        (["--override", "v_proj=int4-g64"], "v_proj in int4-g64, and 1 more"),
        (["--override", "q_proj=float"], "q_proj in floats, k_proj in int4-g32"),
        (
            ["--override", "layers.1.mlp.up_proj=bf16"],
            "model.layers.1.mlp has gate_proj in int4-g32, up_proj in floats",
        ),
    ],
)
def test_several_formats_are_read_or_the_user_is_told(
    model: Path,
    words: list[str],
    split: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before the work, and in the report."""
    out = tmp_path / "out"
    words = ["--to", "compressed-tensors", "--method", "rtn", "--group", "32", *words]
    assert run(["convert", str(model), str(out), *words]) == 0
    told = capsys.readouterr().err
    if split:
        assert "vLLM will refuse the folder" in told and split in told and split in caplog.text
        with pytest.raises(Refused):
            schemes(out)
    else:
        assert "vLLM" not in told + caplog.text and len(set(schemes(out).values())) > 1


def test_a_budget_tells_what_it_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless overrides have named what is one: the budget chooses among the others."""
    model, text = (
        make_checkpoint(tmp_path / "model", model_type="llama", seed=5, dtype="bfloat16"),
        tmp_path / "text.txt",
    )
    text.write_text("Some text to look at. " * 80)
    words = ["--to", "compressed-tensors", "--method", "awq", "--calibration", str(text), "--length", "64"]
    words = [*words, "--override", "down_proj=int8-g32", "--group", "32", "--bits"]
    assert run(["convert", str(model), str(tmp_path / "split"), *words, "10"]) == 0
    assert "vLLM will refuse the folder" in capsys.readouterr().err
    with pytest.raises(Refused):
        schemes(tmp_path / "split")
    said = ["--override", "[qkv]_proj=int8-g32", "--override", "(gate|up)_proj=int4-g32"]
    assert run(["convert", str(model), str(tmp_path / "whole"), *words, "10", *said]) == 0
    assert "vLLM" not in capsys.readouterr().err
    assert len(set(schemes(tmp_path / "whole").values())) > 2


def test_a_head_is_read(tmp_path: Path) -> None:
    """By versions that take ParallelLMHead for a linear layer."""
    model, out = make_checkpoint(tmp_path / "model", model_type="llama"), tmp_path / "out"
    words = ["--to", "compressed-tensors", "--method", "rtn", "--head", "int8-g32", "--group", "32"]
    assert run(["convert", str(model), str(out), *words]) == 0
    assert schemes(out)["lm_head"] == (8, 32, True)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_zero_points_are_read_in_compressed_tensors_alone(model: Path, kind: str, tmp_path: Path) -> None:
    spec = QuantSpec(kind=kind, group_size=32)
    source, out = shifted(open_model(model), spec, tmp_path / "source", "gptq"), tmp_path / "out"
    with pytest.raises(Refused):
        schemes(source)
    assert run(["convert", str(source), str(out), "--to", "compressed-tensors", "--weights", "auto"]) == 0
    found = schemes(out)
    found.pop("lm_head", None)
    assert set(found.values()) == {(spec.row.bits, 32, False)}
