"""Hugging Face folders: config.json and one or more .safetensors files, mapped, never copied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.model import read_hf_config
from minicpm4.errors import CheckpointError
from minicpm4.formats.checkpoint import TensorInfo
from minicpm4.formats.mapping import MappedFile
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import CODE_DTYPES, PackedTensor, QuantSpec
from minicpm4.formats.safetensors_header import REMEDY, header_length, parse_header

__all__ = ["SafetensorsCheckpoint", "read_index"]

INDEX = "model.safetensors.index.json"
MAX_INDEX = 1 << 25
MAX_SHARDS = 1000
_SPECS = {"F32": QuantSpec(kind="f32"), "F16": QuantSpec(kind="f16"), "BF16": QuantSpec(kind="bf16")}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """Where one tensor lies: ``offset`` in bytes from the start of ``file``."""

    file: MappedFile
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


class SafetensorsCheckpoint:
    """A model folder (see formats/checkpoint.py for the protocol).

    Raises CheckpointError for corrupt files, missing shards, quantised or pickled checkpoints.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config = read_hf_config(path)
        if self._config.get("quantization_config"):
            method = dict_or_empty(self._config["quantization_config"]).get("quant_method", "unknown")
            raise CheckpointError(
                f"{path} holds weights quantised by {method}, which cannot be read yet",
                "use the original checkpoint, or a GGUF file of the model",
            )
        self._stored: dict[str, _Stored] = {}
        shards = _shards(path)
        self.files = tuple(shards)
        for file, names in shards.items():
            self._add(file, names)
        self.tensors = {name: _info(name, stored) for name, stored in self._stored.items()}

    def hf_config(self) -> dict[str, Any] | None:
        """config.json with generation_config.json's end tokens merged in."""
        return dict(self._config)

    def metadata(self) -> Mapping[str, Any]:
        """Empty: only GGUF files have metadata."""
        return {}

    def load(self, name: str) -> PackedTensor:
        """Return a matrix as a view into the file."""
        stored = self._get(name)
        if len(stored.shape) != 2:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {stored.shape}, it is not a matrix")
        return self._view(name, stored, (stored.shape[0], stored.shape[1]))

    def load_vector(self, name: str) -> NDArray[np.float32]:
        """Return a one-dimensional tensor as float32 (a copy)."""
        stored = self._get(name)
        if len(stored.shape) != 1:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {stored.shape}, it is not a vector")
        vector = unpack(self._view(name, stored, (1, stored.shape[0])))[0]
        if not np.isfinite(vector).all():
            raise CheckpointError(f"{self.path}: tensor {name} holds a value that is not finite")
        return vector

    def release(self, name: str) -> None:
        """Let the system drop the mapped pages of a tensor."""
        stored = self._get(name)
        stored.file.release(stored.offset, stored.nbytes)

    def _get(self, name: str) -> _Stored:
        if name not in self._stored:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._stored[name]

    def _view(self, name: str, stored: _Stored, shape: tuple[int, int]) -> PackedTensor:
        spec = self.tensors[name].spec
        raw = stored.file.view(stored.offset, stored.nbytes)
        dtype = CODE_DTYPES[spec.kind]
        if stored.offset % dtype.itemsize:
            raw = raw.copy()  # an odd header length: kernels want aligned numbers
        return PackedTensor(spec=spec, shape=shape, codes=raw.view(dtype).reshape(shape))

    def _add(self, file: Path, names: frozenset[str] | None) -> None:
        """Add the tensors of ``file``; ``names``: those that the index expects in it."""
        found = read_header(file)
        missing = sorted(names - found.keys()) if names is not None else []
        if missing:
            raise CheckpointError(f"{file} lacks tensor {missing[0]} that {INDEX} promises", REMEDY)
        for name, stored in found.items():
            if name in self._stored:
                raise CheckpointError(
                    f"tensor {name} is in {self._stored[name].file.path.name} and in {file.name}"
                )
            self._stored[name] = stored


def dict_or_empty(value: Any) -> dict[str, Any]:
    """``value`` if it is a table, else an empty one."""
    return value if isinstance(value, dict) else {}


def _info(name: str, stored: _Stored) -> TensorInfo:
    spec = _SPECS.get(stored.dtype)
    if spec is None:
        raise CheckpointError(
            f"{stored.file.path}: tensor {name} has type {stored.dtype}, which cannot be read",
            "convert the checkpoint to F32, F16 or BF16",
        )
    return TensorInfo(
        shape=stored.shape, dtype=stored.dtype, nbytes=stored.nbytes, spec=spec, loaded_nbytes=stored.nbytes
    )


def _shards(folder: Path) -> dict[Path, frozenset[str] | None]:
    """The folder's weight files, each with the tensors it must hold (None: not told)."""
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    if (folder / INDEX).is_file():
        return read_index(folder)
    loose = sorted(folder.glob("*.safetensors"))
    if len(loose) == 1:
        return {loose[0]: None}
    if loose:
        raise CheckpointError(
            f"{folder} has {len(loose)} .safetensors files but no {INDEX}", "download the index with them"
        )
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} holds its weights pickled ({pickled[0]}), and unpickling can run any code",
            "convert it to safetensors: load it with transformers elsewhere, then save_pretrained",
        )
    raise CheckpointError(f"{folder} holds no .safetensors file", "download the model's weights into it")


def read_index(folder: Path, name: str = INDEX) -> dict[Path, frozenset[str] | None]:
    """The files that the index ``name`` of ``folder`` lists, with the tensors it puts into each. Raises
    CheckpointError."""
    index = folder / name
    try:
        if index.stat().st_size > MAX_INDEX:
            raise CheckpointError(f"{index} is larger than {MAX_INDEX} bytes")
        raw = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {index}: {error}", REMEDY) from error
    weight_map = dict_or_empty(raw).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", REMEDY)
    names: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        # A plain name: no folder, no drive, no parent, on any system.
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            raise CheckpointError(
                f"{index} puts {tensor} into {file!r}, which is not a .safetensors file beside it"
            )
        names.setdefault(file, set()).add(tensor)
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} files, the limit is {MAX_SHARDS}")
    missing = sorted(file for file in names if not (folder / file).is_file())
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, the first is {missing[0]}",
            "download the rest of the model",
        )
    return {folder / file: frozenset(tensors) for file, tensors in sorted(names.items())}


def read_header(file: Path) -> dict[str, _Stored]:
    """Map ``file`` and return its tensors. Raises CheckpointError."""
    mapped = MappedFile(file)
    length = header_length(mapped.view(0, min(8, mapped.size)).tobytes(), mapped.size, file)
    _validate(file)
    header = parse_header(mapped.view(8, length).tobytes(), file)
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        stored = _Stored(
            file=mapped, shape=shape, dtype=entry["dtype"], offset=8 + length + start, nbytes=end - start
        )
        width = CODE_DTYPES[_SPECS[stored.dtype].kind].itemsize if stored.dtype in _SPECS else 0
        if stored.offset + stored.nbytes > mapped.size or (width and prod(shape) * width != stored.nbytes):
            raise CheckpointError(f"{file}: tensor {name} of shape {shape} does not fit its bytes", REMEDY)
        found[name] = stored
    return found


def _validate(file: Path) -> None:
    """Let the format's own library check header, sizes and offsets."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a valid safetensors file: {error}", REMEDY) from error
