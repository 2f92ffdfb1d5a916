"""Codes of 4 or 8 bits in words of 32, the lowest bits first: how GPTQ, AWQ and compressed-tensors lie in
files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["AWQ_ORDER", "pack_words", "unpack_words"]

WORD = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of AWQ's words the column, of eight, that each four bits belong to, lowest first."""


def pack_words(codes: NDArray, bits: int) -> NDArray[np.int32]:
    """Codes (rows, columns), below 2**bits, to words (rows, columns * bits / 32): neighbours along a row
    share one. A last word that is not full ends in zeros."""
    each = WORD // bits
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // each) * each), np.uint32)
    padded[:, :columns] = codes
    parts = padded.reshape(rows, -1, each) << (np.arange(each, dtype=np.uint32) * np.uint32(bits))
    words: NDArray[np.int32] = np.bitwise_or.reduce(parts, axis=2).view(np.int32)
    return words


def unpack_words(words: NDArray, bits: int) -> NDArray[np.uint8]:
    """Inverse of ``pack_words``: (rows, words) int32 to codes (rows, words * 32 / bits)."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    found = (np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return found.astype(np.uint8).reshape(len(words), -1)
