"""Safetensors files and sets of them, written a tensor at a time, byte for byte as the format's own library
writes them.

One file of a set is called STEM.safetensors; several are STEM-00001-of-0000N.safetensors, with
STEM.safetensors.index.json, as on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicpm4.files import json_text, write_file, writing
from minicpm4.formats.safetensors_header import ARRAY_TYPES, Described, make_header
from minicpm4.formats.tensor_source import TensorSource

__all__ = ["MAX_FILE", "Check", "File", "planned", "write_index", "write_safetensors", "write_set"]

MAX_FILE = 4 << 30  # bytes
_ORDER = {name: place for place, name in enumerate(ARRAY_TYPES)}
Check = Callable[[str, NDArray], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a set, the names in it, and which of the processes that write together writes it."""

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


def write_safetensors(file: Path, tensors: Mapping[str, TensorSource], check: Check | None = None) -> None:
    """Write one file, whole or not at all; ``check`` sees each tensor before it is written, and may raise.
    Raises OSError, CheckpointError."""
    # The library's order: the widest types first, by name among them.
    names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    ordered: dict[str, Described] = {name: tensors[name] for name in names}
    with writing(file, durable=True) as out:
        out.write(make_header({"format": "pt"}, ordered, alignment=8))
        for name in names:
            values = tensors[name].read()
            if check is not None:
                check(name, values)
            out.write(values.reshape(-1).view(np.uint8).data)
            del values  # before the next are made


def write_index(folder: Path, stem: str, files: list[File], sizes: Mapping[str, int]) -> None:
    """Write the index of a set of several files. Raises OSError."""
    places = {name: file.name for file in files for name in file.tensors}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    write_file(folder / f"{stem}.safetensors.index.json", json_text(index, indent=2), durable=True)


def write_set(
    folder: Path, stem: str, tensors: Mapping[str, TensorSource], check: Check | None = None
) -> None:
    """Write ``tensors`` into as many files as they take in ``folder``, which is there. Raises OSError,
    CheckpointError."""
    sizes = {name: source.nbytes for name, source in tensors.items()}
    files = planned(stem, sizes, 1, MAX_FILE)
    for file in files:
        write_safetensors(folder / file.name, {name: tensors[name] for name in file.tensors}, check)
    if len(files) > 1:
        write_index(folder, stem, files, sizes)
