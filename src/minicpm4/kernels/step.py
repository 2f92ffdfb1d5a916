"""What the ops of a step are given: pages of keys and values, rows, trees of drafts, chosen blocks.

Shapes as in ``kernels/contract.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig

__all__ = ["Accepted", "Array", "Floats", "Ints", "KVLayer", "Selection", "Step", "Tree"]

Array = NDArray[Any]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KVLayer:
    """The pages of one layer. A page is a block of InfLLM v2.

    ``keys`` (pages, hkv, d, P), transposed so that scores of neighbouring tokens are neighbours,
    and ``values`` (pages, hkv, P, d) are float32, or bf16 as raw uint16. As int8 they lie in pairs,
    ``keys`` (pages, hkv, d / 2, P, 2) of dimensions and ``values`` (pages, hkv, P / 2, d, 2) of
    tokens; each key and each value is its codes, -127 to 127, times ``key_scales`` or
    ``value_scales`` (pages, hkv, P) float32, NaN where a number of it was not finite.

    ``compressed`` (pages, hkv, P / kernel_stride, d) and ``coarse`` (pages, hkv, coarse_per_block, d)
    hold the compressed keys that END in the page; None without sparse attention (coarse: without
    the LSE approximation). They are float32 where keys are; elsewhere int16 codes of norm 32766 (or
    0), times ``compressed_scales`` and ``coarse_scales`` (no last axis) float32. Compressed key j ends
    at token e = j * kernel_stride + kernel_size - 1 and sits in slot e % P // kernel_stride of page
    e // P; coarse ones likewise with both lengths times 4. ``kernels/pages.py`` lists the arrays. ``window``:
    tokens that a row of this layer reads, the last ones, its own included; 0: all before it. ``native``
    is where op tables keep what they make of the arrays, by their name.
    """

    keys: Array
    values: Array
    key_scales: Floats | None = None
    value_scales: Floats | None = None
    compressed: Array | None = None
    compressed_scales: Floats | None = None
    coarse: Array | None = None
    coarse_scales: Floats | None = None
    window: int = 0
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def page_size(self) -> int:
        return int(self.keys.shape[3])

    @property
    def num_kv_heads(self) -> int:
        return int(self.keys.shape[1])

    @property
    def head_dim(self) -> int:
        return int(self.keys.shape[2] * (1 if self.key_scales is None else 2))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tree:
    """Drafts that a step checks together (EAGLE-2, arXiv 2406.16858): of each sequence the step's rows are
    a tree, at most 64, every row after its parent.

    A row reads all tokens before the step, and of the step's those that it follows, its path: ``ancestors``
    (n,) uint64 has bit b set where row b of its sequence's is on it, as the row itself is. ``positions`` (n,)
    are the rows' places in the text: the sequence's first position, and one more for each row before it on
    its path, so those of siblings are equal. Rotary angles and blocks go by these; where keys and values lie,
    ``Step.positions`` says, as ever. Every row computes what it would, had its path been run as plain rows.
    """

    ancestors: NDArray[np.uint64]
    positions: Ints

    MOST = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """The rows of one forward pass and where their sequences live.

    ``ids`` (n,) token ids. ``positions`` (n,): sequence j owns rows cu_rows[j] to cu_rows[j+1] - 1,
    at consecutive positions, the last tokens of its context. ``page_table`` (s, max pages): token t
    of sequence j is in page page_table[j, t // P]. ``cos`` and ``sin`` (at least the largest
    position + 1, d / 2) hold the rotary table, attention factor included. ``sparse`` None: dense.
    ``tree`` None: every row reads all before it. ``stored``: the rows are of a stored prefix, whose keys and
    values ``model/forward.py`` puts in the place of their own. ``native`` as in KVLayer.
    """

    ids: Ints
    positions: Ints
    cu_rows: Ints
    page_table: Ints
    cos: Floats
    sin: Floats
    sparse: SparseConfig | None = None
    tree: Tree | None = None
    stored: bool = False
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_rows(self) -> int:
        return int(self.ids.shape[0])

    @property
    def angles(self) -> Ints:
        """Places in the text, (n,): positions in the rotary table."""
        return self.positions if self.tree is None else self.tree.positions


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Accepted:
    """The rows of a step over trees that stay in their texts: of each sequence a path from its root.

    ``rows`` (k,) int32 are rows of the step, parents before children; those of sequence j are ``rows``
    cu_rows[j] to cu_rows[j+1] - 1, maybe none. ``native`` as in KVLayer.
    """

    rows: Ints
    cu_rows: Ints
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def moves(self, step: Step) -> tuple[Ints, Step]:
        """Of each row the position (k,) at which its key lies, and where it goes to: the plain step in which
        the rows follow their texts. In this order no move overwrites what a later one reads: rows ascend, so
        none moves up.

        Raises ValueError unless the rows of each sequence are a path from the root of its tree.
        """
        found: tuple[Ints, Step] | None = self.native.get("moves")
        if found is None:
            found = self.native["moves"] = _moves(self, step)
        return found


def _moves(accepted: Accepted, step: Step) -> tuple[Ints, Step]:
    rows, cu_rows = np.asarray(accepted.rows, np.int32), np.asarray(accepted.cu_rows, np.int32)
    counts, firsts = np.diff(cu_rows), np.asarray(step.cu_rows[:-1], np.int32)
    if counts.shape != firsts.shape or (counts < 0).any() or cu_rows[0] != 0 or cu_rows[-1] != len(rows):
        raise ValueError(f"accepted rows are cut at {cu_rows}, of {len(rows)} and {len(firsts)} sequences")
    sequences = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    own = rows - firsts[sequences]  # numbers of rows within their trees
    if step.tree is None or ((own < 0) | (own >= np.diff(step.cu_rows)[sequences])).any():
        raise ValueError(f"accepted rows {rows} are not of the sequences' trees")
    bits = np.uint64(1) << own.astype(np.uint64)
    paths = [np.add.accumulate(bits[a:b]) for a, b in pairwise(cu_rows) if a < b]
    if paths and (np.concatenate(paths) != step.tree.ancestors[rows]).any():
        raise ValueError(f"accepted rows {rows} are not paths from the roots of the sequences' trees")
    sources = np.asarray(step.positions, np.int32)[rows]
    targets = sources - own + np.arange(len(rows), dtype=np.int32) - cu_rows[sequences]
    plain = replace(step, ids=step.ids[rows], positions=targets, cu_rows=cu_rows, tree=None)
    return sources, plain


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """Chosen blocks: ``blocks`` (n, hkv, budget) ascending, padded with -1; ``counts`` (n, hkv),
    -1 where a row reads every block up to its own."""

    blocks: Ints
    counts: Ints
