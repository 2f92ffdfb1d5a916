"""Hugging Face folders: config.json and one or more .safetensors files, mapped, never copied."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config.model import read_hf_config
from minicpm4.config.strict import shown
from minicpm4.errors import CheckpointError
from minicpm4.files import read_checksums, read_json
from minicpm4.formats.checkpoint import TensorInfo
from minicpm4.formats.kinds import float_kinds
from minicpm4.formats.mapping import MappedFile
from minicpm4.formats.names import hf_name, is_ignorable
from minicpm4.formats.packing import as_codes, unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.formats.quantised import Layout, QuantisedMatrix, layout_of, mlx_layout
from minicpm4.formats.safetensors_header import REMEDY, Entry, read_header

__all__ = ["SafetensorsCheckpoint", "StoredTensor", "open_tensors", "read_index", "stored_matrix"]

logger = logging.getLogger("minicpm4")

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MAX_INDEX = 1 << 25
MAX_SHARDS = 1000
_SPECS = {row.file: QuantSpec(kind=name) for name, row in float_kinds().items()}
_SPECS["F64"] = _SPECS["F32"]  # rounded as it is loaded


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a mapped file."""

    file: MappedFile
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def view(self) -> NDArray:
        """Its values, where they lie, or a copy where they lie at an odd place."""
        raw, kind = self.file.view(self.entry.offset, self.entry.nbytes), self.entry.array_type
        if self.entry.offset % kind.itemsize:
            raw = raw.copy()  # an odd header length: kernels want aligned numbers
        return raw.view(kind).reshape(self.shape)

    def release(self) -> None:
        """Let the system drop its mapped pages."""
        self.file.release(self.entry.offset, self.entry.nbytes)


def stored_matrix(stored: StoredTensor, name: str, shape: tuple[int, int]) -> PackedTensor:
    """A tensor of floats as a matrix of ``shape``, a view into its file. Raises CheckpointError."""
    spec = _info(name, stored).spec
    return PackedTensor(spec=spec, shape=shape, codes=as_codes(stored.view().reshape(shape), spec))


class SafetensorsCheckpoint:
    """A model folder (see formats/checkpoint.py for the protocol).

    Names of tensors become those of a whole model (``hf_name``). Raises CheckpointError for corrupt files,
    missing shards, quantised or pickled checkpoints.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_adapter(path)
        self._config = read_hf_config(path)
        self._stored: dict[str, StoredTensor] = {}
        shards = _shards(path)
        self.files = tuple(shards)
        for file, names in shards.items():
            self._add(file, names)
        layout = _layout(path, self._config, self._stored)
        if layout is not None:  # the same tensors are other weights by another configuration
            self.files += (path / "config.json",)
        self._quantised = {} if layout is None else self._collect(layout)
        self.tensors = {
            name: _info(name, stored)
            for name, stored in self._stored.items()
            if stored.entry.dtype in _SPECS or not is_ignorable(name)
        } | {name: _quantised_info(matrix) for name, matrix in self._quantised.items()}

    def hf_config(self) -> dict[str, Any] | None:
        """config.json with generation_config.json's end tokens merged in."""
        return dict(self._config)

    def metadata(self) -> Mapping[str, Any]:
        """Empty: only GGUF files have metadata."""
        return {}

    def load(self, name: str) -> PackedTensor:
        """Return a matrix as a view into the file, or, where it is quantised, in arrays of its own."""
        if name in self._quantised:
            try:
                return self._quantised[name].load()
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: {error.condition}", error.remedy) from error
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
        (self._quantised.get(name) or self._get(name)).release()

    def _get(self, name: str) -> StoredTensor:
        if name not in self._stored:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._stored[name]

    def _view(self, name: str, stored: StoredTensor, shape: tuple[int, int]) -> PackedTensor:
        spec = self.tensors[name].spec
        return PackedTensor(spec=spec, shape=shape, codes=as_codes(stored.view().reshape(shape), spec))

    def _collect(self, layout: Layout) -> dict[str, QuantisedMatrix]:
        """Take the tensors of quantised matrices out of the others. Raises CheckpointError."""
        found: dict[str, QuantisedMatrix] = {}
        for marked in [name for name in self._stored if name.endswith(f".{layout.mark}")]:
            stem = marked.removesuffix(layout.mark)
            lasts = [layout.mark, *(last for last in sorted(layout.others) if stem + last in self._stored)]
            parts = {last: self._stored.pop(stem + last) for last in lasts}
            try:
                made = layout.matrices(f"{stem}weight", parts)
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: {error.condition}", error.remedy) from error
            for name in made:
                if name in self._stored or name in found:
                    raise CheckpointError(f"{self.path} holds {name} twice: quantised, and as it was")
            found |= made
        self._tell_scattered(list(found.values()))
        return found

    def _tell_scattered(self, matrices: Sequence[QuantisedMatrix]) -> None:
        """Say which matrices take far more memory than their files, and what makes them small again."""
        wide = [one for one in matrices if one.scattered]
        if wide:
            logger.warning(
                "%s: %d of %d quantised matrices are in act-order (%s is the first): groups that are not "
                "neighbours have no kernel, so these are held in float32, every value as it is. minicpm4 "
                "convert --weights int4 makes them small again, which rounds them once more",
                self.path,
                len(wide),
                len(matrices),
                wide[0].name,
            )

    def _add(self, file: Path, names: frozenset[str] | None) -> None:
        """Add the tensors of ``file``; ``names``: those that the index expects in it."""
        found = open_tensors(file)
        missing = sorted(names - found.keys()) if names is not None else []
        if missing:
            raise CheckpointError(
                f"{file} lacks tensor {missing[0]} that {_index_of(self.path)} promises", REMEDY
            )
        for own, stored in found.items():
            name = hf_name(own)
            if name in self._stored:
                raise CheckpointError(
                    f"tensor {own} is in {self._stored[name].file.path.name} and in {file.name}"
                    + ("" if own == name else f", as {name}")
                )
            self._stored[name] = stored


def _refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError where ``folder`` holds an adapter (peft's) alone; beside a model it is told that
    nothing reads it."""
    if not (folder / ADAPTER).is_file():
        return
    if any(not file.name.startswith("adapter") for file in folder.glob("*.safetensors")):
        logger.warning("%s: %s is not read: the model runs without the adapter", folder, ADAPTER)
        return
    base = read_json(folder / ADAPTER, MAX_INDEX, CheckpointError, REMEDY).get("base_model_name_or_path")
    raise CheckpointError(
        f"{folder} holds an adapter{f' of {base:.100}' if isinstance(base, str) else ''}, not a model",
        "merge the two elsewhere (peft's merge_and_unload), and save the whole model",
    )


def _layout(folder: Path, config: dict[str, Any], names: Collection[str]) -> Layout | None:
    """How the weights of ``folder``, tensors ``names``, are quantised; None: they are not. Raises
    CheckpointError."""
    found, mlx = config.pop("quantization_config", None), config.pop("quantization", None)
    if not found and not mlx:
        return None
    try:
        if not mlx:
            return layout_of(dict_or_empty(found), config, names)
        # Its own tools write the same in both fields.
        if "quant_method" in dict_or_empty(found):
            raise CheckpointError(
                "config.json describes weights in quantization and others in quantization_config",
                "remove the one that is not true",
            )
        return mlx_layout(dict_or_empty(mlx))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error.condition}", error.remedy) from error


def dict_or_empty(value: Any) -> dict[str, Any]:
    """``value`` if it is a table, else an empty one."""
    return value if isinstance(value, dict) else {}


def _quantised_info(matrix: QuantisedMatrix) -> TensorInfo:
    loaded = packed_nbytes(matrix.shape, matrix.spec, scales="f32", offsets=True)
    return TensorInfo(
        shape=matrix.shape,
        dtype=matrix.entry_type,
        nbytes=matrix.nbytes,
        spec=matrix.spec,
        loaded_nbytes=loaded,
        narrows=matrix.narrows,
    )


def _info(name: str, stored: StoredTensor) -> TensorInfo:
    dtype, nbytes = stored.entry.dtype, stored.entry.nbytes
    spec = _SPECS.get(dtype)
    if spec is None:
        raise CheckpointError(
            f"{stored.file.path}: tensor {name} has type {dtype}, which cannot be read",
            "convert the checkpoint to " + ", ".join(_SPECS),
        )
    loaded = nbytes // stored.entry.array_type.itemsize * spec.row.codes.itemsize
    return TensorInfo(shape=stored.shape, dtype=dtype, nbytes=nbytes, spec=spec, loaded_nbytes=loaded)


def _shards(folder: Path) -> dict[Path, frozenset[str] | None]:
    """The folder's weight files, each with the tensors it must hold (None: not told)."""
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    index = _index_of(folder)
    if (folder / index).is_file():
        return read_index(folder, index)
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


def _index_of(folder: Path) -> str:
    """The name of its index: the usual one, or of a folder that calls its only set of files otherwise its."""
    named = sorted(file.name for file in folder.glob("*.safetensors.index.json"))
    return named[0] if len(named) == 1 else INDEX


def read_index(folder: Path, name: str = INDEX) -> dict[Path, frozenset[str] | None]:
    """The files that the index ``name`` of ``folder`` lists, with the tensors it puts into each. Raises
    CheckpointError."""
    index = folder / name
    weight_map = read_json(index, MAX_INDEX, CheckpointError, REMEDY).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", REMEDY)
    names: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        # A plain name: no folder, no drive, no parent, on any system.
        if (
            not isinstance(file, str)
            or not file.endswith(".safetensors")
            or set(file) & set("/\\:\0")
            or len(file) > 200
        ):
            raise CheckpointError(
                f"{index} puts {shown(tensor)} into {shown(file)}, which is not a .safetensors file beside it"
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


def open_tensors(file: Path) -> dict[str, StoredTensor]:
    """Map ``file`` and return its tensors, whose bytes are held to the checksums beside it, where there are
    any, as they are read. Raises CheckpointError."""
    mapped = MappedFile(file, read_checksums(file.parent).get(file.name))
    header = read_header(lambda offset, count: mapped.view(offset, count).tobytes(), mapped.size, file)
    return {name: StoredTensor(file=mapped, entry=entry) for name, entry in header.entries.items()}
