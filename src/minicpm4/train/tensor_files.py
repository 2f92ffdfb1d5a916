"""Tensors in safetensors files, written and read by all processes of a run, each its part.

Writing: every tensor has one owner, by its place in order and its bytes (``planned``). To gather what is
sharded takes all processes; the owner alone keeps the result, on the CPU, a file of it at a time. One file
is called STEM.safetensors, several STEM-00001-of-0000N.safetensors with STEM.safetensors.index.json, as on
the Hugging Face hub: which of them a tensor is in is nobody's business but the index's, so a checkpoint is
read by any number of processes.

Reading: ``Stored`` opens files and reads nothing; ``fill`` reads the rows that a process holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from minicpm4.errors import CheckpointError
from minicpm4.formats import safetensors_write
from minicpm4.formats.safetensors import StoredTensor
from minicpm4.formats.safetensors_header import described
from minicpm4.formats.safetensors_write import Check, File, planned, write_index, write_safetensors
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.train.saved import REMEDY, stored
from minicpm4.train.world import World

__all__ = [
    "Lazy",
    "Stored",
    "add",
    "fill",
    "gathered",
    "torch_source",
    "write_file",
    "write_tensors",
]


def write_tensors(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    world: World | None = None,
    check: Check | None = None,
) -> None:
    """Write ``tensors`` into ``folder``, which is there; all processes call it. ``check`` sees each tensor
    whole, in its owner. Raises, in all processes, OSError or CheckpointError."""
    world = world or World()
    sizes = {name: _nbytes(tensor) for name, tensor in tensors.items()}
    files = planned(stem, sizes, world.size, safetensors_write.MAX_FILE)
    error: Exception | None = None
    for together in _rounds(files):
        own: dict[str, Tensor] = {}
        for file in together:
            for name in file.tensors:
                whole = gathered(tensors[name])
                if file.owner == world.rank and error is None:
                    own[name] = whole.cpu().contiguous()
        # Whoever fails goes on gathering: the others need it.
        mine = [file for file in together if file.owner == world.rank]
        if mine and error is None:
            try:
                write_file(folder / mine[0].name, own, check)
            except (OSError, CheckpointError) as found:
                error = found
    world.agree(error)
    if len(files) > 1:
        world.first(lambda: write_index(folder, stem, files, sizes))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # of a DTensor: of all processes


def _rounds(files: list[File]) -> Iterator[list[File]]:
    """Files in sets of at most one for each owner, which write them at the same time."""
    waiting = list(files)
    while waiting:
        first = {file.owner: file for file in reversed(waiting)}
        yield list(first.values())
        waiting = [file for file in waiting if first[file.owner] is not file]


def write_file(file: Path, tensors: Mapping[str, Tensor], check: Check | None = None) -> None:
    """Write one whole file of ``tensors``, on CPUs; see ``write_safetensors``. Raises OSError,
    CheckpointError."""
    write_safetensors(file, {name: torch_source(tensor) for name, tensor in tensors.items()}, check)


def torch_source(tensor: Tensor) -> TensorSource:
    """A tensor in memory, on the CPU, as what writers read."""
    if tensor.dtype == torch.bfloat16:
        raw: NDArray = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return TensorSource(shape=raw.shape, dtype="BF16", make=lambda: raw)
    array: NDArray = tensor.numpy()
    return TensorSource(shape=array.shape, dtype=described(array).dtype, make=lambda: array)


def gathered(tensor: Tensor) -> Tensor:
    """A tensor whole, where it lies; all processes call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


class Lazy:
    """A tensor in a file, not read yet."""

    def __init__(self, stored: StoredTensor) -> None:
        self._stored = stored
        self.shape = torch.Size(stored.shape)

    def read(self, rows: slice = slice(None)) -> Tensor:
        """The tensor, or some of its rows. Raises CheckpointError where it is damaged."""
        try:
            view = self._stored.view()
        except CheckpointError as error:
            raise CheckpointError(f"a checkpoint is damaged: {error.condition}", REMEDY) from error
        found = torch.from_numpy(np.array(view[rows] if self.shape else view))
        return found.view(torch.bfloat16) if self._stored.entry.dtype == "BF16" else found


class Stored(Mapping[str, Lazy]):
    """The tensors that ``write_tensors`` left in ``folder`` under ``stem``. Raises CheckpointError."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._found = {name: Lazy(one) for name, one in stored(folder, stem).items()}

    def __getitem__(self, name: str) -> Lazy:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@torch.no_grad()
def fill(target: Tensor, value: Tensor | Lazy) -> None:
    """Set ``target`` to ``value``, of its shape; where it is sharded, each process reads its rows alone."""
    if not isinstance(target, DTensor):
        target.copy_(value.read() if isinstance(value, Lazy) else value)
        return
    local = target.to_local()
    if tuple(target.placements) != (Shard(0),):
        whole = (value.read() if isinstance(value, Lazy) else value).to(local.device)
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None))
        return
    rows = _held_rows(target)
    local.copy_(value.read(rows) if isinstance(value, Lazy) else value[rows])


@torch.no_grad()
def add(target: Tensor, value: Tensor, scale: float) -> None:
    """Add ``scale`` times ``value``, which every process has whole, to ``target``, sharded or not."""
    if not isinstance(target, DTensor):
        target.add_(value, alpha=scale)
    elif tuple(target.placements) == (Shard(0),):
        target.to_local().add_(value[_held_rows(target)], alpha=scale)
    else:
        placed = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        target.add_(placed, alpha=scale)


def _held_rows(target: DTensor) -> slice:
    """The rows of a tensor sharded by rows that this process holds."""
    mesh = target.device_mesh
    start = min(mesh.get_local_rank() * -(-target.shape[0] // mesh.size()), target.shape[0])
    return slice(start, start + target.to_local().shape[0])
