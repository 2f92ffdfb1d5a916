"""How codes of a few bits lie in bytes: one function to pack them and one to unpack them, for each width.

A unit of 16 bytes holds 16 codes in the lowest bits of its bytes, the next 16 in the bits above them, and so
on: so 16 codes at a time come out of it with one mask and one shift.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNIT_BITS", "as_int8", "pack_nibbles", "pack_pairs", "same", "unpack_nibbles", "unpack_pairs"]

_UNIT = 16  # bytes


def same(found: NDArray) -> NDArray:
    """A byte, or more, a code: nothing to do."""
    return found


def as_int8(found: NDArray) -> NDArray:
    """Codes of -128 to 127."""
    return found.astype(np.int8, copy=False)


def pack_nibbles(found: NDArray) -> NDArray:
    """Codes 0 to 15 (rows, columns) to bytes (rows, columns / 2)."""
    return _pack(found, 4)


def unpack_nibbles(packed: NDArray) -> NDArray:
    """Inverse of ``pack_nibbles``."""
    return _unpack(packed, 4)


def pack_pairs(found: NDArray) -> NDArray:
    """Codes 0 to 3 (rows, columns) to bytes (rows, columns / 4)."""
    return _pack(found, 2)


def unpack_pairs(packed: NDArray) -> NDArray:
    """Inverse of ``pack_pairs``."""
    return _unpack(packed, 2)


def _pack(found: NDArray, bits: int) -> NDArray:
    units = found.astype(np.uint8, copy=False).reshape(found.shape[0], -1, 8 // bits, _UNIT)
    packed = units[:, :, 0].copy()
    for part in range(1, 8 // bits):
        packed |= units[:, :, part] << np.uint8(bits * part)
    return packed.reshape(found.shape[0], -1)


def _unpack(packed: NDArray, bits: int) -> NDArray:
    units = packed.reshape(packed.shape[0], -1, 1, _UNIT)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, 8 // bits, 1)
    return ((units >> shifts) & np.uint8((1 << bits) - 1)).reshape(packed.shape[0], -1)


UNIT_BITS = {same: 8, unpack_nibbles: 4, unpack_pairs: 2}
"""Bits of a code by what unpacks it, of codes that lie in such units."""
