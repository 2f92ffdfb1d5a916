"""A model that was made small, as it is kept on disk until all of it is done, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.files import write_json
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.kernels.layer_weights import StoredKV
from minicpm4.model.arena import Arena
from minicpm4.model.packed_file import PackedFile, write
from minicpm4.model.stored_prefix import StoredPrefix
from minicpm4.quantize.options import parse_format
from minicpm4.quantize.parts import shapes_of, stem_of, stems_of
from minicpm4.quantize.stored import is_stored, stored_of
from minicpm4.quantize.work import remove_work

__all__ = ["LayerReport", "Rounded"]


@dataclass(slots=True)
class LayerReport:
    """What became of a matrix: its format, how (a method, of GPTQ's with "s-" where smoothing helped; "too
    few rows: rtn"), and its output error (see ``output_error``), of embeddings and head, and where nothing
    was calibrated, the error of its values; None: not known any more."""

    name: str
    format: str
    how: str
    error: float | None

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        spec = parse_format(self.format)
        assert spec is not None
        columns = max(1, spec.group_size) * spec.row.columns
        return 8 * packed_nbytes((1, columns), spec) / columns


@dataclass(slots=True, eq=False)
class Rounded:
    """A model that was made small, on disk in ``folder``, a file a layer."""

    config: ModelConfig
    folder: Path
    key: Mapping[str, Any]
    rows: list[LayerReport] = field(default_factory=list)

    @property
    def stems(self) -> list[str]:
        """Names of its files, without their ending."""
        return stems_of(self.config)

    def part(self, stem: str) -> dict[str, PackedTensor]:
        """Tensors of one file by their full names, vectors as matrices of a row. Raises CheckpointError."""
        return {name: one for name, one in self._read(stem).items() if not is_stored(name)}

    def _read(self, stem: str) -> dict[str, PackedTensor]:
        file = self.folder / f"{stem}.safetensors"
        try:
            with file.open("rb") as data:
                found = PackedFile(data, file)
                if found.key != dict(self.key):
                    raise CheckpointError(f"{file} belongs to another conversion", "remove the folder")
                wanted = shapes_of(self.config, stem)

                def fits(name: str, spec: QuantSpec, shape: tuple[int, int]) -> bool:
                    if name in wanted and len(wanted[name]) == 1:  # codes of a vector are its values
                        return spec.kind == "f32" and shape == (1, *wanted[name])
                    return is_stored(name) or shape == wanted.get(name)

                tensors = found.read(Arena(), fits)
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error}") from error
        lacks = wanted.keys() - tensors.keys()
        if lacks:
            raise CheckpointError(f"{file} lacks {min(lacks)}", "remove the folder")
        return tensors

    def begun(self) -> int:
        """How many layers, the first and those that follow, an earlier run seems to have written: nothing of
        them is read."""
        for index in range(self.config.num_hidden_layers):
            file = self.folder / f"{stem_of(index)}.safetensors"
            try:
                with file.open("rb") as data:
                    if PackedFile(data, file).key != dict(self.key):
                        return index
            except (CheckpointError, OSError):
                return index
        return self.config.num_hidden_layers

    def save(
        self, stem: str, tensors: Mapping[str, PackedTensor], report: tuple[Path, Any] | None = None
    ) -> None:
        """Write one file, and what is to be told of it. Raises CheckpointError."""
        try:
            if report is not None:  # first: of a layer that is there, its report is, too
                write_json(*report)
            write(self.folder / f"{stem}.safetensors", self.key, tensors)
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self.folder}: {error}", "check its free space"
            ) from error

    def layer(self, index: int) -> dict[str, PackedTensor]:
        """Tensors of a layer, by their full names. Raises CheckpointError."""
        return self.part(stem_of(index))

    def stored(self, index: int) -> StoredKV | None:
        """What is stored of a layer's prefix. Raises CheckpointError."""
        return stored_of(self._read(stem_of(index)), self.config)

    def stored_prefix(self, ids: Sequence[int]) -> StoredPrefix | None:
        """The stored prefix of the tokens ``ids``; None where there are none. Raises CheckpointError."""
        if not ids:
            return None
        each = [self.stored(index) for index in range(self.config.num_hidden_layers)]
        keys, values = (np.stack([getattr(one, name) for one in each]) for name in ("keys", "values"))
        return StoredPrefix(ids=tuple(ids), keys=keys, values=values)

    def remove(self) -> None:
        """Nothing of it is needed any more."""
        remove_work(self.folder)
