"""GGUF checkpoints: tensors by their Hugging Face names, in our packed layout."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.gguf import same_in_layers
from minicpm4.errors import CheckpointError
from minicpm4.files.gguf_parts import parts_of
from minicpm4.formats.checkpoint import TensorInfo
from minicpm4.formats.gguf_parse import GgufHeader, GgufTensor, parse_gguf
from minicpm4.formats.mapping import MappedFile
from minicpm4.formats.names import gguf_to_hf
from minicpm4.formats.packing import as_codes, row_slices, unpack, wider
from minicpm4.formats.quant import PackedTensor, ScaleForm, packed_nbytes, packed_shapes

__all__ = ["GgufCheckpoint", "heads_in_pairs", "pairs_of_rows"]

# Converters store the q and k rows of these in interleaved rotary order.
_INTERLEAVED = ("llama", "minicpm")
_HEAD_COUNTS = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}


def heads_in_pairs(arch: str, name: str) -> str | None:
    """The key, after the architecture, that counts the heads of a tensor whose rows a file of ``arch`` has as
    ``pairs_of_rows`` tells; None: its rows are in order."""
    key = next((k for part, k in _HEAD_COUNTS.items() if f".self_attn.{part}." in name), None)
    return key if arch in _INTERLEAVED else None


def pairs_of_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """Which row of such a file is each row of the matrix."""
    # Stored row (head, i, half) is row (head, half, i): rotary pairs lie side by side in the file.
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


class GgufCheckpoint:
    """A .gguf file, or all parts of a model that is split, of which ``path`` is one (for the protocol see
    formats/checkpoint.py). Raises CheckpointError."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        parts = _parts(path)
        self.path, self.files = parts[0][0].path, tuple(file.path for file, _ in parts)
        self._metadata = parts[0][1].metadata
        self._records: dict[str, GgufTensor] = {}
        self._places: dict[str, MappedFile] = {}
        for file, header in parts:
            for record in header.tensors:
                name = gguf_to_hf(record.name)
                if name in self._records:
                    raise CheckpointError(
                        f"{file.path}: tensors {record.name!r} and {name!r} are the same weight"
                        + (
                            ""
                            if self._places[name] is file
                            else f", the other in {self._places[name].path.name}"
                        )
                    )
                self._records[name], self._places[name] = record, file
        self.tensors = {name: _info(record) for name, record in self._records.items()}

    def hf_config(self) -> dict[str, Any] | None:
        """None: a GGUF file has metadata instead."""
        return None

    def metadata(self) -> Mapping[str, Any]:
        """Key-value metadata; arrays are lists."""
        return self._metadata

    def load(self, name: str) -> PackedTensor:
        """Return a matrix: float types as views (q and k of llama files excepted), the others repacked."""
        record = self._record(name)
        if len(record.shape) != 2:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {record.shape}, it is not a matrix")
        return self._load(
            name, record, (record.shape[0], record.shape[1]), self._row_order(name, record.shape[0])
        )

    def load_vector(self, name: str) -> NDArray[np.float32]:
        """Return a one-dimensional tensor as float32 (a copy)."""
        record = self._record(name)
        if len(record.shape) != 1:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {record.shape}, it is not a vector")
        length = record.shape[0]
        vector = unpack(self._load(name, record, (1, length), None))[0]
        order = self._row_order(name, length)
        if not np.isfinite(vector).all():
            raise CheckpointError(f"{self.path}: tensor {name} holds a value that is not finite")
        return vector if order is None else vector[order]

    def release(self, name: str) -> None:
        """Let the system drop the mapped pages of a tensor."""
        record = self._record(name)
        self._places[name].release(record.offset, record.nbytes)

    def _record(self, name: str) -> GgufTensor:
        if name not in self._records:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._records[name]

    def _row_order(self, name: str, rows: int) -> NDArray[np.intp] | None:
        """Which stored row is each row of q_proj and k_proj; None where rows are in order."""
        arch = str(self._metadata.get("general.architecture"))
        key = heads_in_pairs(arch, name)
        if key is None:
            return None
        default = same_in_layers(self._metadata, f"{arch}.attention.head_count")
        heads = same_in_layers(self._metadata, f"{arch}.{key}", default)
        if type(heads) is not int or heads < 1 or rows % (2 * heads):
            raise CheckpointError(
                f"{self.path}: {arch}.{key} = {reprlib.repr(heads)} does not divide the {rows} rows of {name}"
            )
        return pairs_of_rows(rows, heads)

    def _load(
        self, name: str, record: GgufTensor, shape: tuple[int, int], order: NDArray[np.intp] | None
    ) -> PackedTensor:
        raw = self._places[name].view(record.offset, record.nbytes)
        kind, spec = record.type, record.type.spec
        if kind.decode is None:
            codes = as_codes(raw.view(kind.stored or spec.row.codes).reshape(shape), spec)
            return PackedTensor(spec=spec, shape=shape, codes=codes if order is None else codes[order])
        rows, columns = shape
        blocks = raw.reshape(rows, -1, kind.nbytes)
        shapes = packed_shapes(shape, spec, "rows")
        parts: dict[str, Any] = {part: np.empty(shapes[part], dtype) for part, dtype in kind.types.items()}
        for part in row_slices(rows, columns):
            try:
                decoded = kind.decode(blocks[part if order is None else order[part]])
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: tensor {name}: {error.condition}") from error
            for one, array in parts.items():
                array[part] = decoded[one]
        if not all(np.isfinite(array).all() for array in parts.values() if array.dtype.kind == "f"):
            raise CheckpointError(
                f"{self.path}: tensor {name} has a scale that is not finite",
                "the file is corrupt: download it again",
            )
        return PackedTensor(spec=spec, shape=shape, **parts)


def _parts(path: Path) -> list[tuple[MappedFile, GgufHeader]]:
    """The mapped files of the model that ``path`` is, or is a part of, with their headers."""
    file = MappedFile(path)
    header = parse_gguf(file.buffer(), path)
    count = header.metadata.get("split.count", 1)
    if type(count) is int and count in (0, 1):
        return [(file, header)]
    names = parts_of(path.name)
    if type(count) is not int or len(names) != count:
        raise CheckpointError(
            f"{path} is one of {reprlib.repr(count)} parts of a split model, but is not called so",
            "give all parts the names that they were made with (NAME-00001-of-00003.gguf), "
            "or merge them with llama-gguf-split --merge",
        )
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} is one of {count} parts, {len(missing)} of them missing, the first is {missing[0]}",
            "download them into the same folder",
        )
    found = []
    for name in names:
        other = path.parent / name
        file = MappedFile(other)
        found.append((file, parse_gguf(file.buffer(), other)))
    _check_parts(found)
    return found


def _check_parts(parts: list[tuple[MappedFile, GgufHeader]]) -> None:
    remedy = "download all parts from one place"
    for number, (file, header) in enumerate(parts):
        said = [header.metadata.get(f"split.{key}") for key in ("no", "count")]
        if said != [number, len(parts)]:
            own, count = map(reprlib.repr, said)
            raise CheckpointError(
                f"{file.path} says that it is part {own} (from 0) of {count}"
                f", its name that it is part {number} of {len(parts)}",
                remedy,
            )
    wanted = parts[0][1].metadata.get("split.tensors.count")
    found = sum(len(header.tensors) for _, header in parts)
    if wanted is not None and wanted != found:
        raise CheckpointError(
            f"{parts[0][0].path} and its other parts hold {found} tensors, split.tensors.count is "
            f"{reprlib.repr(wanted)}",
            remedy,
        )


def _info(record: GgufTensor) -> TensorInfo:
    kind = record.type
    shape = (record.nbytes // kind.nbytes, kind.block)  # as many weights, whatever the dimensions
    wide, widened = wider(kind.spec), 0
    if kind.spec.group_size == 0:
        loaded = record.nbytes // kind.nbytes * kind.spec.row.codes.itemsize
    else:
        loaded = packed_nbytes(shape, kind.spec, scales=kind.scales, offsets=kind.offsets)
        form: ScaleForm = "f32" if "steps" in kind.scales else kind.scales
        widened = packed_nbytes(shape, wide, scales=form, offsets=kind.offsets)
    return TensorInfo(
        shape=record.shape,
        dtype=kind.name,
        nbytes=record.nbytes,
        spec=kind.spec,
        loaded_nbytes=loaded,
        narrows=kind.narrows,
        wide_nbytes=widened if (wide, widened) != (kind.spec, loaded) else 0,
    )
