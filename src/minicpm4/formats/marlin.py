"""How the Marlin kernel wants int4 matrices: CPM.cu's checkpoints hold them so.

16 rows of the input times 64 outputs are a block of 1,024 codes, 128 words. A word has the eight codes that
one of 32 threads multiplies at a time, of one of the four columns of tiles (16 x 16) of a block: thread i has
outputs i // 4 and 8 more, inputs 2 (i % 4), one more, and 8 more than both. Scales of 64 neighbouring outputs
(32 where a row is one group) lie in the order in which threads read them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats.words import AWQ_ORDER, pack_words, unpack_words

__all__ = [
    "MARLIN_COLUMNS",
    "MARLIN_ROWS",
    "pack_tiles",
    "scales_in_order",
    "scales_of_threads",
    "unpack_tiles",
]

MARLIN_ROWS, MARLIN_COLUMNS = 16, 64
"""Inputs and outputs of a block."""
_WORDS = MARLIN_ROWS * MARLIN_COLUMNS // 8
_TILE = 16


def _places() -> NDArray[np.intp]:
    """Of each code of a block, as it lies in words, its place among 64 outputs of 16 inputs each."""
    thread, tile = np.arange(32).reshape(32, 1, 1), np.arange(4).reshape(4, 1)
    which = np.array(AWQ_ORDER)  # two outputs of four inputs each: the even ones first, as in AWQ
    rows = 2 * (thread % 4) + which % 2 + 8 * (which % 4 // 2)
    columns = thread // 4 + 8 * (which // 4)
    return ((tile * _TILE + columns) * MARLIN_ROWS + rows).reshape(-1)


_PLACES = _places()
_BACK = np.argsort(_PLACES)
_INPUTS = np.dtype((np.void, MARLIN_ROWS))  # codes of an output in a block, moved as one
_GROUPED = np.arange(64).reshape(8, 8).T.reshape(-1)
_WHOLE = (2 * np.arange(4).reshape(4, 1, 1) + 8 * np.arange(4).reshape(4, 1) + np.arange(2)).reshape(-1)


def pack_tiles(codes: NDArray) -> NDArray[np.int32]:
    """Codes (out, in), out a multiple of 64 and in of 16, to words (in / 16, 2 out)."""
    outputs, inputs = codes.shape
    words = np.empty((inputs // MARLIN_ROWS, outputs // MARLIN_COLUMNS, _WORDS), np.int32)
    for block in range(words.shape[1]):
        part = codes[block * MARLIN_COLUMNS : (block + 1) * MARLIN_COLUMNS]
        moved = np.ascontiguousarray(np.ascontiguousarray(part, np.uint8).view(_INPUTS).T)  # (in / 16, 64)
        words[:, block] = pack_words(moved.view(np.uint8).reshape(len(words), -1)[:, _PLACES], 4)
    return words.reshape(len(words), -1)


def unpack_tiles(words: NDArray, outputs: slice) -> NDArray[np.uint8]:
    """Codes (outputs, in) of some outputs of what ``pack_tiles`` made."""
    first, last = outputs.start // MARLIN_COLUMNS, -(-outputs.stop // MARLIN_COLUMNS)
    found = unpack_words(words[:, first * _WORDS : last * _WORDS], 4)
    moved = np.take(found.reshape(len(words), last - first, _BACK.size), _BACK, axis=2).view(_INPUTS)
    codes = (
        np.ascontiguousarray(moved.transpose(1, 2, 0)).view(np.uint8).reshape(-1, len(words) * MARLIN_ROWS)
    )
    start = first * MARLIN_COLUMNS
    return codes[outputs.start - start : outputs.stop - start]


def scales_of_threads(scales: NDArray) -> NDArray:
    """Scales (groups, out) in the order that threads read them in."""
    order = _order(len(scales))
    return scales.reshape(-1, len(order))[:, order].reshape(scales.shape)


def scales_in_order(scales: NDArray) -> NDArray:
    """Inverse of ``scales_of_threads``."""
    order = _order(len(scales))
    return scales.reshape(-1, len(order))[:, np.argsort(order)].reshape(scales.shape)


def _order(groups: int) -> NDArray[np.intp]:
    return _GROUPED if groups > 1 else _WHOLE
