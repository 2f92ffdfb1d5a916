"""The factor of a Hessian's inverse that GPTQ walks along, in the Hessian's own place: for the widest
matrices of large models an array of it takes a gigabyte. The factor is a triangle, and the Hessian, which is
symmetric, stays in the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError

__all__ = ["BLOCK", "blocks", "factor_in_place", "factored_product", "mirror_lower", "restore"]

BLOCK = 256  # rows and columns at a time; within them LAPACK's functions, between them matrix products
_TURNED = 1 << 20  # numbers that change places together
_TRIES = 4  # dampings, each ten times the one before

Floats = NDArray[np.floating]


def factor_in_place(h: Floats, order: NDArray[np.intp], damping: float) -> Floats:
    """Make of the symmetric ``h`` (n, n): on and above the diagonal the upper triangular U with
    (H + d)^-1 = U^T U, H being ``h`` in ``order``, in its type: row i says how what is missed in column i
    moves those that follow; below the diagonal H itself. Returns H's diagonal.

    d is ``damping`` times the mean of the diagonal; columns with nothing on it count as reached by nothing
    else, with that mean. Memory: rows of blocks. Raises CheckpointError where no damping helps; ``h`` is lost
    then."""
    # Of H reversed L L^T; reversed again H = R R^T with R upper, so H^-1 = (R^-1)^T R^-1.
    _permute(h, order[::-1])
    diagonal = np.diag(h).copy()
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    h[dead, :], h[:, dead] = 0.0, 0.0
    squares = [h[part, part].copy() for part in blocks(len(h))]
    at = np.arange(len(h))
    for attempt in range(_TRIES):
        if attempt:
            _mirror(h, squares)
        h[at[dead], at[dead]] = mean
        h[at, at] += mean * damping * 10.0**attempt
        try:
            _cholesky(h)
        except np.linalg.LinAlgError:
            continue
        _invert(h)
        if all(np.isfinite(row).all() for row in h):
            for part, square in zip(blocks(len(h)), squares, strict=True):
                h[part, part] = np.tril(h[part, part]) + np.triu(square, 1)
            _turn(h.reshape(-1))
            return diagonal[::-1].copy()
    raise CheckpointError("the Hessian cannot be inverted", "use more calibration text")


def restore(h: Floats, order: NDArray[np.intp], diagonal: Floats) -> None:
    """Undo ``factor_in_place``, which has returned ``diagonal``: ``h`` is what it was."""
    at = np.arange(len(h))
    h[at, at] = diagonal
    mirror_lower(h)
    _permute(h, np.argsort(order))


def mirror_lower(h: Floats) -> None:
    """Make ``h`` symmetric by what stands on and below its diagonal."""
    for part in blocks(len(h)):
        square = np.tril(h[part, part])
        h[part, part] = square + np.tril(square, -1).T
        h[part, part.stop :] = h[part.stop :, part].T


def factored_product(h: Floats, diagonal: Floats, x: NDArray[np.float32]) -> float:
    """The sum over rows of x H x^T, for ``h`` that ``factor_in_place`` has changed, and ``x`` (rows, n) with
    columns in its order."""
    total = float(np.einsum("ri,ri,i->", x, x, diagonal, dtype=np.float64))
    for part in blocks(len(h)):
        below = h[part.start :, part].astype(np.float32)
        width = below.shape[1]
        below[:width] = np.tril(below[:width], -1)
        reached = x[:, part.start :] @ below
        total += 2 * float(np.einsum("ri,ri->", reached, x[:, part], dtype=np.float64))
    return total


def blocks(n: int) -> Iterator[slice]:
    """Rows, or columns, of blocks."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def _cholesky(a: Floats) -> None:
    """The lower factor of ``a`` in the place of its lower triangle; blocks above the diagonal stay. Raises
    LinAlgError where there is none."""
    n = len(a)
    for here in blocks(n):
        below = slice(here.stop, n)
        a[here, here] = np.linalg.cholesky(a[here, here])
        a[below, here] = a[below, here] @ np.linalg.inv(a[here, here]).T
        for first in range(here.stop, n, BLOCK):
            part, rest = slice(first, min(first + BLOCK, n)), slice(first, n)
            a[rest, part] -= a[rest, here] @ a[part, here].T


def _invert(a: Floats) -> None:
    """The inverse of the lower triangle of ``a`` in its place; blocks above the diagonal stay."""
    n = len(a)
    for start in reversed(range(0, n, BLOCK)):
        stop = min(start + BLOCK, n)
        here = slice(start, stop)
        a[here, here] = np.tril(np.linalg.inv(a[here, here]))
        for last in reversed(range(stop, n, BLOCK)):
            part = slice(last, min(last + BLOCK, n))
            # Rows of the inverse below are there already, and those of ``a`` in this column still above them.
            a[part, here] = -(a[part, stop : part.stop] @ a[stop : part.stop, here]) @ a[here, here]


def _mirror(a: Floats, squares: list[Floats]) -> None:
    """Make ``a`` symmetric by what stands above its diagonal, with ``squares`` on it."""
    for part, square in zip(blocks(len(a)), squares, strict=True):
        a[part, part] = square
        a[part.stop :, part] = a[part, part.stop :].T


def _permute(a: Floats, order: NDArray[np.intp]) -> None:
    """Put rows and columns of the symmetric ``a`` in ``order``."""
    if (order == np.arange(len(a))).all():
        return
    if (order == np.arange(len(a))[::-1]).all():
        _turn(a.reshape(-1))
        return
    for _ in range(2):  # columns, then those that were rows
        for part in blocks(len(a)):
            a[part] = a[part][:, order]
        _transpose(a)


def _transpose(a: Floats) -> None:
    for part in blocks(len(a)):
        a[part, part] = a[part, part].T.copy()
        above = a[part, part.stop :].copy()
        a[part, part.stop :] = a[part.stop :, part].T
        a[part.stop :, part] = above.T


def _turn(flat: Floats) -> None:
    """Reverse a vector in its place."""
    for start in range(0, len(flat) // 2, _TURNED):
        size = min(_TURNED, len(flat) // 2 - start)
        head, tail = slice(start, start + size), slice(len(flat) - start - size, len(flat) - start)
        kept = flat[head].copy()
        flat[head] = flat[tail][::-1]
        flat[tail] = kept[::-1]
