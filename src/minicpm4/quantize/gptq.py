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
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.quantize.factor import inverse_factor
from minicpm4.quantize.grid import pack, search_scales

__all__ = [
    "BLOCK",
    "DAMPING",
    "Hessian",
    "factor_nbytes",
    "gptq",
    "output_error",
    "squared_output",
    "sum_nbytes",
]

BLOCK = 64  # columns whose errors are handed on together: within it one by one, beyond it as one product
DAMPING = 0.01  # of the mean of the diagonal, added to it
_MOST = 256  # of them
_WIDE = 7000  # columns: of more, what is made of their square in float64 would take over 1 GB

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating]


@dataclass(slots=True, eq=False)
class Hessian:
    """X^T X (width, width) of the rows that reach the matrices of a stage, and the mean magnitude of each of
    their columns. Memory: two arrays of width², of float64 up to 7,000 columns, beyond of float32."""

    width: int
    skip: int = 0
    rows: int = 0
    sum: Floats = field(init=False)
    size: Doubles = field(init=False)
    _factors: dict[tuple[float, bool], Floats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.sum = np.zeros((self.width, self.width), _dtype(self.width))
        self.size = np.zeros(self.width)

    def add(self, x: NDArray[np.float32]) -> None:
        """Add the rows x (n, width) of one sequence from its beginning; the first ``skip`` are left out."""
        self._factors.clear()
        x = np.ascontiguousarray(x[self.skip :])
        self.sum += x.T @ x
        self.size += np.abs(x).sum(axis=0, dtype=np.float64)
        self.rows += len(x)

    @property
    def mean_size(self) -> Doubles:
        """Mean magnitude of each column."""
        return self.size / max(1, self.rows)

    def order(self, act_order: bool) -> NDArray[np.intp]:
        """Columns in the order in which they are rounded."""
        return np.argsort(-np.diag(self.sum), kind="stable") if act_order else np.arange(self.width)

    def factor(self, damping: float, act_order: bool) -> Floats:
        """See ``inverse_factor``; made once for all matrices of a stage. Raises CheckpointError."""
        key = (damping, act_order)
        if key not in self._factors:
            dead = np.diag(self.sum) <= 0
            self._factors = {key: inverse_factor(self.sum, self.order(act_order), dead, damping)}
        return self._factors[key]


def _dtype(width: int) -> str:
    return "float64" if width <= _WIDE else "float32"


def sum_nbytes(width: int) -> int:
    """Bytes of a Hessian's ``sum``."""
    return width * width * np.dtype(_dtype(width)).itemsize


def factor_nbytes(width: int) -> int:
    """Bytes of what is made of it: the factor, and where it is float64 a float32 copy of the sum."""
    return sum_nbytes(width) + (4 * width * width if width <= _WIDE else 0)


def output_error(weights: NDArray[np.float32], other: NDArray[np.float32], hessian: Hessian) -> float:
    """Squared error of the outputs of ``other`` (out, in), as a part of the squared outputs of
    ``weights``."""
    h = hessian.sum.astype(np.float32, copy=False)
    wrong, right = squared_output(other - weights, h), squared_output(weights, h)
    return wrong / right if right > 0 else 0.0


def squared_output(weights: NDArray[np.float32], h: NDArray[np.float32]) -> float:
    """Sum of the squared outputs of ``weights`` (out, in) over the rows whose sum of products is ``h``."""
    return float(np.einsum("oi,oi->", weights @ h, weights, dtype=np.float64))


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
    diagonal = np.diag(hessian.sum).copy()
    dead = diagonal <= 0
    work = np.ascontiguousarray(weights.T, np.float32)  # a column is a row of it
    order = hessian.order(act_order)
    importance = np.where(dead, 1.0, diagonal).astype(np.float32)
    importance /= importance.mean()
    factor = hessian.factor(damping, act_order)
    scales = np.zeros((columns // group, weights.shape[0]), np.float32)
    if act_order:
        scales = np.ascontiguousarray(_scales(work, importance, slice(0, columns), spec).T)
    work = work[order]
    numbers = np.empty_like(work)
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
            numbers[i] = rounding.whole_numbers(
                np, column[None, :, None], scales[place][None], kind.least, kind.most
            )[0, :, 0]
            j = i - start
            error = (column - numbers[i] * scales[place]) / upper[j, j]
            work[i + 1 : stop] -= upper[j, j + 1 : stop - start, None] * error
            errors[j] = error
        work[stop:] -= upper[:, stop - start :].T @ errors
    back = np.argsort(order)
    return pack(np.ascontiguousarray(numbers[back].T), np.ascontiguousarray(scales.T), spec)


def _scales(
    work: NDArray[np.float32], importance: NDArray[np.float32], part: slice, spec: QuantSpec
) -> NDArray[np.float32]:
    """Scales (out, groups) of the columns ``part``."""
    values = np.ascontiguousarray(work[part].T)
    groups = values.reshape(len(values), -1, spec.group_size)
    return search_scales(groups, importance[part].reshape(-1, spec.group_size), spec.row)
