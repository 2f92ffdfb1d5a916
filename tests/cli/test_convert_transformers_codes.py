"""Folders of `minicpm4 convert --to compressed-tensors` in transformers, which unpacks them with
compressed-tensors: the logits that they have here.

Needs transformers and compressed-tensors beside torch: `make test-transformers` installs them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
compressed_tensors = pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from minicpm4 import LLM  # noqa: E402
from minicpm4.cli import run  # noqa: E402
from minicpm4.formats.packing import unpack  # noqa: E402
from minicpm4.formats.quant import QuantSpec  # noqa: E402
from minicpm4.model.source import open_model  # noqa: E402
from tests.cli.test_convert_llama import MODELS as MINICPM  # noqa: E402
from tests.cli.test_convert_transformers import TEXT  # noqa: E402
from tests.fixtures.random_checkpoint import make_checkpoint  # noqa: E402
from tests.fixtures.zero_points import shifted  # noqa: E402

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "seed": 3}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2", "tie": True},
    "qwen3": {"model_type": "qwen3", "dtype": "bfloat16"},
}
FORMATS = {
    "int4-g32": ["--group", "32"],
    "int4-g64": ["--group", "64"],
    "int8-g32": ["--weights", "int8", "--group", "32"],
    "int8-g64": ["--weights", "int8", "--group", "64"],
    "mixed": ["--group", "32", "--override", "down_proj=int8-g64", "--override", "layers.0.*o_proj=int4-g64"],
    "floats": ["--override", "layers.1.mlp=float", "--override", "k_proj=int8-g32"],
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def here(folder: Path) -> tuple[list[int], np.ndarray]:
    """Tokens and their logits."""
    with LLM(str(folder), context=250, kv="float32", backend="ref") as llm:
        ids = llm.tokenizer.encode(TEXT)
        return ids, llm.logits(ids)


def there(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model.eval()(torch.tensor([ids])).logits[0].numpy()
    return found


def said(folder: Path) -> dict[str, Any]:
    """What config.json says of the matrices, which compressed-tensors can read."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert QuantizationConfig.model_validate(found).format == "pack-quantized"
    return found


def check(folder: Path) -> None:
    """Logits in transformers are those here. Products in float32: as config.json has it where the original is
    of that type, else asked for."""
    ids, expected = here(folder)
    plain = json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"
    asked = {} if plain else {"dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **asked)
    np.testing.assert_allclose(there(theirs, ids), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def formats(folder: Path) -> set[tuple[int, int, bool]]:
    """Bits, group and whether there is no zero point, of each group of matrices."""
    weights = [group["weights"] for group in said(folder)["config_groups"].values()]
    return {(one["num_bits"], one["group_size"], one["symmetric"]) for one in weights}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_here(name: str, kind: str, tmp_path: Path) -> None:
    model, out = make_checkpoint(tmp_path / "model", **SHAPE, **MODELS[name]), tmp_path / "out"
    words = ["--to", "compressed-tensors", "--method", "rtn", *FORMATS[kind]]
    assert run(["convert", str(model), str(out), *words]) == 0
    check(out)
    found = formats(out)
    if kind == "mixed":
        assert found == {(4, 32, True), (4, 64, True), (8, 64, True)}
    elif kind == "floats":
        assert found == {(4, 32, True), (8, 32, True)}
    else:
        assert found == {(int(kind[3]), int(kind[-2:]), True)}


def test_a_quantised_head_is_read(tmp_path: Path) -> None:
    model, out = make_checkpoint(tmp_path / "model", **SHAPE, model_type="llama"), tmp_path / "out"
    words = ["--to", "compressed-tensors", "--method", "rtn", "--head", "int8-g64"]
    assert run(["convert", str(model), str(out), *words]) == 0
    check(out)
    assert "lm_head" not in said(out)["ignore"]


def test_quantised_embeddings_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the report says: when this fails, transformers has learnt it."""
    model, out = make_checkpoint(tmp_path / "model", **SHAPE, model_type="llama"), tmp_path / "out"
    words = ["--to", "compressed-tensors", "--method", "rtn", "--override", "embed_tokens=int8-g64"]
    assert run(["convert", str(model), str(out), *words]) == 0
    assert (
        "embeddings are quantised in compressed-tensors: this package reads them" in capsys.readouterr().err
    )
    with pytest.raises(AttributeError, match="'Embedding' object has no attribute 'weight'"):
        there(transformers.AutoModelForCausalLM.from_pretrained(out), [1, 2, 3])


@pytest.mark.parametrize("name", MINICPM)
def test_minicpm_goes_by_way_of_llama(name: str, tmp_path: Path) -> None:
    """transformers knows no model type minicpm: a folder in float32 of the same logits, then that rounded."""
    model = make_checkpoint(tmp_path / "model", **(SHAPE | {"head_dim": 16}), **MINICPM[name])
    plain, out, same = tmp_path / "plain", tmp_path / "out", tmp_path / "same"
    words = ["--to", "compressed-tensors", "--method", "rtn", "--override", "down_proj=int8-g64"]
    assert run(["convert", str(model), str(plain), "--to", "llama"]) == 0
    assert run(["convert", str(plain), str(out), *words]) == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    check(out)
    assert formats(out) == {(4, 32, True), (8, 64, True)}
    # The scales that are folded in touch embeddings and head alone: the same matrices are rounded.
    assert run(["convert", str(model), str(same), *words]) == 0
    one, two = open_model(out).checkpoint, open_model(same).checkpoint
    for matrix in (one for one in two.tensors if one.endswith("_proj.weight")):
        np.testing.assert_array_equal(unpack(one.load(matrix)), unpack(two.load(matrix)))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(("layout", "kind"), [("awq", "int4"), ("gptq", "int4"), ("gptq", "int8")])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_zero_points_go_along(name: str, group: int, layout: str, kind: str, tmp_path: Path) -> None:
    """Unpacked at load, which transformers 5.23 does in float16, the type of scales; and then as exactly as
    here. Left packed it expects zero points of another shape, and refuses such folders, those that
    compressed-tensors 0.20 wrote itself, too."""
    opened = open_model(make_checkpoint(tmp_path / "model", **SHAPE, **MODELS[name]))
    spec = QuantSpec(kind=kind, group_size=group)
    source, out = shifted(opened, spec, tmp_path / "source", layout), tmp_path / "out"
    assert run(["convert", str(source), str(out), "--to", "compressed-tensors", "--weights", "auto"]) == 0
    assert formats(out) == {(spec.row.bits, group, False)}
    ids, expected = here(out)
    at_load = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        out, quantization_config=at_load, dtype=torch.float32
    )
    largest = np.abs(expected).max()
    np.testing.assert_allclose(there(theirs, ids), expected, rtol=0, atol=3e-3 * largest)
    (scheme,) = QuantizationConfig.model_validate(said(out)).config_groups.values()
    tensors = load_file(out / "model.safetensors")
    for matrix in (one.removesuffix("_packed") for one in tensors if one.endswith("_packed")):
        parts = {f"weight{part}": tensors[matrix + part] for part in ("_packed", "_shape", "_zero_point")}
        parts["weight_scale"] = tensors[f"{matrix}_scale"].float()
        theirs.get_parameter(matrix).data.copy_(
            PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        )
    np.testing.assert_allclose(there(theirs, ids), expected, rtol=0, atol=1e-5 * largest)
