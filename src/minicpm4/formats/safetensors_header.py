"""The header of a .safetensors file: 8 bytes of length, a JSON table, then the bytes of all tensors.

Files come from strangers: every length, offset and count is checked before it is used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError

__all__ = ["Entry", "entries", "header_length", "make_header", "parse_header"]

MAX_HEADER = 1 << 25  # bytes; the header of a model of 10,000 tensors takes 1.5 MB
MAX_AXES = 8
ALIGNMENT = 64  # of the data in files written here
REMEDY = "the file is corrupt or was cut short: download it again"
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where one array lies: ``offset`` in bytes from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def header_length(first: bytes, size: int, file: Path) -> int:
    """Bytes of the JSON table of a file of ``size`` bytes that begins with ``first``. Raises
    CheckpointError."""
    if size < 8 or len(first) < 8:
        raise CheckpointError(f"{file} has {size} bytes, too few for a safetensors header", REMEDY)
    (length,) = struct.unpack("<Q", first[:8])
    if length > MAX_HEADER or length > size - 8:
        raise CheckpointError(
            f"{file} claims a header of {length} bytes; it has {size}, the limit is {MAX_HEADER}", REMEDY
        )
    return int(length)


def parse_header(text: bytes, file: Path) -> dict[str, Any]:
    """The JSON table, in which no name occurs twice. Raises CheckpointError."""
    try:
        header = json.loads(text, object_pairs_hook=_distinct)
        if not isinstance(header, dict):
            raise ValueError("it is not a table")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a header that cannot be read: {error}", REMEDY) from error
    return header


def entries(header: Mapping[str, Any], start: int, size: int, file: Path) -> dict[str, Entry]:
    """Arrays of a file of ``size`` bytes whose data begin at ``start``; they fill it without gaps, in the
    table's order. Raises CheckpointError."""
    found, end = {}, 0
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, stop) = DTYPES[raw["dtype"]], tuple(raw["shape"]), raw["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: the entry of {name[:100]!r} is not understood", REMEDY) from error
        whole = len(shape) <= MAX_AXES and all(
            type(number) is int and 0 <= number <= size for number in (*shape, begin, stop)
        )
        if not whole or begin != end or stop - begin != prod(shape) * dtype.itemsize or start + stop > size:
            raise CheckpointError(f"{file}: {name[:100]!r} of shape {shape} does not fit its bytes", REMEDY)
        found[name] = Entry(dtype=dtype, shape=shape, offset=start + begin, nbytes=stop - begin)
        end = stop
    if start + end != size:
        raise CheckpointError(f"{file} has {size} bytes, its header describes {start + end}", REMEDY)
    return found


def make_header(metadata: Mapping[str, str], arrays: Mapping[str, NDArray]) -> bytes:
    """What goes before the bytes of ``arrays``, written one after another in this order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        table[name] = {"dtype": _NAMES[array.dtype], "shape": [*array.shape], "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table
