"""From logits to tokens, one row at a time, without sorting the vocabulary.

Filters that need an order (top_k, top_p) look at candidates from ``ops.top_k``, more of them until
they are enough. Each sequence draws one uniform number a token from its own generator, so what is
batched beside it does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.outputs import TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import CheckpointError, RequestError
from minicpm4.kernels.contract import Array, OpTable

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

FIRST_CANDIDATES = 64  # for top_p, before asking for more


class SampleState:
    """What sampling remembers of one sequence: its generator, and which tokens have occurred.

    ``end_ids`` are banned until ``params.min_tokens`` tokens have been sampled.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Iterable[int],
        rng: np.random.Generator,
        end_ids: Iterable[int] = (),
    ) -> None:
        self.params, self.rng = params, rng
        self.counts: Counter[int] = Counter()
        self.num_sampled = 0
        self._seen = set(prompt) if params.repetition_penalty != 1 else set()
        self._ends = np.array(sorted(set(end_ids)), np.int64)
        self._bias_ids = np.array(list(params.logit_bias), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)

    def append(self, token: int) -> None:
        """Remember a sampled token."""
        self.counts[token] += 1
        self.num_sampled += 1

    def adjust(self, logits: Array) -> Array:
        """Return ``logits`` (vocab,) with bias and penalties: the same array where there are none."""
        params = self.params
        banned = len(self._ends) > 0 and self.num_sampled < params.min_tokens
        penal = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
        if not (banned or penal or len(self._bias_ids)):
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if banned:
            logits[self._ends] = -np.inf
        if params.repetition_penalty != 1:
            ids = np.array(sorted(self._seen | self.counts.keys()), np.int64)
            values, factor = logits[ids], np.float32(params.repetition_penalty)
            logits[ids] = np.where(values > 0, values / factor, values * factor)
        if self.counts and (params.presence_penalty or params.frequency_penalty):
            ids = np.array(list(self.counts), np.int64)
            counts = np.array(list(self.counts.values()), np.float32)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
        return logits


def sample(ops: OpTable, logits: Array, state: SampleState) -> int:
    """Choose the next token from ``logits`` (vocab,) float32, which stay as they are.

    Raises RequestError when every token is forbidden, CheckpointError for logits that are no numbers.
    """
    adjusted = state.adjust(logits)
    best = int(np.argmax(adjusted))
    top = float(adjusted[best])
    if not np.isfinite(top):
        _refuse(top, logits)
    if state.params.greedy:
        return best
    ids, probabilities = distribution(ops, adjusted, state.params, top)
    cumulative = np.cumsum(probabilities)
    draw = state.rng.random() * cumulative[-1]
    # Rounding may put the draw past the end; a candidate of probability 0 must not be hit there.
    position = min(int(np.searchsorted(cumulative, draw, side="right")), len(cumulative) - 1)
    while probabilities[position] == 0:
        position -= 1
    return int(ids[position]) if ids is not None else position


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


def log_probabilities(ops: OpTable, logits: Array, token: int, top: int) -> TokenLogprobs:
    """Log probabilities under softmax(logits), logits (vocab,): of ``token``, and of the ``top`` best."""
    total = float(ops.log_sum_exp(logits[None])[0])
    best: dict[int, float] = {}
    if top:
        values, ids = ops.top_k(logits[None], min(top, len(logits)))
        best = {int(i): float(v) - total for i, v in zip(ids[0], values[0], strict=True)}
    return TokenLogprobs(token_id=token, logprob=float(logits[token]) - total, top=best)


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


def _refuse(top: float, logits: Array) -> None:
    if top == -np.inf and np.isfinite(logits).any():
        raise RequestError("logit_bias and min_tokens forbid every token", "forbid fewer")
    raise CheckpointError(
        "the model returned logits that are no finite numbers",
        "the checkpoint is damaged, or its weights overflow the format they were converted to",
    )
