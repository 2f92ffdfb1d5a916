"""How a step's rows are cut among programs, and what of it lies on the device."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import triton
from torch import Tensor

from minicpm4.kernels.step import Ints, Step, Tree

__all__ = ["DeviceRows", "splits_for", "tile_rows"]

LEAST = 16  # rows of a product in the matrix units
FEW = 132  # programs that keep a GPU busy, where nothing is known of it
MAX_SPLITS = 64


class DeviceRows:
    """A step on the device: ``positions`` and ``sequences`` (n,) int32, each row's position and the row of
    ``page_table`` (s, max pages) that is its sequence's; ``max_blocks``: pages of the longest context;
    ``longest``: rows of the longest sequence in the step; ``dense``: whether a sparse step may have rows that
    read everything. Of a tree also ``ancestors`` (n,) int64, its bits, ``bases`` (n,), the position of each
    row's sequence's first row, and ``nodes`` (n, 64) int32, of each row the rows on its path, in order and
    then 0; else all three are None."""

    def __init__(self, step: Step, device: torch.device) -> None:
        cu_rows = np.asarray(step.cu_rows)
        counts = np.diff(cu_rows)
        self.device = device
        self.longest = int(counts.max(initial=0))
        self.positions = _tensor(step.positions, device)
        self.sequences = _tensor(np.repeat(np.arange(len(counts), dtype=np.int32), counts), device)
        self.page_table = _tensor(step.page_table, device)
        self._angles: Tensor | None = None
        self.bases: Tensor | None = None
        self.ancestors: Tensor | None = None
        self.nodes: Tensor | None = None
        if step.tree is not None:
            self._angles = _tensor(step.tree.positions, device)
            firsts = np.asarray(step.positions)[np.minimum(cu_rows[:-1], max(0, step.num_rows - 1))]
            self.bases = _tensor(np.repeat(firsts, counts), device)
            bits = np.array(step.tree.ancestors, np.uint64).view(np.int64)
            self.ancestors = torch.from_numpy(bits).to(device, non_blocking=True)
            self.nodes = _tensor(_nodes(step.tree, np.repeat(cu_rows[:-1], counts)), device)
        self.max_blocks = int(step.page_table.shape[1])
        self.dense = step.sparse is not None and step.sparse.dense_below > 0
        self._cu_rows = cu_rows
        self._tiles: dict[int, Tensor] = {}

    @property
    def angles(self) -> Tensor:
        """Places in the text, (n,) int32: positions in the rotary table."""
        return self.positions if self._angles is None else self._angles

    def tiles(self, size: int) -> Tensor:
        """Tiles of at most ``size`` neighbouring rows of a sequence, (tiles, 2) int32: first and number."""
        found = self._tiles.get(size)
        if found is None:
            found = self._tiles[size] = _tensor(cut(self._cu_rows, size), self.device)
        return found


def _nodes(tree: Tree, firsts: Ints) -> Ints:
    """Of each row the rows on its path; ``firsts`` (n,): the first row of its tree."""
    nodes = np.zeros((len(firsts), Tree.MOST), np.int32)
    for row, (bits, first) in enumerate(zip(tree.ancestors.tolist(), firsts.tolist(), strict=True)):
        path = [first + b for b in range(row + 1 - first) if bits >> b & 1]
        nodes[row, : len(path)] = path
    return nodes


def cut(cu_rows: Ints, size: int) -> Ints:
    """First row and number of rows of each tile, (tiles, 2)."""
    parts = [
        (first, min(size, int(stop) - first))
        for start, stop in pairwise(cu_rows)
        for first in range(int(start), int(stop), size)
    ]
    return np.asarray(parts, np.int32).reshape(-1, 2)


def tile_rows(heads: int, longest: int, wide: int = 128) -> int:
    """Rows of a tile of ``heads`` (a power of two) query heads: as few as the matrix units take for steps of
    a row or a few, up to ``wide`` products' rows for long ones."""
    least = max(1, LEAST // heads)
    most = max(least, wide // heads)
    return min(most, max(least, int(triton.next_power_of_2(max(1, longest)))))


def splits_for(programs: int, pieces: int, device: torch.device) -> int:
    """In how many parts a context of ``pieces`` is read, so that all units have work."""
    wanted = triton.cdiv(2 * _units(device), max(1, programs))
    return max(1, min(wanted, pieces, MAX_SPLITS))


@lru_cache(maxsize=16)
def _units(device: torch.device) -> int:
    if device.type != "cuda":
        return FEW // 32  # the interpreter: a few parts, so that tests see them
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _tensor(array: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, np.int32, copy=True, order="C")).to(device, non_blocking=True)
