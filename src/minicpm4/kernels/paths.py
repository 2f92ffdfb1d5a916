"""Trees of drafts taken apart: each path as the text that it would be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Accepted, KVLayer, Step, Tree

_ONE = np.array([0, 1], np.int32)


def paths(ops: OpTable, kv: KVLayer, step: Step) -> Iterator[tuple[slice, KVLayer, Step]]:
    """Of each row of a step over trees itself, pages in which its path has become text, and the plain step
    that it is there. ``ops`` computes on the host and settles the paths, in copies of the pages."""
    assert step.tree is not None
    arrays: dict[str, Any] = {f.name: getattr(kv, f.name) for f in fields(kv) if f.init}
    for j, table in enumerate(step.page_table):
        rows = slice(int(step.cu_rows[j]), int(step.cu_rows[j + 1]))
        if rows.start == rows.stop:
            continue
        used = table[: int(step.positions[rows.stop - 1]) // kv.page_size + 1]
        tree = Tree(ancestors=step.tree.ancestors[rows], positions=step.tree.positions[rows])
        alone = replace(
            step,
            ids=step.ids[rows],
            positions=step.positions[rows],
            cu_rows=np.array([0, rows.stop - rows.start], np.int32),
            page_table=np.arange(len(used), dtype=np.int32)[None],
            tree=tree,
        )
        for row, ancestors in enumerate(tree.ancestors.tolist()):
            path = np.array([b for b in range(row + 1) if ancestors >> b & 1], np.int32)
            accepted = Accepted(rows=path, cu_rows=np.array([0, len(path)], np.int32))
            copied = {n: a[used] if isinstance(a, np.ndarray) else a for n, a in arrays.items()}
            pages = KVLayer(**copied)
            ops.settle(pages, alone, accepted)
            _, plain = accepted.moves(alone)
            last = replace(plain, ids=plain.ids[-1:], positions=plain.positions[-1:], cu_rows=_ONE)
            yield slice(rows.start + row, rows.start + row + 1), pages, last
