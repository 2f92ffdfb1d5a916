"""Write GGUF files (version 3, little endian)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import ConfigError
from minicpm4.files import writing
from minicpm4.formats.ggml_types import GGML_TYPES, encoded
from minicpm4.formats.quant import PackedTensor

__all__ = ["OutTensor", "matrix", "write_gguf"]

_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutTensor:
    """One tensor under its GGUF name: row-major ``shape``, type id, and its bytes in that type, or what
    makes them when it is written: so a model is written with a tensor of it in memory."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    data: NDArray | Callable[[], NDArray]

    @property
    def nbytes(self) -> int:
        """Bytes that shape and type ask for."""
        kind = GGML_TYPES[self.type_id]
        return int(np.prod(self.shape, dtype=np.int64)) // kind.block * kind.nbytes


def matrix(name: str, tensor: PackedTensor, type_id: int) -> OutTensor:
    """A matrix in a type of its format (``encoded``)."""
    kind = GGML_TYPES[type_id]
    return OutTensor(name=name, shape=tensor.shape, type_id=type_id, data=lambda: encoded(tensor, kind))


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Iterable[OutTensor]) -> None:
    """Write a whole GGUF file, or none, a tensor at a time. Metadata values: bool, int, float (as float32),
    str, a list of one of them, or an int32 array, for readers that insist on signed integers.

    Raises ConfigError when a value has no GGUF type, or a tensor's data does not have its size.
    """
    tensors = list(tensors)
    with writing(path) as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            kind, data = _value(key, value)
            file.write(_string(key) + struct.pack("<I", kind) + data)
        offset = 0
        for tensor in tensors:
            dims = tensor.shape[::-1]
            file.write(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", tensor.type_id, offset))
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        for tensor in tensors:
            _pad(file)
            values = tensor.data() if callable(tensor.data) else tensor.data
            if values.nbytes != tensor.nbytes:
                raise ConfigError(
                    f"tensor {tensor.name} has {values.nbytes} bytes, its shape asks for {tensor.nbytes}"
                )
            file.write(np.ascontiguousarray(values).data)
            del values  # before the next are made
        _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> tuple[int, bytes]:
    """Type id and bytes of a metadata value."""
    if isinstance(value, str):
        return _STRING, _string(value)
    if isinstance(value, np.ndarray) and value.dtype == np.int32 and value.ndim == 1:
        return _ARRAY, struct.pack("<IQ", 5, len(value)) + value.astype("<i4").tobytes()
    if isinstance(value, list):
        kind = _common_type(key, value)
        if kind == _STRING:
            body = b"".join(map(_string, value))
        else:
            body = struct.pack(f"<{len(value)}{_CODES[kind]}", *value)
        return _ARRAY, struct.pack("<IQ", kind, len(value)) + body
    kind = _common_type(key, [value])
    return kind, struct.pack(f"<{_CODES[kind]}", value)


_CODES = {4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}


def _common_type(key: str, values: list[Any]) -> int:
    if all(isinstance(v, str) for v in values):
        return _STRING
    if all(isinstance(v, bool) for v in values):
        return 7
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        if low >= 0:
            return 4 if high < 1 << 32 else 10
        return 5 if low >= -(1 << 31) and high < 1 << 31 else 11
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return 6
    raise ConfigError(
        f"metadata {key} = {values!r:.80} has no GGUF type", "use one type of str, bool, int or float"
    )
