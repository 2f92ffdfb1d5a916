"""Tensors in safetensors files, written and read by all processes of a run, each its part.

Writing: every tensor has one owner, by its place in order and its bytes (``planned``). To gather what is
sharded takes all processes; the owner alone keeps the result, on the CPU, a file of it at a time. One file
is called STEM.safetensors, several STEM-00001-of-0000N.safetensors with STEM.safetensors.index.json, as on
the Hugging Face hub: which of them a tensor is in is nobody's business but the index's, so a checkpoint is
read by any number of processes.

Reading: ``Stored`` opens files and reads nothing; ``fill`` reads the rows that a process holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from minicpm4.errors import CheckpointError
from minicpm4.formats.safetensors import read_index
from minicpm4.train.world import World

__all__ = [
    "File",
    "Lazy",
    "Stored",
    "add",
    "fill",
    "gathered",
    "planned",
    "sync",
    "write_file",
    "write_tensors",
]

MAX_FILE = 4 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a set, the names in it, and the process that writes it."""

    name: str
    owner: int
    tensors: tuple[str, ...]


def planned(stem: str, sizes: Mapping[str, int], processes: int, limit: int) -> list[File]:
    """Which files hold tensors of ``sizes`` bytes: neighbours together, each of ``processes`` as many bytes
    as another, a tensor's middle deciding. A file has more than ``limit`` bytes only if one tensor has."""
    total, before = max(1, sum(sizes.values())), 0
    groups: list[tuple[int, list[str]]] = []
    filled = 0
    for name, size in sizes.items():
        owner = (2 * before + size) * processes // (2 * total)
        if not groups or groups[-1][0] != owner or filled + size > limit:
            groups.append((owner, []))
            filled = 0
        groups[-1][1].append(name)
        before, filled = before + size, filled + size
    groups = groups or [(0, [])]  # a set without tensors is a file, too
    count = len(groups)
    return [
        File(
            name=f"{stem}.safetensors" if count == 1 else f"{stem}-{n:05d}-of-{count:05d}.safetensors",
            owner=min(owner, processes - 1),
            tensors=tuple(names),
        )
        for n, (owner, names) in enumerate(groups, 1)
    ]


def write_tensors(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    world: World | None = None,
    check: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Write ``tensors`` into ``folder``, which is there; all processes call it. ``check`` sees each tensor
    whole, in its owner. Raises, in all processes, OSError or CheckpointError."""
    world = world or World()
    files = planned(stem, {name: _nbytes(t) for name, t in tensors.items()}, world.size, MAX_FILE)
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
                for name, tensor in own.items():
                    if check is not None:
                        check(name, tensor)
                write_file(folder / mine[0].name, own)
            except (OSError, SafetensorError, CheckpointError) as found:
                error = OSError(str(found)) if isinstance(found, SafetensorError) else found
    world.agree(error)
    if len(files) > 1:
        size = sum(_nbytes(tensor) for tensor in tensors.values())
        places = {name: file.name for file in files for name in file.tensors}
        index = {"metadata": {"total_size": size}, "weight_map": places}
        text = json.dumps(index, indent=2)
        world.first(lambda: (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8"))


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # of a DTensor: of all processes


def _rounds(files: list[File]) -> Iterator[list[File]]:
    """Files in sets of at most one for each owner, which write them at the same time."""
    waiting = list(files)
    while waiting:
        first = {file.owner: file for file in reversed(waiting)}
        yield list(first.values())
        waiting = [file for file in waiting if first[file.owner] is not file]


def write_file(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write one file of ``tensors``, on CPUs, under a temporary name first. Raises OSError,
    SafetensorError."""
    part = file.with_name(f"{file.name}.part")
    part.touch()
    usual = part.stat().st_mode
    save_file(tensors, part, {"format": "pt"})
    part.chmod(usual)  # safetensors makes it the user's alone
    sync(part)
    os.replace(part, file)


def sync(path: Path) -> None:
    """Have what is written reach the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def gathered(tensor: Tensor) -> Tensor:
    """A tensor whole, where it lies; all processes call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


class Lazy:
    """A tensor in a file, not read yet."""

    def __init__(self, source: Any, name: str) -> None:
        self._source, self._name = source, name
        self.shape = torch.Size(source.get_slice(name).get_shape())

    def read(self, rows: slice = slice(None)) -> Tensor:
        """The tensor, or some of its rows."""
        if not self.shape:
            return torch.as_tensor(self._source.get_tensor(self._name))
        return torch.as_tensor(self._source.get_slice(self._name)[rows])


class Stored(Mapping[str, Lazy]):
    """The tensors that ``write_tensors`` left in ``folder`` under ``stem``. Raises CheckpointError."""

    def __init__(self, folder: Path, stem: str) -> None:
        one, index = folder / f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        files = [one] if one.is_file() or not (folder / index).is_file() else read_index(folder, index)
        self._found: dict[str, Lazy] = {}
        for file in files:
            try:
                source: Any = safe_open(file, framework="pt")
                self._found |= {name: Lazy(source, name) for name in source.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"cannot read {file}: {error}", "go on from an earlier checkpoint"
                ) from error

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
