"""GPTQ (arXiv 2210.17323): round a matrix column by column, and let the columns that follow make up for the
error.

The Hessian of a layer's squared output error is H = X^T X over the rows x that reach the layer. P-GPTQ
(MiniCPM4, arXiv 2506.07900, section 6) leaves out the first positions of every sequence, whose activations
are ten times larger and would decide all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats import rounding
from minicpm4.formats.packing import row_slices
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.quantize.factor import BLOCK as BLOCK_ROWS
from minicpm4.quantize.factor import blocks, factor_in_place, factored_product, mirror_lower, restore
from minicpm4.quantize.grid import pack, search_scales

__all__ = [
    "BLOCK",
    "DAMPING",
    "Hessian",
    "gptq",
    "gptq_on_grids",
    "hessian_nbytes",
    "importance",
    "output_error",
]

BLOCK = 64  # columns whose errors are handed on together: within it one by one, beyond it as one product
DAMPING = 0.01  # of the mean of the diagonal, added to it
_MOST = 256  # of them
_DEAD = 1e-6  # of the mean of what reaches others: how much a column counts that nothing reaches
_WIDE = 7000  # columns: of more, what is made of their square in float64 would take over 1 GB
_TOGETHER = 1 << 22  # numbers of rows that wait to be summed as one product
_MOST_ROWS = 2048  # of them: sums of products in float32

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating]


@dataclass(slots=True, eq=False)
class Hessian:
    """X^T X (width, width) of the rows that reach the matrices of a stage, and the mean magnitude of each of
    their columns. Memory: one array of width², of float64 up to 7,000 columns, beyond of float32."""

    width: int
    skip: int = 0
    rows: int = 0
    size: Doubles = field(init=False)
    _sum: Floats = field(init=False)
    _waiting: list[NDArray[np.float32]] = field(init=False, default_factory=list)
    _lower: bool = field(init=False, default=False)
    _factored: _Factored | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._sum = np.zeros((self.width, self.width), _dtype(self.width))
        self.size = np.zeros(self.width)

    def add(self, x: NDArray[np.float32]) -> None:
        """Add the rows x (n, width) of one sequence from its beginning; the first ``skip`` are left out."""
        x = np.array(x[self.skip :], np.float32)
        self.size += np.abs(x).sum(axis=0, dtype=np.float64)
        self.rows += len(x)
        self._waiting.append(x)
        rows = sum(map(len, self._waiting))
        if rows >= min(_MOST_ROWS, _TOGETHER // self.width):
            self._sum_up()

    def _sum_up(self) -> None:
        """Add the rows that wait, to the lower triangle alone."""
        self._restore()
        x = np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting.clear()
        for part in blocks(self.width):
            self._sum[part.start :, part] += x[:, part.start :].T @ x[:, part]
        self._lower = True

    def _restore(self) -> None:
        if self._factored is not None:
            restore(self._sum, self._factored.order, self._factored.diagonal)
            self._factored = None

    @property
    def sum(self) -> Floats:
        """X^T X; a factor that was made of it is gone afterwards."""
        self._restore()
        if self._waiting:
            self._sum_up()
        if self._lower:
            mirror_lower(self._sum)
            self._lower = False
        return self._sum

    def divide(self, factors: NDArray[np.float32]) -> None:
        """As if the columns of all rows had been divided by ``factors``."""
        h, by = self.sum, factors.astype(np.float64)
        for part in blocks(self.width):
            h[part] /= by[part, None] * by
        self.size /= by

    @property
    def diagonal(self) -> Floats:
        """That of ``sum``."""
        if self._factored is None or self._waiting:
            return np.diag(self.sum).copy()
        return self._factored.diagonal[np.argsort(self._factored.order)]

    @property
    def mean_size(self) -> Doubles:
        """Mean magnitude of each column."""
        return self.size / max(1, self.rows)

    def order(self, act_order: bool) -> NDArray[np.intp]:
        """Columns in the order in which they are rounded."""
        return np.argsort(-self.diagonal, kind="stable") if act_order else np.arange(self.width)

    def factor(self, damping: float, act_order: bool) -> Floats:
        """On and above its diagonal the factor that ``factor_in_place`` makes, in the place of ``sum``; once
        for all matrices of a stage. Raises CheckpointError."""
        if self._waiting or self._factored is None or self._factored.key != (damping, act_order):
            order = self.order(act_order)
            diagonal = factor_in_place(self.sum, order, damping)
            self._factored = _Factored((damping, act_order), order, diagonal)
        return self._sum

    def squared(self, weights: NDArray[np.float32]) -> float:
        """The sum of the squared outputs of ``weights`` (out, width) over all rows."""
        if self._factored is not None and not self._waiting:
            order = self._factored.order
            ordered = weights if (order == np.arange(self.width)).all() else weights[:, order]
            return factored_product(self._sum, self._factored.diagonal, ordered)
        h = self.sum
        parts = ((weights @ h[:, part].astype(np.float32), part) for part in blocks(self.width))
        return sum(
            float(np.einsum("oi,oi->", made, weights[:, part], dtype=np.float64)) for made, part in parts
        )


@dataclass(frozen=True, slots=True)
class _Factored:
    """A factor that is there: of which damping and order, and H's diagonal in that order."""

    key: tuple[float, bool]
    order: NDArray[np.intp]
    diagonal: Floats


def _dtype(width: int) -> str:
    return "float64" if width <= _WIDE else "float32"


def hessian_nbytes(width: int) -> int:
    """Bytes of a Hessian and of what is made of it."""
    waiting = 2 * 4 * min(_MOST_ROWS * width, _TOGETHER)  # as they came, and joined
    return width * (width + 2 * BLOCK_ROWS) * np.dtype(_dtype(width)).itemsize + waiting


def output_error(weights: NDArray[np.float32], other: NDArray[np.float32], hessian: Hessian) -> float:
    """Squared error of the outputs of ``other`` (out, in), as a part of the squared outputs of
    ``weights``."""
    wrong, right = hessian.squared(other - weights), hessian.squared(weights)
    return wrong / right if right > 0 else 0.0


def gptq(
    weights: NDArray[np.float32],
    hessian: Hessian,
    spec: QuantSpec,
    *,
    damping: float = DAMPING,
    act_order: bool = False,
) -> PackedTensor:
    """Round ``weights`` (out, in) to ``spec``.

    ``damping``: a part of the mean of the Hessian's diagonal, added to it. ``act_order``: columns of large
    activations first; scales are then chosen before the first is rounded, so that groups stay neighbours.
    Columns that nothing reached are rounded to nearest. Raises CheckpointError where no damping makes the
    Hessian one that can be inverted."""
    work = np.ascontiguousarray(weights.T, np.float32)  # a column is a row of it
    order, factor = hessian.order(act_order), hessian.factor(damping, act_order)
    numbers, scales = _walk(work, factor, order, _Grid(spec, importance(hessian)), act_order)
    del work
    back = np.argsort(order)
    return pack(np.ascontiguousarray(numbers[back].T), np.ascontiguousarray(scales.T), spec)


def gptq_on_grids(
    weights: NDArray[np.float32],
    hessian: Hessian,
    spec: QuantSpec,
    factors: Sequence[NDArray[np.float32]],
    damping: float = DAMPING,
) -> list[NDArray[np.float32]]:
    """For each of ``factors`` (columns,) what ``gptq`` would make of ``weights`` (out, in) where columns are
    multiplied by it before they are rounded, and divided afterwards, but for the damping, which is that of
    ``hessian`` as it is: all in one walk."""
    count, columns = weights.shape
    work = np.ascontiguousarray(np.tile(weights, (len(factors), 1)).T)
    finer = np.repeat(np.stack(factors, axis=1).astype(np.float32), count, axis=1)
    grid = _Grid(spec, importance(hessian), finer)
    numbers, scales = _walk(work, hessian.factor(damping, False), np.arange(columns), grid)
    values = numbers * np.repeat(scales, spec.group_size, axis=0) / finer
    return [np.ascontiguousarray(one) for one in np.split(values.T, len(factors))]


def importance(hessian: Hessian) -> NDArray[np.float32]:
    """How much a column's error counts, 1 on average: by the squares of what reaches it. One that nothing
    reaches counts next to nothing beside others, and all alike where there are no others."""
    diagonal = hessian.diagonal.astype(np.float64)
    alive = diagonal[diagonal > 0]
    mean = float(alive.mean()) if len(alive) else 1.0
    found = np.where(diagonal > 0, diagonal, _DEAD * mean)
    return (found / found.mean()).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Grid:
    """What columns are rounded to: ``finer`` (columns, out), where it is there, is how often they are
    multiplied before."""

    spec: QuantSpec
    importance: NDArray[np.float32]
    finer: NDArray[np.float32] | None = None

    def scales(self, work: NDArray[np.float32], part: slice) -> NDArray[np.float32]:
        """Scales (out, groups) of the columns ``part`` of ``work`` (columns, out)."""
        size = self.spec.group_size
        importance: NDArray[np.float32] = self.importance[part].reshape(-1, size)
        values = work[part]
        if self.finer is not None:
            finer = self.finer[part]
            values = values * finer
            squares = np.square(finer.T.reshape(finer.shape[1], -1, size))
            importance = (importance / squares).astype(np.float32)
        groups = np.ascontiguousarray(values.T).reshape(values.shape[1], -1, size)
        return search_scales(groups, importance, self.spec.row)

    def nearest(
        self, column: NDArray[np.float32], index: int, scales: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the column ``index`` (out,) the whole numbers, and what they stand for."""
        kind = self.spec.row
        finer = 1 if self.finer is None else self.finer[index]
        values = (column * finer)[None, :, None]
        numbers = rounding.whole_numbers(np, values, scales[None], kind.least, kind.most)[0, :, 0]
        return numbers, numbers * scales / finer


def _walk(
    work: NDArray[np.float32], factor: Floats, order: NDArray[np.intp], grid: _Grid, act_order: bool = False
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round ``work`` (columns, out), which is lost, column by column in ``order``: whole numbers (columns,
    out) in that order, and scales (groups, out)."""
    columns, count = work.shape
    group = grid.spec.group_size
    scales = np.zeros((columns // group, count), np.float32)
    if act_order:
        for rows in row_slices(count, columns):
            scales[:, rows] = grid.scales(work[:, rows], slice(0, columns)).T
        work = work[order]
    numbers = np.empty(work.shape, np.int8)
    block = max(1, BLOCK // group) * group if group <= _MOST else BLOCK
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.empty((stop - start, count), np.float32)
        upper = factor[start:stop, start:].astype(np.float32)
        for i in range(start, stop):
            place = order[i] // group
            if not act_order and i % group == 0:
                # What earlier blocks left to these columns is in them; what this one did, too.
                scales[place] = grid.scales(work, slice(i, i + group))[:, 0]
            numbers[i], values = grid.nearest(work[i], i, scales[place])
            j = i - start
            error = (work[i] - values) / upper[j, j]
            work[i + 1 : stop] -= upper[j, j + 1 : stop - start, None] * error
            errors[j] = error
        work[stop:] -= upper[:, stop - start :].T @ errors
    return numbers, scales
