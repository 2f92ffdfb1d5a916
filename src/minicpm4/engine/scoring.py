"""What can be asked of a whole text at once: logits, the likelihood of its tokens, its mean state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.driver import Driver
from minicpm4.engine.outputs import TokenLogprobs
from minicpm4.engine.plan import check_score
from minicpm4.engine.sampler import Draw, log_probabilities
from minicpm4.errors import RequestError
from minicpm4.kernels.contract import OpTable
from minicpm4.machine import available_memory
from minicpm4.progress import Progress

Floats = NDArray[np.float32]


def logits_of(driver: Driver, ids: Sequence[int], progress: Progress | None) -> Floats:
    """Logits (n, vocab) of n token ids. Raises RequestError, MemoryPlanError."""
    vocab_size = driver.limits.vocab_size
    check_score(len(ids), vocab_size, available_memory())
    result = np.empty((len(ids), vocab_size), np.float32)

    def keep(start: int, logits: Floats) -> None:
        result[start : start + len(logits)] = logits

    driver.call(lambda engine: engine.score(ids, keep, progress))
    return result


def nll_of(driver: Driver, ops: OpTable, ids: Sequence[int], progress: Progress | None) -> Floats:
    """-log p of each next token, (n - 1,), in nats; ``ops`` are the host's. Raises RequestError."""
    if len(ids) < 2:
        raise RequestError(f"{len(ids)} tokens have no next token to score", "pass two or more")
    result = np.empty(len(ids) - 1, np.float32)

    def keep(start: int, logits: Floats) -> None:
        following = ids[start + 1 : start + 1 + len(logits)]
        rows = logits[: len(following)]
        if len(rows):
            chosen = rows[np.arange(len(rows)), following]
            result[start : start + len(rows)] = ops.log_sum_exp(rows) - chosen

    driver.call(lambda engine: engine.score(ids, keep, progress))
    return result


def logprobs_of(
    driver: Driver, ops: OpTable, ids: Sequence[int], top: int, progress: Progress | None
) -> list[TokenLogprobs | None]:
    """Log probabilities of each token and of the ``top`` best in its place, None for the first. Raises
    RequestError."""
    found: list[TokenLogprobs | None] = [None]

    def keep(start: int, logits: Floats) -> None:
        for row, token in zip(logits, ids[start + 1 : start + 1 + len(logits)], strict=False):
            found.append(log_probabilities(ops, row, Draw(token, 0.0), top))

    driver.call(lambda engine: engine.score(ids, keep, progress))
    return found


def direction_of(driver: Driver, ids: Sequence[int], progress: Progress | None) -> Floats:
    """The mean state (hidden,) of a text's tokens, of length 1. Raises RequestError, UnsupportedError."""
    total: list[NDArray[np.float64]] = []

    def add(start: int, states: Floats) -> None:
        total.append(states.sum(0, dtype=np.float64))

    driver.call(lambda engine: engine.states(ids, add, progress))
    mean = np.sum(total, 0)
    return (mean / max(float(np.linalg.norm(mean)), 1e-30)).astype(np.float32)
