"""The header of a .safetensors file, read and written: 8 bytes of length, a JSON table, then all the bytes.

Files come from strangers: every length, offset and count is checked before it is used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.files import parse_json

__all__ = ["ARRAY_TYPES", "REMEDY", "Described", "Entry", "Header", "described", "make_header", "read_header"]

MAX_HEADER = 1 << 25  # bytes; the header of a model of 10,000 tensors takes 1.5 MB
MAX_AXES = 8
ALIGNMENT = 64  # of the data, where nobody asks for less
REMEDY = "the file is corrupt or was cut short: download it again"
ARRAY_TYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E5M2": np.uint8,
        "F8_E4M3": np.uint8,
        "F8_E8M0": np.uint8,
        "I16": np.int16,
        "U16": np.uint16,
        "F16": np.float16,
        "BF16": np.uint16,
        "I32": np.int32,
        "U32": np.uint32,
        "F32": np.float32,
        "C64": np.complex64,
        "F64": np.float64,
        "I64": np.int64,
        "U64": np.uint64,
    }.items()
}
"""The arrays that hold each type: raw bits of those that NumPy lacks. In the order in which the format's own
library sorts them."""
_RAW = ("F8_E5M2", "F8_E4M3", "F8_E8M0", "BF16")
_NAMES = {kind: name for name, kind in ARRAY_TYPES.items() if name not in _RAW}


class Described(Protocol):
    """What a header says of a tensor; ``dtype`` is one of ARRAY_TYPES."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where one tensor lies: ``offset`` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def array_type(self) -> np.dtype[Any]:
        return ARRAY_TYPES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A checked header: ``raw`` is all of it, ``metadata`` what the writer put beside the tensors, not
    checked."""

    raw: bytes
    metadata: Any
    entries: Mapping[str, Entry]


def read_header(read: Callable[[int, int], bytes], size: int, file: Path) -> Header:
    """The header of a file of ``size`` bytes, of which ``read(offset, count)`` gives some. Its tensors fill
    the file without gaps. Raises CheckpointError."""
    if size < 8:
        raise CheckpointError(f"{file} has {size} bytes, too few for a safetensors header", REMEDY)
    first = read(0, 8)
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER or length > size - 8:
        raise CheckpointError(
            f"{file} claims a header of {length} bytes; it has {size}, the limit is {MAX_HEADER}", REMEDY
        )
    text = read(8, length)
    try:
        table = parse_json(text, "its header", CheckpointError, distinct=True)
        if not isinstance(table, dict):
            raise CheckpointError(f"its header holds a {type(table).__name__}, not a table")
        metadata = table.pop("__metadata__", {})
        return Header(raw=first + text, metadata=metadata, entries=_entries(table, 8 + length, size))
    except CheckpointError as error:
        raise CheckpointError(f"{file} is not a valid safetensors file: {error.condition}", REMEDY) from error


def _entries(table: Mapping[str, Any], start: int, size: int) -> dict[str, Entry]:
    """Tensors of a file of ``size`` bytes whose data begin at ``start``."""
    found = {}
    for name, raw in table.items():
        try:
            dtype, shape, (begin, stop) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
            width = ARRAY_TYPES[dtype].itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the entry of {name[:100]!r} is not understood") from error
        whole = len(shape) <= MAX_AXES and all(
            type(number) is int and 0 <= number <= size for number in (*shape, begin, stop)
        )
        if not whole or stop - begin != prod(shape) * width or start + stop > size:
            raise CheckpointError(f"{name[:100]!r} of shape {str(shape)[:100]} does not fit its bytes")
        found[name] = Entry(dtype=dtype, shape=shape, offset=start + begin, nbytes=stop - begin)
    end = start
    for name, entry in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            raise CheckpointError(f"the bytes of {name[:100]!r} do not follow those before them")
        end += entry.nbytes
    if end != size:
        raise CheckpointError(f"it has {size} bytes, its header describes {end}")
    return found


@dataclass(frozen=True, slots=True)
class _Array:
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def described(array: NDArray) -> Described:
    """What a header says of ``array``."""
    return _Array(_NAMES[array.dtype], array.shape, array.nbytes)


def make_header(
    metadata: Mapping[str, str], tensors: Mapping[str, Described], alignment: int = ALIGNMENT
) -> bytes:
    """What goes before the bytes of ``tensors``, written one after another in this order; these begin at a
    multiple of ``alignment``."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, one in tensors.items():
        start, end = end, end + one.nbytes
        table[name] = {"dtype": one.dtype, "shape": [*one.shape], "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    return struct.pack("<Q", len(text)) + text
