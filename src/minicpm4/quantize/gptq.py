"""GPTQ (arXiv 2210.17323): round a matrix column by column, and let the columns that follow make up for the
error.

The Hessian of a layer's squared output error is H = X^T X over the rows x that reach the layer. P-GPTQ
(MiniCPM4, arXiv 2506.07900, section 6) leaves out the first positions of every sequence, whose activations
are ten times larger and would decide all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats import rounding
from minicpm4.formats.packing import row_slices
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.quantize.factor import BLOCK as BLOCK_ROWS
from minicpm4.quantize.factor import blocks, factor_in_place, factored_product, restore
from minicpm4.quantize.grid import pack, search_scales

__all__ = ["BLOCK", "DAMPING", "Hessian", "gptq", "hessian_nbytes", "output_error"]

BLOCK = 64  # columns whose errors are handed on together: within it one by one, beyond it as one product
DAMPING = 0.01  # of the mean of the diagonal, added to it
_MOST = 256  # of them
_WIDE = 7000  # columns: of more, what is made of their square in float64 would take over 1 GB

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
    _factored: _Factored | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._sum = np.zeros((self.width, self.width), _dtype(self.width))
        self.size = np.zeros(self.width)

    def add(self, x: NDArray[np.float32]) -> None:
        """Add the rows x (n, width) of one sequence from its beginning; the first ``skip`` are left out."""
        x, h = np.ascontiguousarray(x[self.skip :]), self.sum
        for part in blocks(self.width):  # one triangle of it, and the other the same to the bit
            made = x[:, part.start :].T @ x[:, part]
            width = made.shape[1]
            made[:width] = np.tril(made[:width]) + np.tril(made[:width], -1).T
            h[part.start :, part] += made
            h[part, part.stop :] += made[width:].T
        self.size += np.abs(x).sum(axis=0, dtype=np.float64)
        self.rows += len(x)

    @property
    def sum(self) -> Floats:
        """X^T X; a factor that was made of it is gone afterwards."""
        if self._factored is not None:
            restore(self._sum, self._factored.order, self._factored.diagonal)
            self._factored = None
        return self._sum

    @property
    def diagonal(self) -> Floats:
        """That of ``sum``."""
        if self._factored is None:
            return np.diag(self._sum).copy()
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
        if self._factored is None or self._factored.key != (damping, act_order):
            order = self.order(act_order)
            diagonal = factor_in_place(self.sum, order, damping)
            self._factored = _Factored((damping, act_order), order, diagonal)
        return self._sum

    def squared(self, weights: NDArray[np.float32]) -> float:
        """The sum of the squared outputs of ``weights`` (out, width) over all rows."""
        if self._factored is not None:
            order = self._factored.order
            ordered = weights if (order == np.arange(self.width)).all() else weights[:, order]
            return factored_product(self._sum, self._factored.diagonal, ordered)
        parts = ((weights @ self._sum[:, part].astype(np.float32), part) for part in blocks(self.width))
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
    return width * (width + 2 * BLOCK_ROWS) * np.dtype(_dtype(width)).itemsize


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
    kind, group = spec.row, spec.group_size
    columns = weights.shape[1]
    diagonal = hessian.diagonal
    dead = diagonal <= 0
    work = np.ascontiguousarray(weights.T, np.float32)  # a column is a row of it
    order = hessian.order(act_order)
    importance = np.where(dead, 1.0, diagonal).astype(np.float32)
    importance /= importance.mean()
    factor = hessian.factor(damping, act_order)
    scales = np.zeros((columns // group, weights.shape[0]), np.float32)
    if act_order:
        for rows in row_slices(weights.shape[0], columns):
            scales[:, rows] = _scales(work[:, rows], importance, slice(0, columns), spec).T
        work = work[order]
    numbers = np.empty(work.shape, np.int8)
    block = max(1, BLOCK // group) * group if group <= _MOST else BLOCK
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.empty((stop - start, work.shape[1]), np.float32)
        upper = factor[start:stop, start:].astype(np.float32)
        for i in range(start, stop):
            place = order[i] // group
            if not act_order and i % group == 0:
                # What earlier blocks left to these columns is in them; what this one did, too.
                scales[place] = _scales(work, importance, slice(i, i + group), spec)[:, 0]
            column = work[i]
            rounded = rounding.whole_numbers(
                np, column[None, :, None], scales[place][None], kind.least, kind.most
            )[0, :, 0]
            numbers[i] = rounded
            j = i - start
            error = (column - rounded * scales[place]) / upper[j, j]
            work[i + 1 : stop] -= upper[j, j + 1 : stop - start, None] * error
            errors[j] = error
        work[stop:] -= upper[:, stop - start :].T @ errors
    del work
    back = np.argsort(order)
    return pack(np.ascontiguousarray(numbers[back].T), np.ascontiguousarray(scales.T), spec)


def _scales(
    work: NDArray[np.float32], importance: NDArray[np.float32], part: slice, spec: QuantSpec
) -> NDArray[np.float32]:
    """Scales (out, groups) of the columns ``part``."""
    values = np.ascontiguousarray(work[part].T)
    groups = values.reshape(len(values), -1, spec.group_size)
    return search_scales(groups, importance[part].reshape(-1, spec.group_size), spec.row)
