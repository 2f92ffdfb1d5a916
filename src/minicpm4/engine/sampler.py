"""From logits to tokens, one row at a time, without sorting the vocabulary.

Filters that need an order (top_k, top_p) look at candidates from ``ops.top_k``, more of them until
they are enough. Each sequence draws one uniform number a token from its own generator, so what is
batched beside it does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.outputs import TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.processors import Constraint, Processor, adjusted
from minicpm4.errors import CheckpointError, RequestError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Array

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

FIRST_CANDIDATES = 64  # for top_p, before asking for more


@dataclass(slots=True, eq=False)
class SampleState:
    """What sampling remembers of one sequence: its generator, and what its tokens have changed.

    ``constraint``: the last of its processors, where its answer has one."""

    params: SamplingParams
    rng: np.random.Generator
    processors: list[Processor] = field(default_factory=list)
    constraint: Constraint | None = None

    def accept(self, token: int) -> None:
        """The sequence goes on with ``token``."""
        for processor in self.processors:
            processor.accept(token)

    def forced(self) -> int | None:
        """The next token, where the constraint leaves no choice: what ``sample`` would draw of any logits. A
        number is drawn for it all the same, so what is drawn later is as if it had been asked."""
        token = None if self.constraint is None else self.constraint.forced()
        if token is not None and not self.params.greedy:
            self.rng.random()
        return token

    def undo(self, n: int) -> None:
        """The last ``n`` accepted tokens are taken back. Numbers drawn stay drawn."""
        for processor in self.processors:
            processor.undo(n)


class Draw(NamedTuple):
    """A chosen token, and its natural log probability in the distribution that it was drawn from."""

    token: int
    logprob: float


def sample(ops: OpTable, logits: Array, state: SampleState) -> Draw:
    """Choose the next token from ``logits`` (vocab,) float32, which stay as they are.

    Raises RequestError when every token is forbidden, CheckpointError for logits that are no numbers.
    """
    changed = adjusted(logits, state.processors)
    best = int(np.argmax(changed))
    top = float(changed[best])
    if not np.isfinite(top):
        _refuse(top, logits, state.params)
    if state.params.greedy:
        return Draw(best, 0.0)
    ids, weights = distribution(ops, changed, state.params, top)
    cumulative = np.cumsum(weights)
    draw = state.rng.random() * cumulative[-1]
    # Rounding may put the draw past the end; a candidate of probability 0 must not be hit there.
    position = min(int(np.searchsorted(cumulative, draw, side="right")), len(cumulative) - 1)
    while weights[position] == 0:
        position -= 1
    token = int(ids[position]) if ids is not None else position
    return Draw(token, float(np.log(weights[position] / cumulative[-1])))


def distribution(
    ops: OpTable, logits: Array, params: SamplingParams, top: float | None = None
) -> tuple[Ids | None, Doubles]:
    """Return candidate ids (None: all tokens in order) and their probabilities after temperature,
    top_k, top_p and min_p, up to a common factor. ``top``: the largest logit, where known."""
    top = float(logits.max()) if top is None else top
    ids: Ids | None = None
    if params.top_k and params.top_k < len(logits):
        ids, values = _best(ops, logits, params.top_k)
        weights = _weights(values, top, params.temperature)
        if params.top_p < 1:
            ids, weights = _cut(ids, weights, params.top_p * weights.sum())
    elif params.top_p < 1:
        ids, weights = _nucleus(ops, logits, params, top)
    else:
        weights = _weights(logits, top, params.temperature)
    if params.min_p:  # the best weighs 1
        weights = np.where(weights >= params.min_p, weights, 0.0)
    return ids, weights


def log_probabilities(ops: OpTable, logits: Array, draw: Draw, top: int) -> TokenLogprobs:
    """Log probabilities under softmax(logits), logits (vocab,): of the drawn token, and of the ``top`` best;
    beside them that of the draw."""
    total = float(ops.log_sum_exp(logits[None])[0])
    best: dict[int, float] = {}
    if top:
        values, ids = ops.top_k(logits[None], min(top, len(logits)))
        best = {int(i): float(v) - total for i, v in zip(ids[0], values[0], strict=True)}
    return TokenLogprobs(
        token_id=draw.token,
        logprob=float(logits[draw.token]) - total,
        sampling_logprob=draw.logprob,
        top=best,
    )


def _best(ops: OpTable, logits: Array, k: int) -> tuple[Ids, Array]:
    values, ids = ops.top_k(logits[None], k)
    return ids[0].astype(np.int64), values[0]


def _weights(values: Array, top: float, temperature: float) -> Doubles:
    with np.errstate(over="ignore"):  # a tiny temperature: weight 0, as it should be
        return np.asarray(np.exp((values.astype(np.float64) - top) / temperature))


def _nucleus(ops: OpTable, logits: Array, params: SamplingParams, top: float) -> tuple[Ids, Doubles]:
    wanted = params.top_p * float(_weights(logits, top, params.temperature).sum())
    k = FIRST_CANDIDATES
    while True:
        k = min(k, len(logits))
        ids, values = _best(ops, logits, k)
        weights = _weights(values, top, params.temperature)
        if k == len(logits) or weights.sum() >= wanted:
            return _cut(ids, weights, wanted)
        k *= 8


def _cut(ids: Ids, weights: Doubles, wanted: float) -> tuple[Ids, Doubles]:
    """The shortest beginning of candidates, best first, that weighs at least ``wanted``."""
    keep = int(np.searchsorted(np.cumsum(weights), wanted)) + 1
    return ids[:keep], weights[:keep]


def _refuse(top: float, logits: Array, params: SamplingParams) -> None:
    if top == -np.inf and np.isfinite(logits).any():
        if params.constraint is not None:
            raise RequestError(
                f"logit_bias forbids every token that {params.constraint} allows here", "forbid fewer"
            )
        raise RequestError("logit_bias and min_tokens forbid every token", "forbid fewer")
    raise CheckpointError(
        "the model returned logits that are no finite numbers",
        "the checkpoint is damaged, or its weights overflow the format they were converted to",
    )
