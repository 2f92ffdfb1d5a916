"""Damaged quantised folders and files: one line that names the tensor and what is wrong, exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.formats.quantised_write import QUANTISED
from minicpm4.formats.safetensors import open_tensors
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource
from tests.fixtures.random_checkpoint import make_checkpoint

CODES = {"compressed-tensors": "weight_packed", "mlx": "weight"}
SCALES = {"compressed-tensors": "weight_scale"}
FILES = {"marlin": "model_gptq.safetensors"}
MATRIX = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module", params=QUANTISED)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    layout, folder = request.param, tmp_path_factory.mktemp("damage")
    shape = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 320}
    model = make_checkpoint(folder / "model", seed=3, **shape)
    args = ["--method", "rtn", "--group", "128", "--to", layout]
    assert run(["convert", str(model), str(folder / "small"), *args]) == 0
    return layout, folder / "small"


Tensors = dict[str, tuple[str, np.ndarray]]
Config = Callable[[dict[str, Any]], dict[str, Any]]


def change(
    folder: Path, target: Path, file: str, edit: Callable[[Tensors], None], config: Config | None = None
) -> None:
    """A copy of a folder with other tensors (type, values) and other fields of config.json."""
    found = {name: (one.entry.dtype, one.view()) for name, one in open_tensors(folder / file).items()}
    edit(found)
    target.mkdir()
    sources = {
        name: TensorSource(shape=values.shape, dtype=kind, make=lambda values=values: values)
        for name, (kind, values) in found.items()
    }
    write_safetensors(target / file, sources)
    said = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(said if config is None else config(said)))
    for one in ("tokenizer.json", "tokenizer_config.json"):
        (target / one).write_bytes((folder / one).read_bytes())


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *said: str) -> None:
    capsys.readouterr()
    assert run(["generate", "-m", str(folder), "--prompt", "x", "--backend", "ref", "--max-tokens", "1"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "should not happen" not in error, error
    for one in said:
        assert one in error, error


@pytest.mark.parametrize("what", ["absent", "transposed", "other type", "not finite", "codes cut"])
def test_a_tensor_that_is_damaged(
    what: str, made: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, folder = made
    scales = f"{MATRIX}.{SCALES.get(layout, 'scales')}"
    codes = f"{MATRIX}.{CODES.get(layout, 'qweight')}"

    def edit(found: Tensors) -> None:
        kind, values = found[scales]
        if what == "absent":
            del found[scales]
        elif what == "transposed":
            found[scales] = kind, np.ascontiguousarray(values.T)
        elif what == "other type":
            found[scales] = "I32", values.astype(np.int32)
        elif what == "not finite":
            values = values.copy()
            values.reshape(-1)[5] = np.nan
            found[scales] = kind, values
        else:
            found[codes] = found[codes][0], np.ascontiguousarray(found[codes][1][:-8])

    change(folder, tmp_path / "bad", FILES.get(layout, "model.safetensors"), edit)
    refused(tmp_path / "bad", capsys, MATRIX)


def test_a_file_that_was_cut(
    made: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, folder = made
    name = FILES.get(layout, "model.safetensors")
    change(folder, tmp_path / "bad", name, lambda found: None)
    file = tmp_path / "bad" / name
    file.write_bytes(file.read_bytes()[:-1000])
    refused(tmp_path / "bad", capsys, name)


@pytest.mark.parametrize(
    ("field", "value"), [("group_size", 64), ("bits", 8), ("bits", 5), ("group_size", "x")]
)
def test_a_configuration_of_other_weights(
    field: str, value: Any, made: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, folder = made

    def config(said: dict[str, Any]) -> dict[str, Any]:
        if layout == "compressed-tensors":
            (group,) = said["quantization_config"]["config_groups"].values()
            group["weights"]["num_bits" if field == "bits" else field] = value
            return said
        for name in ("quantization", "quantization_config"):
            if name in said:
                said[name][field] = value
        return said

    name = FILES.get(layout, "model.safetensors")
    change(folder, tmp_path / "bad", name, lambda found: None, config)
    alone = layout in ("awq", "marlin") and field == "bits"  # 4 is all that they have
    refused(tmp_path / "bad", capsys, "model.layers." if value in (64, 8) and not alone else "weights")


def test_a_configuration_of_another_model(
    made: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, folder = made
    name = FILES.get(layout, "model.safetensors")
    change(folder, tmp_path / "bad", name, lambda found: None, lambda said: said | {"intermediate_size": 512})
    refused(tmp_path / "bad", capsys, "has shape (128, 256), expected (128, 512)", "down_proj.weight")
