"""Memory for weights that are not mapped from a file: side by side, in huge pages where there are any.

Decoding reads every weight once a token. In pages of 4 KB each of these costs a look-up of its own and stops
what the processor fetches ahead; in pages of 2 MB reads are a tenth to half faster (docs/log.md).
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats.quant import PackedTensor

HUGE_PAGE = 2 << 20
BLOCK = 256 << 20  # what is not filled of one was never touched, so it takes no memory
_LINE = 64  # bytes: kernels read whole cache lines


class Arena:
    """Hands out pieces of large blocks. Nothing is given back: it lives as long as any of its arrays."""

    def __init__(self, block: int = BLOCK) -> None:
        self._size = block
        self._block: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def place(self, tensor: PackedTensor) -> PackedTensor:
        """Return ``tensor`` with its arrays moved here."""
        parts: dict[str, Any] = {part: self._move(array) for part, array in tensor.parts.items()}
        return replace(tensor, **parts)

    def _move(self, array: NDArray) -> NDArray:
        if not array.nbytes:
            return array
        piece = self.empty(array.shape, array.dtype)
        piece[...] = array
        return piece

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray:
        """An array here, to be filled."""
        return self._take(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    def _take(self, nbytes: int) -> NDArray[np.uint8]:
        start = -(-self._used // _LINE) * _LINE
        if start + nbytes > self._block.size:
            self._block, start = _huge(max(self._size, nbytes)), 0
        self._used = start + nbytes
        return self._block[start : self._used]


def _huge(nbytes: int) -> NDArray[np.uint8]:
    """Zeros that start at a huge page, which the system is asked to use."""
    # Shared memory, which is what mmap gives unasked, has no huge pages as a rule.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, nbytes + HUGE_PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(memory, np.uint8)
    start = -block.ctypes.data % HUGE_PAGE
    return block[start : start + nbytes]
