"""Selection recall: which share of what dense attention looks at lies in the blocks that are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.delegate import Delegate
from minicpm4.kernels.ref import gather, softmax, unrotate
from minicpm4.kernels.sparse_api import attend_sparse
from minicpm4.kernels.step import Array, Ints, KVLayer, Step

__all__ = ["Recall", "Watched", "block_mass", "far_blocks"]

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]


def block_mass(q: Array, keys: Doubles, positions: Ints, block: int) -> Doubles:
    """Shares (n, hq, blocks) of dense attention of q (n, hq, d) at ``positions`` over keys (hkv, t, d) that
    each block of ``block`` tokens has."""
    n, hq, d = q.shape
    hkv, t, _ = keys.shape
    grouped = q.reshape(n, hkv, -1, d).astype(np.float64)
    hidden = np.arange(t) > positions[:, None]
    parts = []
    for head in range(hkv):
        scores = np.where(hidden[:, None], -np.inf, grouped[:, head] @ keys[head].T / np.sqrt(d))
        parts.append(np.add.reduceat(softmax(scores), np.arange(0, t, block), axis=-1))
    return np.stack(parts, axis=1).reshape(n, hq, -1)


def far_blocks(positions: Ints, blocks: int, config: SparseConfig) -> Bools:
    """Blocks (n, blocks) that are there to be chosen: neither the first ones nor in the window."""
    b, own = np.arange(blocks), positions[:, None] // config.block_size
    return (b >= config.init_blocks) & (b <= own - config.local_blocks)


@dataclass(slots=True)
class Recall:
    """Of one setting, summed up over queries, by layer and query head (layers, hq): ``chosen`` of the mass of
    ``queries`` (layers,), and the part of it in far blocks, ``far_chosen`` of ``far``."""

    layers: int
    heads: int
    chosen: Doubles = field(init=False)
    far: Doubles = field(init=False)
    far_chosen: Doubles = field(init=False)
    queries: Doubles = field(init=False)

    def __post_init__(self) -> None:
        self.chosen, self.far, self.far_chosen = (np.zeros((self.layers, self.heads)) for _ in range(3))
        self.queries = np.zeros(self.layers)

    def add(self, layer: int, mass: Doubles, chosen: Bools, far: Bools) -> None:
        """Queries of a layer: ``mass`` (n, hq, blocks), ``chosen`` (n, hkv, blocks), ``far`` (n, blocks)."""
        each = np.repeat(chosen, mass.shape[1] // chosen.shape[1], axis=1)
        self.chosen[layer] += (mass * each).sum(axis=(0, 2))
        self.far[layer] += (mass * far[:, None]).sum(axis=(0, 2))
        self.far_chosen[layer] += (mass * each * far[:, None]).sum(axis=(0, 2))
        self.queries[layer] += len(mass)

    def as_dict(self) -> dict[str, Any]:
        """Shares: of all mass by layer and head (null of layers that choose none), and the means of that and
        of far mass over all."""
        seen = self.queries > 0
        by_head = np.full(self.chosen.shape, np.nan)
        by_head[seen] = self.chosen[seen] / self.queries[seen, None]
        far = self.far.sum()
        return {
            "by_layer_and_head": [
                [round(x, 4) for x in row] if all(np.isfinite(row)) else None for row in by_head.tolist()
            ],
            "mean": float(by_head[seen].mean()) if seen.any() else None,
            "far": float(self.far_chosen.sum() / far) if far > 0 else None,
            "far_mass": float(far / (self.queries.sum() * self.heads)) if seen.any() else None,
        }


class Watched(Delegate):
    """An op table that looks, at the positions ``probes`` of dense attention, at what each of ``settings``
    would choose. The rest it leaves to ``ops``, the host's. One sequence, whose layers come one after
    another."""

    def __init__(
        self,
        ops: OpTable,
        layers: int,
        heads: int,
        settings: Mapping[str, SparseConfig],
        probes: Sequence[range],
    ) -> None:
        super().__init__(ops)
        self._layers, self._settings, self._probes = layers, settings, probes
        self._calls = 0
        self.recalls = {name: Recall(layers, heads) for name in settings}

    def attention(self, q: Array, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        """As OpTable's."""
        layer, self._calls = self._calls % self._layers, self._calls + 1
        first, end = int(step.positions[0]), int(step.positions[-1]) + 1
        for probe in self._probes:
            rows = slice(max(probe.start - first, 0), min(probe.stop, end) - first)
            if rows.start < rows.stop and not kv.window:
                self._look(layer, q, kv, step, rows)
        return self._ops.attention(q, kv, step, out)

    def _look(self, layer: int, q: Array, kv: KVLayer, step: Step, rows: slice) -> None:
        positions = step.positions[rows]
        length = int(positions[-1]) + 1
        keys, _ = gather(kv, step.page_table[0], length)
        masses: dict[int, Doubles] = {}
        for name, config in self._settings.items():
            size = config.block_size
            if size not in masses:
                masses[size] = block_mass(q[rows], keys, positions, size)
            asked, k = q[rows], keys.transpose(1, 0, 2)
            if config.use_nope:
                asked = unrotate(asked, step.cos[positions], step.sin[positions])
                k = unrotate(k, step.cos[:length], step.sin[:length])
            start = length - len(positions)
            _, chosen = attend_sparse(asked, k, k, config, start=start, backend=self._ops.name, kv="float32")
            far = far_blocks(positions, chosen.shape[-1], config)
            self.recalls[name].add(layer, masses[size], chosen, far)
