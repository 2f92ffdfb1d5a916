"""The safetensors reader: one file or shards, views, and refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.bf16 import bf16_to_f32
from minicpm4.formats.packing import unpack
from minicpm4.formats.safetensors import INDEX, SafetensorsCheckpoint
from tests.fixtures.random_checkpoint import make_checkpoint

MATRIX, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def write(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A folder whose model.safetensors has ``header`` (JSON, or raw bytes)."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = struct.pack("<Q", len(raw) if length is None else length)
    (folder / "model.safetensors").write_bytes(head + raw + data)
    return folder


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_reads_what_was_written(dtype: str, sharded: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", dtype=dtype, sharded=sharded)
    assert (folder / INDEX).is_file() == sharded
    checkpoint = SafetensorsCheckpoint(folder)
    packed = checkpoint.load(MATRIX)
    assert packed.spec.kind == {"float32": "f32", "bfloat16": "bf16"}[dtype]
    assert not packed.codes.flags.owndata and not packed.codes.flags.writeable
    reference = SafetensorsCheckpoint(make_checkpoint(tmp_path / "f32"))
    np.testing.assert_allclose(unpack(packed), unpack(reference.load(MATRIX)), atol=2e-3)
    assert checkpoint.load_vector(NORM).dtype == np.float32
    assert set(checkpoint.tensors) == set(reference.tensors)
    info = checkpoint.tensors[MATRIX]
    assert info.nbytes == info.loaded_nbytes == packed.nbytes
    checkpoint.release(MATRIX)
    np.testing.assert_array_equal(unpack(packed), unpack(checkpoint.load(MATRIX)))


def test_values_equal_the_library(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    theirs = load_file(folder / "model.safetensors")
    theirs["half"] = np.array([[0.5, -65504.0]], np.float16)
    save_file(theirs, folder / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(folder)
    for name, array in theirs.items():
        own = unpack(checkpoint.load(name)) if array.ndim == 2 else checkpoint.load_vector(name)
        np.testing.assert_array_equal(own, array)
    assert checkpoint.load("half").spec.kind == "f16"


def test_bfloat16_bits_are_kept(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0xC000]], np.uint16)
    folder = write(tmp_path / "m", {"w": entry([1, 2], 0, 4, "BF16")}, bits.tobytes())
    np.testing.assert_array_equal(SafetensorsCheckpoint(folder).load("w").codes, bits)
    np.testing.assert_array_equal(bf16_to_f32(bits), [[1.0, -2.0]])


def test_an_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    header = json.dumps({"w": entry([2, 2], 0, 16)}).encode()
    header += b" " * ((1 - 8 - len(header)) % 4)  # data starts one byte after a multiple of 4
    values = np.arange(4, dtype=np.float32)
    checkpoint = SafetensorsCheckpoint(write(tmp_path / "m", header, values.tobytes()))
    codes = checkpoint.load("w").codes
    assert codes.flags.aligned
    np.testing.assert_array_equal(codes.ravel(), values)


def test_hf_config_is_the_folders(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    config = SafetensorsCheckpoint(folder).hf_config()
    assert config is not None and 77 in config["eos_token_id"] and config["model_type"] == "minicpm"
    assert SafetensorsCheckpoint(folder).metadata() == {}


ONE = json.dumps(entry([1], 0, 4))
HEADERS = {
    "length past the end": ({}, b"", 1 << 20, r"claims a header of 1048576 bytes; it has 10"),
    "huge length": ({}, b"", 1 << 62, r"claims a header of \d+ bytes"),
    "not JSON": (b"{{", b"", None, r"is not a valid safetensors file"),
    "deep JSON": (b"[" * 100_000, b"", None, r"is not a valid safetensors file"),
    "data past the end": ({"w": entry([4], 0, 16)}, b"\0" * 8, None, r"is not a valid safetensors file"),
    "size not the shape's": ({"w": entry([5], 0, 16)}, b"\0" * 16, None, r"is not a valid safetensors file"),
    "overlap": (
        {"v": entry([2], 0, 8), "w": entry([2], 4, 12)},
        b"\0" * 12,
        None,
        r"is not a valid safetensors file",
    ),
    "negative": ({"w": entry([4], -16, 0)}, b"\0" * 16, None, r"is not a valid safetensors file"),
    "unknown dtype": ({"w": entry([4], 0, 4, "Q9")}, b"\0" * 4, None, r"is not a valid safetensors file"),
    "integers": (
        {"w": entry([2, 2], 0, 4, "I8")},
        b"\0" * 4,
        None,
        r"tensor w has type I8, which cannot be read.*F16",
    ),
    "name twice": (
        (f'{{"w":{ONE},"w":{ONE}}}').encode(),
        b"\0" * 4,
        None,
        r"is not a valid safetensors file|a name occurs twice",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_bad_headers_are_refused(case: str, tmp_path: Path) -> None:
    header, data, length, message = HEADERS[case]
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(write(tmp_path / "m", header, data, length))


def test_a_file_too_short_for_a_header(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {})
    (folder / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="has 3 bytes, too few for a safetensors header"):
        SafetensorsCheckpoint(folder)


def test_asking_for_the_wrong_thing(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path / "m"))
    with pytest.raises(CheckpointError, match="has no tensor nothing"):
        checkpoint.load("nothing")
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \(64,\), it is not a matrix"):
        checkpoint.load(NORM)
    with pytest.raises(CheckpointError, match=r"up_proj.weight has shape .* it is not a vector"):
        checkpoint.load_vector(MATRIX)


def test_a_norm_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"w": entry([1], 0, 4)}, np.array([np.inf], np.float32).tobytes())
    with pytest.raises(CheckpointError, match="tensor w holds a value that is not finite"):
        SafetensorsCheckpoint(folder).load_vector("w")


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "C:x.safetensors", "x.bin", 3]
)
def test_an_index_cannot_lead_out_of_the_folder(shard: object, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {MATRIX: shard}}))
    with pytest.raises(CheckpointError, match=r"which is not a \.safetensors file beside it"):
        SafetensorsCheckpoint(folder)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", sharded=True)
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(
        CheckpointError, match=rf"lacks 1 of {len(shards)} weight files, the first is {shards[1].name}"
    ):
        SafetensorsCheckpoint(folder)


def test_an_index_that_promises_too_much(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", sharded=True)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.more.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks tensor model.more.weight that .*index.json promises"):
        SafetensorsCheckpoint(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(
            {"w": np.zeros((2, 2), np.float32), name: np.zeros(2, np.float32)},
            tmp_path / f"{name}.safetensors",
        )
    (tmp_path / "config.json").write_text("{}")
    weight_map = {"w": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"tensor w is in a.safetensors and in b.safetensors"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"index\.json is not JSON"),
        ("[]", "holds a list, not a table"),
        ('{"weight_map": []}', "has no weight_map"),
    ],
)
def test_a_broken_index(content: str, message: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", sharded=True)
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(folder)


def test_folders_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file.*download the model's weights"):
        SafetensorsCheckpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(
        CheckpointError, match=r"holds its weights pickled \(pytorch_model.bin\).*convert it to safetensors"
    ):
        SafetensorsCheckpoint(tmp_path)
    for name in ("a", "b"):
        save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has 2 .safetensors files but no model.safetensors.index.json"
    ):
        SafetensorsCheckpoint(tmp_path)


def test_one_file_under_another_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert MATRIX in SafetensorsCheckpoint(folder).tensors


def test_a_folder_without_config(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*config.json"):
        SafetensorsCheckpoint(folder)


def test_an_adapter_is_named_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds an adapter of some/base, not a model"):
        SafetensorsCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        SafetensorsCheckpoint(tmp_path)
    save_file({"b": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert list(SafetensorsCheckpoint(tmp_path).tensors) == ["b"]
    assert "the model runs without the adapter" in caplog.text


def test_folders_that_unknown_tools_quantised_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", extra_config={"quantization_config": {"quant_method": "quanto"}})
    with pytest.raises(CheckpointError, match=r"quantised by quanto cannot be read yet.*GGUF file"):
        SafetensorsCheckpoint(folder)
