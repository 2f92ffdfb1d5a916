"""Mutated files: whatever happens to the bytes, the readers give values or one of our errors."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicpm4.config import ModelConfig
from minicpm4.config.gguf import ROPE_VECTORS, config_from_gguf
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats import check_tensors, open_checkpoint
from minicpm4.formats.gguf_write import OutTensor, write_gguf
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.quantised_write import QUANTISED
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.formats.gguf_files import hf_weights, metadata, to_gguf
from tests.formats.test_quantised_written import NAME, again, drawn, with_zeros
from tests.fuzz.mutate import NUMBERS

LIMIT = 24 << 20  # bytes; the files have about 200 KB
FUZZ = settings(max_examples=250, suppress_health_check=list(HealthCheck))


@cache
def gguf_bytes() -> bytes:
    """A valid model, followed by a tensor of each block type."""
    with np.load(Path(__file__).parent / "data" / "ggml_blocks.npz") as stored:
        blocks = {
            2: "Q4_0",
            3: "Q4_1",
            7: "Q5_1",
            12: "Q4_K",
            13: "Q5_K",
            14: "Q6_K",
            34: "TQ1_0",
            35: "TQ2_0",
            10: "Q2_K",
            11: "Q3_K",
            20: "IQ4_NL",
        }
        extra = [
            OutTensor(name=name, shape=(3, 512), type_id=i, data=stored[f"{name}_raw"])
            for i, name in blocks.items()
        ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, metadata("minicpm"), [*to_gguf(hf_weights(), "minicpm"), *extra])
        return path.read_bytes()


@cache
def safetensors_bytes() -> tuple[bytes, bytes]:
    """config.json and model.safetensors of a valid model."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_checkpoint(Path(folder) / "m", dtype="bfloat16")
        return (made / "config.json").read_bytes(), (made / "model.safetensors").read_bytes()


@cache
def quantised_bytes(layout: str) -> tuple[bytes, bytes]:
    """The same of a folder with a quantised matrix."""
    tensor = drawn(QuantSpec(kind="int4", group_size=128), 128, 256)
    if layout != "marlin":
        tensor = with_zeros(tensor, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        again(folder, layout, {NAME: tensor}, num_attention_heads=2)
        return (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()


@st.composite
def mutations(draw: st.DrawFn, header: int) -> list[tuple[str, int, int]]:
    """A few edits: (what, where, value), most of them in the first ``header`` bytes."""
    where = st.integers(0, header) | st.integers(0, 1 << 18)
    edit = st.tuples(
        st.sampled_from(["byte", "u32", "u64", "cut", "insert"]),
        where,
        st.sampled_from(NUMBERS) | st.integers(0, 255),
    )
    return draw(st.lists(edit, min_size=1, max_size=4))


def mutate(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    raw = bytearray(content)
    for what, place, value in edits:
        at = place % (len(raw) + 1)
        if what == "cut":
            del raw[at:]
        elif what == "insert":
            raw[at:at] = bytes([value & 255]) * (1 + value % 9)
        else:
            width = {"byte": 1, "u32": 4, "u64": 8}[what]
            raw[at : at + width] = struct.pack("<Q", value)[:width]
    return bytes(raw)


def read_everything(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    raw, shapes = checkpoint.hf_config(), {name: info.shape for name, info in checkpoint.tensors.items()}
    vectors = {name: checkpoint.load_vector(name).tolist() for name in ROPE_VECTORS if name in shapes}
    for name, shape in shapes.items():
        if len(shape) == 2:
            with np.errstate(all="ignore"):  # weights themselves may be any bits
                unpack(checkpoint.load(name))
    config = (
        ModelConfig.from_hf(raw)
        if raw is not None
        else config_from_gguf(checkpoint.metadata(), shapes, vectors)
    )
    check_tensors(checkpoint, config)


def survives(path: Path) -> None:
    message = "read without an error"
    tracemalloc.start()
    try:
        read_everything(path)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert 10 < len(message) < 5000
    assert peak < LIMIT, f"reading took {peak} bytes"


@FUZZ
@given(mutations(header=4000))
def test_mutated_gguf(edits: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(mutate(gguf_bytes(), edits) or b"\0")
        survives(path)


@FUZZ
@given(mutations(header=3000))
def test_mutated_safetensors(edits: list[tuple[str, int, int]]) -> None:
    config, tensors = safetensors_bytes()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(config)
        (Path(folder) / "model.safetensors").write_bytes(mutate(tensors, edits))
        survives(Path(folder))


@FUZZ
@given(st.sampled_from(QUANTISED), mutations(header=900), st.booleans())
def test_mutated_quantised_folders(layout: str, edits: list[tuple[str, int, int]], config: bool) -> None:
    """Damage of the tensors, or of what config.json says of them."""
    said, tensors = quantised_bytes(layout)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(mutate(said, edits) if config else said)
        (Path(folder) / "model.safetensors").write_bytes(tensors if config else mutate(tensors, edits))
        survives(Path(folder))


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_after_the_magic(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(b"GGUF\3\0\0\0" + content)
        survives(path)


def test_the_unchanged_files_read() -> None:
    config, tensors = safetensors_bytes()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(config)
        (Path(folder) / "model.safetensors").write_bytes(tensors)
        read_everything(Path(folder))
