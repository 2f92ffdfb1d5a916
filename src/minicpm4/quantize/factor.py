"""The factor of a Hessian's inverse that GPTQ walks along, computed in place and in blocks: for the widest
matrices of large models an array of it takes a gigabyte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError

__all__ = ["inverse_factor"]

BLOCK = 256  # rows and columns at a time; within them LAPACK's functions, between them matrix products
_TURNED = 1 << 20  # numbers that change places together
_TRIES = 4  # dampings, each ten times the one before

Floats = NDArray[np.floating]


def inverse_factor(h: Floats, order: NDArray[np.intp], dead: NDArray[np.bool_], damping: float) -> Floats:
    """The upper triangular U with (H + d)^-1 = U^T U, of ``h`` (n, n) in ``order``, in its type: row i says
    how what is missed in column i moves those that follow. d is ``damping`` times the mean of the diagonal;
    columns ``dead`` count as reached by nothing else, with that mean. Beside ``h``, which stays, the memory
    is that of U. Raises CheckpointError where no damping helps."""
    turned = order[::-1]
    gone = dead[turned]
    mean = float(np.diag(h)[~dead].mean()) if not dead.all() else 1.0
    diagonal = np.arange(len(h))
    for attempt in range(_TRIES):
        found = h[np.ix_(turned, turned)]
        found[gone, :], found[:, gone] = 0.0, 0.0
        found[diagonal[gone], diagonal[gone]] = mean
        found[diagonal, diagonal] += mean * damping * 10.0**attempt
        # Of H reversed L L^T; reversed again H = R R^T with R upper, so H^-1 = (R^-1)^T R^-1.
        try:
            _cholesky(found)
        except np.linalg.LinAlgError:
            continue
        _invert(found)
        if all(np.isfinite(row).all() for row in found):
            _turn(found.reshape(-1))
            return found
    raise CheckpointError("the Hessian cannot be inverted", "use more calibration text")


def _cholesky(a: Floats) -> None:
    """The lower factor of ``a`` in its place, zeros above. Raises LinAlgError where there is none."""
    n = len(a)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        here, below = slice(start, stop), slice(stop, n)
        a[here, here] = np.linalg.cholesky(a[here, here])
        a[below, here] = a[below, here] @ np.linalg.inv(a[here, here]).T
        for first in range(stop, n, BLOCK):
            part, rest = slice(first, min(first + BLOCK, n)), slice(first, n)
            a[rest, part] -= a[rest, here] @ a[part, here].T
        a[here, below] = 0.0


def _invert(a: Floats) -> None:
    """The inverse of the lower triangular ``a`` in its place."""
    n = len(a)
    for start in reversed(range(0, n, BLOCK)):
        stop = min(start + BLOCK, n)
        here = slice(start, stop)
        a[here, here] = np.tril(np.linalg.inv(a[here, here]))
        for last in reversed(range(stop, n, BLOCK)):
            part = slice(last, min(last + BLOCK, n))
            # Rows of the inverse below are there already, and those of ``a`` in this column still above them.
            a[part, here] = -(a[part, stop : part.stop] @ a[stop : part.stop, here]) @ a[here, here]


def _turn(flat: Floats) -> None:
    """Reverse a vector in its place."""
    for start in range(0, len(flat) // 2, _TURNED):
        size = min(_TURNED, len(flat) // 2 - start)
        head, tail = slice(start, start + size), slice(len(flat) - start - size, len(flat) - start)
        kept = flat[head].copy()
        flat[head] = flat[tail][::-1]
        flat[tail] = kept[::-1]
