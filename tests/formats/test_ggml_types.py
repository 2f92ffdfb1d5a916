"""Every GGML type decodes to the numbers that the gguf package gives (see data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats.ggml_types import GGML_TYPES
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.gguf_write import OutTensor, write_gguf
from minicpm4.formats.packing import unpack

BLOCKS = Path(__file__).parent / "data" / "ggml_blocks.npz"
EXPECTED_SPECS = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "Q4_0": "int4-g32", "Q4_1": "int4-g32", "Q5_0": "int8-g32",
    "Q5_1": "int8-g32", "Q8_0": "int8-g32", "Q4_K": "int4-g32", "Q5_K": "int8-g32", "Q6_K": "int8-g16",
    "TQ1_0": "ternary-g256", "TQ2_0": "ternary-g256", "F64": "f32",
}  # fmt: skip


def write_one(path: Path, type_id: int, raw: np.ndarray) -> GgufCheckpoint:
    kind = GGML_TYPES[type_id]
    columns = raw.shape[1] // kind.nbytes * kind.block
    write_gguf(path, {}, [OutTensor(name="w", shape=(raw.shape[0], columns), type_id=type_id, data=raw)])
    return GgufCheckpoint(path)


@pytest.mark.parametrize("type_id", GGML_TYPES, ids=lambda i: GGML_TYPES[i].name)
def test_values_equal_the_gguf_package(type_id: int, tmp_path: Path) -> None:
    name = GGML_TYPES[type_id].name
    with np.load(BLOCKS) as stored:
        values = stored[f"{'F32' if name == 'F64' else name}_values"]
        raw = values.astype("<f8").view(np.uint8) if name == "F64" else stored[f"{name}_raw"]
    checkpoint = write_one(tmp_path / "one.gguf", type_id, raw)
    packed = checkpoint.load("w")
    np.testing.assert_array_equal(unpack(packed), values)
    info = checkpoint.tensors["w"]
    assert str(packed.spec) == EXPECTED_SPECS[name] and info.spec == packed.spec
    assert info.loaded_nbytes == packed.nbytes and info.nbytes == raw.nbytes and info.dtype == name


def test_all_types_are_covered() -> None:
    assert {kind.name for kind in GGML_TYPES.values()} == EXPECTED_SPECS.keys()


def test_a_ternary_code_of_three_is_refused(tmp_path: Path) -> None:
    raw = np.zeros((1, 66), np.uint8)
    raw[0, 5] = 0b00110000
    checkpoint = write_one(tmp_path / "bad.gguf", 35, raw)
    with pytest.raises(CheckpointError, match=r"bad\.gguf: tensor w: a TQ2_0 block holds code 3"):
        checkpoint.load("w")


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    raw = np.zeros((2, 18), np.uint8)
    raw[1, :2] = np.array([np.nan], np.float16).view(np.uint8)
    checkpoint = write_one(tmp_path / "nan.gguf", 2, raw)
    with pytest.raises(CheckpointError, match="tensor w has a scale that is not finite"):
        checkpoint.load("w")
