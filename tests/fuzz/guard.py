"""Arrays behind which lies memory that may not be touched: what reads or writes past one is a crash without a
sanitizer, too."""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
from typing import Any

import numpy as np

__all__ = ["Guard", "guarded"]

_LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PAGE = mmap.PAGESIZE


def guarded(array: Any) -> Any:
    """A copy whose end is the end of what may be touched."""
    size = -(-max(array.nbytes, 1) // _PAGE) * _PAGE
    memory = mmap.mmap(-1, size + _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _LIBC.mprotect(start + size, _PAGE, 0)
    made = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    made[...] = array
    return made


class Guard:
    """Guarded copies of arguments: what lay over one another, or was the same array, does and is so again."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}  # with the array, so that its id stays its own

    def __call__(self, values: dict[str, Any]) -> list[Any]:
        return [self._one(value) for value in values.values()]

    def _one(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
            return value
        base = value.base
        if not isinstance(base, np.ndarray) or not base.flags.c_contiguous or base.nbytes < value.nbytes:
            base = value
        if id(base) not in self._made:
            self._made[id(base)] = base, guarded(base)
        room = self._made[id(base)][1]
        if base is value:
            return room
        start = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return np.ndarray(value.shape, value.dtype, room, start)
