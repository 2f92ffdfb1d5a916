"""Codes of 2, 4 or 8 bits in words of 32, the lowest bits first: how GPTQ, AWQ, compressed-tensors, MLX and
Marlin lie in files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats.packing import row_slices

__all__ = ["AWQ_ORDER", "awq_columns", "awq_words", "moved_words", "pack_words", "unpack_words"]

WORD = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of AWQ's words the column, of eight, that each four bits belong to, lowest first."""


def pack_words(codes: NDArray, bits: int) -> NDArray[np.int32]:
    """Codes (rows, columns), below 2**bits, to words (rows, columns * bits / 32): neighbours along a row
    share one. A last word that is not full ends in zeros."""
    each = WORD // bits
    rows, columns = codes.shape
    words = np.empty((rows, -(-columns // each)), np.uint32)
    for part in row_slices(rows, columns):
        padded = np.zeros((part.stop - part.start, words.shape[1] * each), np.uint32)
        padded[:, :columns] = codes[part]
        padded = padded.reshape(len(padded), -1, each)
        padded <<= np.arange(each, dtype=np.uint32) * np.uint32(bits)
        np.bitwise_or.reduce(padded, axis=2, out=words[part])
    return words.view(np.int32)


def unpack_words(words: NDArray, bits: int) -> NDArray[np.uint8]:
    """Inverse of ``pack_words``: (rows, words), 32 bits each, to codes (rows, words * 32 / bits)."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    codes = np.empty((*words.shape, len(shifts)), np.uint8)
    for part in row_slices(len(words), words.shape[1] * len(shifts)):
        found = np.ascontiguousarray(words[part]).view(np.uint32)[:, :, None] >> shifts
        found &= np.uint32((1 << bits) - 1)
        codes[part] = found
    return codes.reshape(len(words), -1)


def moved_words(words: NDArray, bits: int, by: int) -> NDArray[np.int32]:
    """Words with ``by`` added to each of their codes as GPTQ's tools do: to the whole word, so that a code
    that overflows carries into the next."""
    ones = sum(1 << at for at in range(0, WORD, bits))
    return (np.ascontiguousarray(words).view(np.uint32) + np.uint32(by * ones % (1 << WORD))).view(np.int32)


def awq_words(codes: NDArray) -> NDArray[np.int32]:
    """Codes (rows, columns) of 4 bits to AWQ's words (rows, columns / 8)."""
    return pack_words(_reordered(codes, np.array(AWQ_ORDER)), 4)


def awq_columns(words: NDArray) -> NDArray[np.uint8]:
    """Inverse of ``awq_words``."""
    return _reordered(unpack_words(words, 4), np.argsort(AWQ_ORDER))


def _reordered(codes: NDArray, order: NDArray) -> NDArray:
    eights = codes.reshape(len(codes), -1, len(order))
    return np.ascontiguousarray(eights[:, :, order]).reshape(codes.shape)
