"""A file of kept weights is read back as it was written, or not at all, whatever was done to it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.formats import open_checkpoint
from minicpm4.formats.packing import pack_from_float
from minicpm4.formats.quant import QuantSpec
from minicpm4.model import packed_file
from minicpm4.model.arena import HUGE_PAGE
from minicpm4.model.packed_cache import weight_cache
from tests.model.kept import assert_same, load, only


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Let ``change(header, metadata)`` forge a header, with its right digest."""
    raw = file.read_bytes()
    length = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:length])
    metadata = {name: json.loads(text) for name, text in header["__metadata__"].items() if text[0] in "{["}
    change(header, metadata)
    header["__metadata__"] |= {name: json.dumps(value) for name, value in metadata.items()}
    text = json.dumps(header).encode()
    head = struct.pack("<Q", len(text)) + text
    file.write_bytes(head + raw[length:-32] + sha256(head).digest())


def test_every_damaged_byte_is_found(folder: Path, place: Path) -> None:
    first = load(folder)
    raw = only(place).read_bytes()
    rng = np.random.default_rng(0)
    head = 8 + struct.unpack("<Q", raw[:8])[0]
    spots = [*range(9), *rng.integers(8, head, 40), *rng.integers(head, len(raw), 20), len(raw) - 1]
    for spot in map(int, spots):
        damaged = bytearray(raw)
        damaged[spot] ^= 1 << int(rng.integers(8))
        only(place).write_bytes(damaged)
        again = load(folder)
        assert "kept weights ignored" in again.notes, spot
        assert "kept for the next start" in again.notes
        assert_same(first, again)
        assert only(place).read_bytes() == raw


def test_a_file_cut_short_or_grown_is_ignored(folder: Path, place: Path) -> None:
    load(folder)
    raw = only(place).read_bytes()
    for other in (b"", raw[:5], raw[:100], raw[:-1], raw[: len(raw) // 2], raw + b"\0", b"\0" * len(raw)):
        only(place).write_bytes(other)
        assert "kept weights ignored" in load(folder).notes
        assert only(place).read_bytes() == raw


NAME = "model.layers.0.mlp.down_proj.weight"


def _entry(header: dict[str, Any], **changes: Any) -> None:
    header[f"{NAME}.codes"] |= changes


@pytest.mark.parametrize(
    "change",
    [
        lambda header, metadata: _entry(header, shape=[32, 128]),
        lambda header, metadata: _entry(header, shape=[64, 64, 2**70]),
        lambda header, metadata: _entry(header, shape=[1] * 100 + [64, 64]),
        lambda header, metadata: _entry(header, shape=[64.0, 64]),
        lambda header, metadata: _entry(header, dtype="I8"),
        lambda header, metadata: _entry(header, dtype="F64"),
        lambda header, metadata: _entry(header, dtype=[]),
        lambda header, metadata: _entry(header, data_offsets=[0, 4096]),
        lambda header, metadata: _entry(header, data_offsets=[-1, 2**60]),
        lambda header, metadata: header.update({f"{NAME}.codes": None}),
        lambda header, metadata: metadata["matrices"].update({NAME: ["int4", 64, 64, 128, "rows"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: ["int4", 64, 128, 64, "rows"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: ["int4", 64.0, 64, 128, "rows"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: ["int8", 64, 64, 128, "rows"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: ["int4", 64, 64, 128, "knots"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: ["int4", 64, 64, 128, "panels"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: [4, 64, 64, 128, "rows"]}),
        lambda header, metadata: metadata["matrices"].update({NAME: 5}),
        lambda header, metadata: metadata["matrices"].update({"stranger": ["int4", 64, 64, 128, "rows"]}),
        lambda header, metadata: metadata["matrices"].pop(NAME),
        lambda header, metadata: metadata["sums"].update({f"{NAME}.codes": "zz"}),
        lambda header, metadata: metadata["sums"].pop(f"{NAME}.codes"),
        lambda header, metadata: metadata["key"].update(version=0),
        lambda header, metadata: metadata.update(key=[]),
        lambda header, metadata: metadata.update(matrices=[1]),
        lambda header, metadata: header["__metadata__"].update(format="other"),
        lambda header, metadata: header["__metadata__"].pop("key") and metadata.pop("key"),
    ],
)
def test_a_forged_header_is_refused(folder: Path, place: Path, change: Callable[..., Any]) -> None:
    first = load(folder)
    rewritten(only(place), lambda header, metadata: change(header, metadata))
    again = load(folder)
    assert "kept weights ignored" in again.notes
    assert_same(first, again)


def test_numbers_that_are_not_finite_are_refused(folder: Path, place: Path) -> None:
    checkpoint = open_checkpoint(folder)
    cache = weight_cache(checkpoint, "int4", "rows")
    assert cache is not None
    load(folder)
    tensors = cache.load(lambda *given: True)
    scales = tensors[NAME].scales
    assert scales is not None
    scales[3, 1] = np.inf
    packed_file.write(only(place), cache.key, tensors)
    assert "not finite" in load(folder).notes


def test_a_header_that_promises_too_much_is_refused_before_reading(folder: Path, place: Path) -> None:
    load(folder, "int4", "panels-1")
    raw = only(place).read_bytes()

    def grow(header: dict[str, Any], metadata: dict[str, Any]) -> None:
        last = header["sha256 of the header"]["data_offsets"]
        metadata["matrices"][NAME][4] = "panels"
        header.pop("sha256 of the header")
        extra = f"{NAME}.offsets"
        header[extra] = {"dtype": "U8", "shape": [1 << 36], "data_offsets": [last[0], last[0] + (1 << 36)]}
        end = last[0] + (1 << 36)
        header["sha256 of the header"] = {"dtype": "U8", "shape": [32], "data_offsets": [end, end + 32]}
        metadata["sums"][extra] = "0"

    rewritten(only(place), grow)
    with only(place).open("r+b") as file:  # 64 GB of nothing: a sparse file
        head = 8 + struct.unpack("<Q", file.read(8))[0]
        file.seek(0)
        digest = sha256(file.read(head)).digest()
        try:
            file.seek((1 << 36) + head + len(raw) - 8 - struct.unpack("<Q", raw[:8])[0] - 32)
            file.write(digest)
        except OSError:
            pytest.skip("no sparse files here")
    assert "is too large for" in load(folder, "int4", "panels-1").notes


def test_sums_tell_pieces_apart() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 4099):
        array = rng.integers(0, 256, size, np.uint8)
        cut = size // 16 * 8
        parts = packed_file.checksum(array[:cut]) + packed_file.checksum(array[cut:])
        assert packed_file.checksum(array) == parts % 2**64


def test_large_arrays_begin_at_huge_pages_and_are_read_in_pieces(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_file, "PIECE", 1 << 16)
    values = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    tensor = pack_from_float(values, QuantSpec(kind="int8", group_size=64))
    place.mkdir()
    packed_file.write(place / "file", {"a": 1}, {"x": tensor})
    shares: list[float] = []
    with (place / "file").open("rb", buffering=0) as data:
        kept = packed_file.PackedFile(data, place / "file")
        assert kept.key == {"a": 1}
        found = kept.read(packed_file.Arena(), lambda *given: True, shares.append)["x"]
    np.testing.assert_array_equal(found.codes, tensor.codes)
    assert found.codes.ctypes.data % HUGE_PAGE == 0
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 16
