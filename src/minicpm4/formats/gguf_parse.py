"""Parse a GGUF header: key-value metadata and the table of tensors, with every number bounded.

The file is untrusted. A count is compared with the bytes that are left before anything of its size
is made, so no field can make the parser allocate more than a few times the file.
"""

from __future__ import annotations

import reprlib
import struct
import sys
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from minicpm4.errors import CheckpointError
from minicpm4.formats.ggml_types import GGML_TYPES, TYPE_NAMES, GgmlType

__all__ = ["GgufHeader", "GgufTensor", "parse_gguf"]

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_NAME = 1 << 10  # bytes of a key or tensor name; names also end up in messages
MAX_STRING = 1 << 26  # bytes of one string value (chat templates are the longest)
MAX_ELEMENTS = 1 << 23  # of all arrays together; vocabularies and merges stay below 2**21
MAX_DEPTH = 2  # arrays of arrays
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_REMEDY = "the file is corrupt or was cut short: download it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """One tensor record: row-major ``shape``, ``offset`` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """What precedes the tensor data: arrays of ``metadata`` are lists."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


def parse_gguf(data: memoryview, path: Path) -> GgufHeader:
    """Parse a whole GGUF file (versions 2 and 3, little endian). Raises CheckpointError."""
    reader = _Reader(data, path)
    num_tensors, num_keys = _preamble(reader)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.string(MAX_NAME, "a metadata key")
        if key in metadata:
            reader.fail(f"metadata key {key!r} occurs twice")
        metadata[key] = reader.value(reader.scalar("<I"), key)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        reader.fail(f"general.alignment = {reprlib.repr(alignment)} is not a power of two from 8 to 2**20")
    records = [_record(reader) for _ in range(num_tensors)]
    start = -(-reader.pos // alignment) * alignment
    tensors = tuple(_place(reader, record, start, alignment) for record in records)
    _require_distinct(reader, tensors)
    return GgufHeader(metadata=metadata, tensors=tensors)


class _Reader:
    """A cursor over the file that never reads past its end."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path = data, path
        self.pos, self.size = 0, len(data)
        self.elements = 0

    def fail(self, what: str, remedy: str = _REMEDY) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}", remedy)

    def need(self, nbytes: int, what: str) -> None:
        left = self.size - self.pos
        if nbytes > left:
            self.fail(f"{what} needs {nbytes} bytes at byte {self.pos}, but {left} are left")

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        self.need(size, "a number")
        (value,) = struct.unpack_from(code, self.data, self.pos)
        self.pos += size
        return value

    def string(self, limit: int, what: str) -> str:
        length = self.scalar("<Q")
        if length > limit:
            self.fail(f"{what} has {length} bytes, the limit is {limit}")
        self.need(length, what)
        start, self.pos = self.pos, self.pos + length
        try:
            return str(self.data[start : self.pos], "utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} at byte {start} is not UTF-8 ({error.reason})")

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string(MAX_STRING, f"the value of {key!r}")
        if kind != _ARRAY:
            self.fail(f"metadata key {key!r} has the unknown type {kind}")
        if depth >= MAX_DEPTH:
            self.fail(f"metadata key {key!r} nests arrays more than {MAX_DEPTH} deep")
        inner, count = self.scalar("<I"), self.scalar("<Q")
        smallest = 12 if inner == _ARRAY else 8 if inner == _STRING else 1
        if inner in _SCALARS:
            smallest = struct.calcsize(_SCALARS[inner])
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            self.fail(
                f"metadata arrays up to {key!r} hold {self.elements} elements, the limit is {MAX_ELEMENTS}"
            )
        self.need(count * smallest, f"the array {key!r} of {count} elements")
        if inner == _STRING:
            return self.strings(count, key)
        if inner in _SCALARS:
            start, self.pos = self.pos, self.pos + count * smallest
            return np.frombuffer(self.data, _SCALARS[inner].replace("?", "u1"), count, start).tolist()
        return [self.value(inner, key, depth + 1) for _ in range(count)]

    def strings(self, count: int, key: str) -> list[str]:
        """The hot loop: a vocabulary and its merges are 100,000 to 500,000 strings."""
        out: list[str] = []
        data, pos, size, append = self.data, self.pos, self.size, out.append
        length_at = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + length_at(data, pos)[0]
                if pos > size:
                    length = pos - start
                    self.fail(
                        f"a string of {key!r} has {length} bytes at byte {start}, past the end of the file"
                    )
                append(str(data[start:pos], "utf-8"))
        except UnicodeDecodeError as error:
            self.fail(f"string {len(out)} of {key!r} is not UTF-8 ({error.reason})")
        except struct.error:
            self.fail(f"the array {key!r} of {count} strings runs past the end of the file")
        self.pos = pos
        return out


def _preamble(reader: _Reader) -> tuple[int, int]:
    """Check magic and version; return the counts of tensors and of keys."""
    if bytes(reader.data[:4]) != b"GGUF":
        reader.fail(
            f"the file starts with {bytes(reader.data[:4])!r}, not with b'GGUF'", "is it a GGUF file?"
        )
    reader.pos = 4
    version = reader.scalar("<I")
    if version & 0xFFFF == 0:
        reader.fail("the file is big endian, which is not supported", "convert it on a little-endian machine")
    if sys.byteorder != "little":
        reader.fail("GGUF files can be read on little-endian machines only")
    if version not in (2, 3):
        reader.fail(
            f"GGUF version {version} is not supported", "convert the model again: versions 2 and 3 are"
        )
    num_tensors, num_keys = reader.scalar("<Q"), reader.scalar("<Q")
    for count, limit, least, what in (
        (num_keys, MAX_KEYS, 13, "metadata keys"),
        (num_tensors, MAX_TENSORS, 32, "tensors"),
    ):
        if count > limit:
            reader.fail(f"the file claims {count} {what}, the limit is {limit}")
        reader.need(count * least, f"a table of {count} {what}")
    return num_tensors, num_keys


def _record(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, row-major shape, type and offset of the next tensor."""
    name = reader.string(MAX_NAME, "a tensor name")
    dims = reader.scalar("<I")
    if not 1 <= dims <= 4:
        reader.fail(f"tensor {name!r} has {dims} dimensions, outside 1 to 4")
    # GGUF lists the fastest dimension first.
    shape = tuple(reader.scalar("<Q") for _ in range(dims))[::-1]
    return name, shape, reader.scalar("<I"), reader.scalar("<Q")


def _place(
    reader: _Reader, record: tuple[str, tuple[int, ...], int, int], start: int, alignment: int
) -> GgufTensor:
    name, shape, type_id, offset = record
    kind = GGML_TYPES.get(type_id)
    if kind is None:
        known = ", ".join(t.name for t in GGML_TYPES.values())
        named = TYPE_NAMES.get(type_id, "unknown")
        reader.fail(
            f"tensor {name!r} has type {type_id} ({named}), which cannot be read", f"use one of {known}"
        )
    # Python integers do not overflow, so the product is the true one.
    if min(shape) < 1 or prod(shape) > 1 << 40 or shape[-1] % kind.block:
        reader.fail(
            f"tensor {name!r} has shape {shape}, which type {kind.name} (blocks of {kind.block}) cannot have"
        )
    nbytes = prod(shape) // kind.block * kind.nbytes
    if offset % alignment:
        reader.fail(f"tensor {name!r} starts at offset {offset}, not a multiple of the alignment {alignment}")
    if start + offset + nbytes > reader.size:
        reader.fail(
            f"tensor {name!r} takes bytes {start + offset} to {start + offset + nbytes}, "
            f"but the file has {reader.size}",
            _remedy(kind),
        )
    return GgufTensor(name=name, shape=shape, type=kind, offset=start + offset, nbytes=nbytes)


def _require_distinct(reader: _Reader, tensors: tuple[GgufTensor, ...]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            reader.fail(f"tensor {tensor.name!r} occurs twice")
        seen.add(tensor.name)
    ordered = sorted(tensors, key=lambda t: t.offset)
    for first, second in pairwise(ordered):
        if first.offset + first.nbytes > second.offset:
            reader.fail(f"tensors {first.name!r} and {second.name!r} overlap", _remedy(first.type))


def _remedy(kind: GgmlType) -> str:
    # One fork's Q2_0 has groups of 128 under the same number. They take less, which is all that tells.
    return "use a file of llama.cpp's own Q2_0, not one of a fork" if kind.name == "Q2_0" else _REMEDY
