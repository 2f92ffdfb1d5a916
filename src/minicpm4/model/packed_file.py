"""A file of packed matrices, in safetensors format: written, and read without trust into an Arena.

Metadata hold a key (what the file was made for) and each matrix's format. Each array carries the sum of its
64-bit words, taken while they are still in the processor's cache, and the header a digest: what a crash
left half written is found, and no fsync is waited for.

Reading fills huge pages, several threads at a time: decoding from them is faster than from a mapped file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import json_text, parse_json, writing
from minicpm4.formats.quant import PARTS, Layout, PackedTensor, QuantSpec, layout_problem, packed_nbytes
from minicpm4.formats.safetensors_header import Entry, described, make_header, read_header
from minicpm4.machine import logical_cores
from minicpm4.model.arena import Arena

__all__ = ["PackedFile", "checksum", "nbytes", "write"]

PIECE = 8 << 20  # bytes read at a time
READERS = 4  # threads
_MARK, _DIGEST = "minicpm4.weights", "sha256 of the header"

Expected = Callable[[str, QuantSpec, tuple[int, int]], bool]
ShareRead = Callable[[float], None]


def nbytes(tensors: Mapping[str, PackedTensor]) -> int:
    """Bytes of all arrays of ``tensors``."""
    return sum(array.nbytes for array in _arrays(tensors).values())


def write(file: Path, key: Mapping[str, Any], tensors: Mapping[str, PackedTensor]) -> None:
    """Write a whole file, or none. Holds no copy of an array. Raises OSError."""
    arrays = _arrays(tensors)
    metadata = {
        "format": _MARK,
        "key": json_text(key),
        "matrices": json_text(
            {
                name: [tensor.spec.kind, tensor.spec.group_size, *tensor.shape, tensor.layout]
                for name, tensor in tensors.items()
            }
        ),
        "sums": json_text({name: f"{checksum(array):x}" for name, array in arrays.items()}),
    }
    listed = arrays | {_DIGEST: np.empty(32, np.uint8)}
    header = make_header(metadata, {name: described(array) for name, array in listed.items()})
    # The weights may be such as not everybody is to read.
    with writing(file, private=True) as out:
        out.write(header)
        for array in arrays.values():
            out.write(array.reshape(-1).view(np.uint8).data)
        out.write(hashlib.sha256(header).digest())


def _arrays(tensors: Mapping[str, PackedTensor]) -> dict[str, NDArray]:
    return {
        f"{name}.{part}": array for name, tensor in tensors.items() for part, array in tensor.parts.items()
    }


@dataclass(frozen=True, slots=True)
class _Plan:
    """One matrix of a file, checked."""

    spec: QuantSpec
    shape: tuple[int, int]
    layout: Layout
    parts: Mapping[str, str]  # PARTS -> names of their arrays


class PackedFile:
    """An open file whose header is whole and one of these. ``key``: what it was written for. Raises
    CheckpointError, OSError."""

    def __init__(self, data: BinaryIO, file: Path) -> None:
        self._data = data
        size = os.fstat(data.fileno()).st_size
        header = read_header(lambda offset, count: _read_at(data, offset, count), size, file)
        self._entries = dict(header.entries)
        digest = self._entries.pop(_DIGEST, None)
        if digest is None or digest.nbytes != 32:
            raise CheckpointError("it is not a file of kept weights")
        if _read_at(data, digest.offset, 32) != hashlib.sha256(header.raw).digest():
            raise CheckpointError("its header is damaged")
        try:
            metadata = header.metadata
            ours = metadata["format"] == _MARK
            self.key, matrices, sums = (
                parse_json(metadata[name], f"its {name}", CheckpointError)
                for name in ("key", "matrices", "sums")
            )
            self._matrices: dict[str, Any] = dict(matrices)
            self._sums = {str(name): int(text, 16) for name, text in sums.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError("it is not a file of kept weights") from error
        if not ours or self._sums.keys() != self._entries.keys():
            raise CheckpointError("it is not a file of kept weights")

    def read(
        self, arena: Arena, expected: Expected, progress: ShareRead | None = None
    ) -> dict[str, PackedTensor]:
        """All matrices, in ``arena``. ``expected(name, spec, shape)`` says whether the model has a place for
        such a matrix; ``progress`` is called with the share read. Raises CheckpointError, OSError."""
        plans = self._plan(expected)
        arrays: dict[str, NDArray] = {}
        made = {}
        for name, plan in plans.items():
            for one in plan.parts.values():
                arrays[one] = arena.empty(self._entries[one].shape, self._entries[one].array_type)
            made[name] = _tensor(name, plan, arrays)
        sums = _fill(self._data, arrays, self._entries, progress)
        for name, array in arrays.items():
            if sums[name] != self._sums[name]:
                raise CheckpointError(f"the bytes of {name[:100]!r} are damaged")
            if not name.endswith(".codes") and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CheckpointError(f"{name[:100]!r} holds numbers that are not finite")
        return made

    def _plan(self, expected: Expected) -> dict[str, _Plan]:
        """The matrices that the arrays make up; no array is left over. Raises CheckpointError."""
        found, used = {}, 0
        for name, raw in self._matrices.items():
            try:
                kind, group, rows, columns, layout = raw
                if not all(type(number) is int for number in (group, rows, columns)):
                    raise ValueError("a number is not an integer")
                spec, shape = QuantSpec(kind=kind, group_size=group), (rows, columns)
                fits = layout in ("rows", "panels") and expected(name, spec, shape)
            except (TypeError, ValueError, ConfigError) as error:
                raise CheckpointError(f"the entry of {name[:100]!r} is not understood") from error
            parts = {part: f"{name}.{part}" for part in PARTS if f"{name}.{part}" in self._entries}
            if not fits or "codes" not in parts:
                raise CheckpointError(f"{name[:100]!r} is not a matrix of this model")
            # No layout needs twice the bytes: a file must not take more memory than was planned for.
            most = 2 * packed_nbytes(shape, spec, scales="f32", offsets=True) + (1 << 20)
            if sum(self._entries[one].nbytes for one in parts.values()) > most:
                raise CheckpointError(f"{name[:100]!r} is too large for {spec} and {shape}")
            found[name], used = _Plan(spec, shape, layout, parts), used + len(parts)
        if used != len(self._entries):
            raise CheckpointError("it holds arrays that belong to no matrix")
        return found


def checksum(array: NDArray) -> int:
    """The sum of an array's 64-bit words modulo 2^64; zeros fill the last one up."""
    raw = array.reshape(-1).view(np.uint8)
    whole = raw.size // 8 * 8
    last = np.zeros(8, np.uint8)
    last[: raw.size - whole] = raw[whole:]
    total = int(np.add.reduce(raw[:whole].view(np.uint64), dtype=np.uint64))
    return (total + int(last.view(np.uint64)[0])) % (1 << 64)


def _tensor(name: str, plan: _Plan, arrays: Mapping[str, NDArray]) -> PackedTensor:
    parts = {part: arrays[name] for part, name in plan.parts.items()}
    wrong = layout_problem(plan.spec, plan.shape, plan.layout, parts)
    if wrong is not None:
        raise CheckpointError(f"{name[:100]!r}: {wrong}")
    try:
        return PackedTensor(spec=plan.spec, shape=plan.shape, layout=plan.layout, **parts)
    except ConfigError as error:
        raise CheckpointError(f"{name[:100]!r}: {error.condition}") from error


def _fill(
    data: BinaryIO, arrays: Mapping[str, NDArray], places: Mapping[str, Entry], progress: ShareRead | None
) -> dict[str, int]:
    """Read all arrays; return their checksums. Raises CheckpointError, OSError."""
    read = _reader(data)
    jobs = [
        (name, array.reshape(-1).view(np.uint8)[start : start + PIECE], places[name].offset + start)
        for name, array in arrays.items()
        for start in range(0, array.nbytes, PIECE)
    ]
    total = max(1, sum(piece.size for _, piece, _ in jobs))

    def run(job: tuple[str, NDArray[np.uint8], int]) -> int:
        _, piece, offset = job
        read(piece, offset)
        return checksum(piece)

    sums, done = dict.fromkeys(arrays, 0), 0
    threads = min(READERS, logical_cores())
    with ThreadPoolExecutor(threads) as pool:
        try:
            for (name, piece, _), value in zip(jobs, pool.map(run, jobs), strict=True):
                sums[name] = (sums[name] + value) % (1 << 64)
                done += piece.size
                if progress is not None:
                    progress(done / total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sums


def _reader(data: BinaryIO) -> Callable[[NDArray[np.uint8], int], None]:
    """``read(target, offset)`` fills ``target``, from several threads at a time."""
    lock = threading.Lock()

    def some(target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(data.fileno(), [target], offset)
        with lock:  # one position for all threads
            data.seek(offset)
            return data.readinto(target)  # type: ignore[attr-defined]

    def read(target: NDArray[np.uint8], offset: int) -> None:
        view, done = target.data, 0
        while done < len(view):
            count = some(view[done:], offset + done)
            if not count:
                raise CheckpointError("it was cut short while it was read")
            done += count

    return read


def _read_at(data: BinaryIO, offset: int, count: int) -> bytes:
    data.seek(offset)
    read = b""
    while len(read) < count:
        piece = data.read(count - len(read))
        if not piece:
            raise CheckpointError("it was cut short while it was read")
        read += piece
    return read
