"""Every GGML type decodes to the numbers that the gguf package gives (see data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats.ggml_types import GGML_TYPES
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.gguf_write import OutTensor, matrix, write_gguf
from minicpm4.formats.packing import packed_if_exact, unpack, widened
from minicpm4.quantize.grid import pack
from tests.fixtures.loading import load_model
from tests.formats.gguf_files import HIDDEN, INNER, hf_weights, metadata, raw_gguf, tensor, to_gguf

BLOCKS = Path(__file__).parent / "data" / "ggml_blocks.npz"
EXPECTED_SPECS = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "Q4_0": "int4-g32", "Q4_1": "int4-g32", "Q5_0": "int5-g32",
    "Q5_1": "int5-g32", "Q8_0": "int8-g32", "Q4_K": "int4-g32", "Q5_K": "int5-g32", "Q6_K": "int6-g16",
    "TQ1_0": "ternary-g256", "TQ2_0": "ternary-g256", "F64": "f32", "Q2_K": "int2-g16", "Q3_K": "int3-g16",
    "IQ4_NL": "int8-g32", "Q2_0": "int4-g64",
}  # fmt: skip


def write_one(path: Path, type_id: int, raw: np.ndarray) -> GgufCheckpoint:
    kind = GGML_TYPES[type_id]
    columns = raw.shape[1] // kind.nbytes * kind.block
    write_gguf(path, {}, [OutTensor(name="w", shape=(raw.shape[0], columns), type_id=type_id, data=raw)])
    return GgufCheckpoint(path)


def q2_0(seed: int, numbers: tuple[int, ...] = (-1, 0, 1, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Blocks that the gguf package does not know, written out one weight at a time: raw bytes, weights."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(np.array(numbers), (3, 512))
    scales = (rng.standard_normal((3, 8)) * 0.1).astype(np.float16)
    raw = np.zeros((3, 8, 18), np.uint8)
    raw[..., :2] = scales[..., None].view(np.uint8)
    for row in range(3):
        for i, number in enumerate(drawn[row]):
            raw[row, i // 64, 2 + i % 64 // 4] |= (number + 1) << 2 * (i % 4)
    return raw.reshape(3, -1), drawn * scales.astype(np.float32).repeat(64, 1)


@pytest.mark.parametrize("type_id", GGML_TYPES, ids=lambda i: GGML_TYPES[i].name)
def test_values_equal_the_gguf_package(type_id: int, tmp_path: Path) -> None:
    name = GGML_TYPES[type_id].name
    with np.load(BLOCKS) as stored:
        if name == "Q2_0":
            stored = dict(zip(("Q2_0_raw", "Q2_0_values"), q2_0(0), strict=True))
        values = stored[f"{'F32' if name == 'F64' else name}_values"]
        raw = values.astype("<f8").view(np.uint8) if name == "F64" else stored[f"{name}_raw"]
    checkpoint = write_one(tmp_path / "one.gguf", type_id, raw)
    packed = checkpoint.load("w")
    np.testing.assert_array_equal(unpack(packed), values)
    info = checkpoint.tensors["w"]
    assert str(packed.spec) == EXPECTED_SPECS[name] and info.spec == packed.spec
    assert info.loaded_nbytes == packed.nbytes and info.nbytes == raw.nbytes and info.dtype == name
    assert packed.nbytes <= 1.04 * raw.nbytes or name in ("IQ4_NL", "TQ1_0", "Q2_0")
    wide = widened(packed)
    assert wide.nbytes == (info.wide_nbytes or packed.nbytes)
    np.testing.assert_array_equal(unpack(wide), values)


def test_all_types_are_covered() -> None:
    assert {kind.name for kind in GGML_TYPES.values()} == EXPECTED_SPECS.keys()


@pytest.mark.parametrize("numbers", [(-1, 0, 1), (-1, 0, 1, 2)])
def test_q2_0_is_held_as_ternary_where_it_is(numbers: tuple[int, ...], tmp_path: Path) -> None:
    raw, values = q2_0(1, numbers)
    checkpoint = write_one(tmp_path / "one.gguf", 42, raw)
    assert checkpoint.tensors["w"].narrows
    found = packed_if_exact(checkpoint.load("w"))
    assert found.spec.kind == ("ternary" if len(numbers) == 3 else "int4") and found.spec.group_size == 64
    np.testing.assert_array_equal(unpack(found), values)


def test_a_model_of_q2_0_runs_on_ternary_weights(tmp_path: Path) -> None:
    """What a whole load makes of such a file, and what its plan and its memory say."""
    path, name = tmp_path / "m.gguf", "model.layers.0.mlp.up_proj.weight"
    drawn = np.random.default_rng(0).integers(-1, 2, (INNER, HIDDEN)).astype(np.float32)
    packed = pack(drawn, np.full((INNER, 1), 0.25, np.float32), GGML_TYPES[42].spec)
    tensors = to_gguf(hf_weights(), "llama")
    own = [one if one.name != "blk.0.ffn_up.weight" else matrix(one.name, packed, 42) for one in tensors]
    write_gguf(path, metadata(), own)
    loaded, kept = load_model(path), load_model(path, "int4")
    plan = {row.name: row for row in loaded.plan}
    assert str(plan[name].target) == "int4-g64" and plan[name].packs
    held = dict(loaded.weights.named_matrices())[name]
    assert str(held.spec) == "ternary-g64" and held.nbytes < plan[name].nbytes
    assert str(dict(kept.weights.named_matrices())[name].spec) == "int4-g64"


def test_blocks_of_a_fork_are_refused_with_a_hint(tmp_path: Path) -> None:
    """It gives 128 weights 34 bytes and calls that Q2_0, too: tensors then seem to overlap."""
    path, size = tmp_path / "fork.gguf", 4096 // 128 * 34  # 1088, a multiple of 32
    records = [tensor("a", (4096,), 42), tensor("b", (4096,), 42, size)]
    for count, said in ((2, "overlap"), (1, "but the file has")):
        length = 1 << 12 if count == 2 else size
        path.write_bytes(raw_gguf(tensors=records[:count], data=bytes(length)))
        with pytest.raises(CheckpointError, match=f"{said}.*not one of a fork"):
            GgufCheckpoint(path)


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
