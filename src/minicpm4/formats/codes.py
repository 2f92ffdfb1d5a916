"""How codes of a few bits lie in bytes: one function to pack them and one to unpack them, for each width.

A unit of 16 bytes holds 16 codes in the lowest bits of its bytes, the next 16 in the bits above them, and so
on: so 16 codes at a time come out of it with one mask and one shift. Codes of 3, 5 and 6 bits lie in two
planes: their lower bits in such units, then the upper bits of the same codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "UNIT_BITS",
    "as_int8",
    "pack_fives",
    "pack_nibbles",
    "pack_pairs",
    "pack_sixes",
    "pack_threes",
    "same",
    "unpack_fives",
    "unpack_nibbles",
    "unpack_pairs",
    "unpack_sixes",
    "unpack_threes",
]

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


def pack_sixes(found: NDArray) -> NDArray:
    """Codes 0 to 63 (rows, columns): of each 64 the four lower bits in 32 bytes, the two upper ones in 16."""
    return _pack_planes(found, 64, 4, 2)


def unpack_sixes(packed: NDArray) -> NDArray:
    """Inverse of ``pack_sixes``."""
    return _unpack_planes(packed, 64, 4, 2)


def pack_fives(found: NDArray) -> NDArray:
    """Codes 0 to 31 (rows, columns): of each 32 the four lower bits in 16 bytes, the upper ones in 4, that of
    code 8 i + j in bit j of byte i. So GGUF's Q5_0 and Q5_1 have them."""
    return _pack_planes(found, 32, 4, 1)


def unpack_fives(packed: NDArray) -> NDArray:
    """Inverse of ``pack_fives``."""
    return _unpack_planes(packed, 32, 4, 1)


def pack_threes(found: NDArray) -> NDArray:
    """Codes 0 to 7 (rows, columns): of each 64 the two lower bits in 16 bytes, the upper ones in 8, as those
    of ``pack_fives``."""
    return _pack_planes(found, 64, 2, 1)


def unpack_threes(packed: NDArray) -> NDArray:
    """Inverse of ``pack_threes``."""
    return _unpack_planes(packed, 64, 2, 1)


def _pack_planes(found: NDArray, unit: int, low: int, high: int) -> NDArray:
    codes = found.astype(np.uint8, copy=False).reshape(-1, unit)
    lower, upper = codes & np.uint8((1 << low) - 1), codes >> np.uint8(low)
    top = _pack(upper, 2) if high == 2 else np.packbits(upper, axis=1, bitorder="little")
    return np.concatenate([_pack(lower, low), top], axis=1).reshape(found.shape[0], -1)


def _unpack_planes(packed: NDArray, unit: int, low: int, high: int) -> NDArray:
    bytes_low = unit * low // 8
    units = packed.reshape(-1, bytes_low + unit * high // 8)
    found = _unpack(np.ascontiguousarray(units[:, :bytes_low]), low)
    top = np.ascontiguousarray(units[:, bytes_low:])
    upper = _unpack(top, 2) if high == 2 else np.unpackbits(top, axis=1, bitorder="little")
    found |= upper << np.uint8(low)
    return found.reshape(packed.shape[0], -1)


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
