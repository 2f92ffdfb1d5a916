"""What changes logits before a token is chosen: biases, bans, penalties, and grammars (engine/grammar.py).

A sequence holds a list of processors, applied in order. Each looks at the tokens accepted so far, and
can take back the last of them: rejected drafts leave no trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np

from minicpm4.engine.params import SamplingParams
from minicpm4.kernels.step import Array


class Processor(Protocol):
    """One change of the logits of one sequence."""

    @property
    def active(self) -> bool:
        """Whether ``adjust`` would change anything now. Where no processor is, nothing is copied."""
        ...

    def adjust(self, logits: Array) -> None:
        """Change ``logits`` (vocab,) float32 in place: a copy that the sampler made, for the next token. Of
        finite ones, none becomes NaN or +inf."""
        ...

    def accept(self, token: int) -> None:
        """The sequence goes on with ``token``."""
        ...

    def undo(self, n: int) -> None:
        """The last ``n`` accepted tokens are taken back: as if they had never been accepted."""
        ...


class Constraint(Processor, Protocol):
    """A processor that knows what a whole answer is. It comes after all others: what it forbids stays so."""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        ...

    def forced(self) -> int | None:
        """The token that alone ``adjust`` would allow; None where there is a choice."""
        ...


class Bias:
    """Adds a number to some logits; -inf forbids a token."""

    active = True

    def __init__(self, bias: dict[int, float]) -> None:
        self._ids = np.array(list(bias), np.int64)
        self._values = np.array(list(bias.values()), np.float32)

    def adjust(self, logits: Array) -> None:
        logits[self._ids] += self._values

    def accept(self, token: int) -> None:
        pass

    def undo(self, n: int) -> None:
        pass


class BanUntil:
    """Forbids tokens until ``length`` tokens have been accepted."""

    def __init__(self, ids: Iterable[int], length: int) -> None:
        self._ids, self._length = np.array(sorted(set(ids)), np.int64), length
        self._accepted = 0

    @property
    def active(self) -> bool:
        return self._accepted < self._length

    def adjust(self, logits: Array) -> None:
        logits[self._ids] = -np.inf

    def accept(self, token: int) -> None:
        self._accepted += 1

    def undo(self, n: int) -> None:
        self._accepted -= n


class _Occurrences:
    """Counts the accepted tokens, and remembers their order so that it can go back."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._counts: Counter[int] = Counter()

    @property
    def active(self) -> bool:
        return bool(self._counts)

    def accept(self, token: int) -> None:
        self._tokens.append(token)
        self._counts[token] += 1

    def undo(self, n: int) -> None:
        for _ in range(n):
            token = self._tokens.pop()
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]


class RepetitionPenalty(_Occurrences):
    """Divides the positive and multiplies the negative logits of tokens in ``prompt`` or output (CTRL)."""

    def __init__(self, penalty: float, prompt: Collection[int]) -> None:
        super().__init__()
        self._penalty, self._prompt = np.float32(penalty), frozenset(prompt)
        self._prompt_ids = np.array(sorted(self._prompt), np.int64)

    @property
    def active(self) -> bool:
        return bool(self._prompt or self._counts)

    def adjust(self, logits: Array) -> None:
        new = np.array([token for token in self._counts if token not in self._prompt], np.int64)
        for ids in (self._prompt_ids, new):
            values = logits[ids]
            with np.errstate(over="ignore"):  # of the largest floats; none may become infinite
                values = np.where(values > 0, values / self._penalty, values * self._penalty)
            logits[ids] = np.minimum(values, np.finfo(np.float32).max)


class OccurrencePenalty(_Occurrences):
    """Subtracts ``presence`` once and ``frequency`` per occurrence from tokens of the output."""

    def __init__(self, presence: float, frequency: float) -> None:
        super().__init__()
        self._presence, self._frequency = presence, frequency

    def adjust(self, logits: Array) -> None:
        ids = np.array(list(self._counts), np.int64)
        counts = np.array(list(self._counts.values()), np.float32)
        logits[ids] -= self._presence + self._frequency * counts


def make_processors(
    params: SamplingParams, prompt: Collection[int], end_ids: Collection[int] = ()
) -> list[Processor]:
    """The processors that ``params`` ask for, in the order that SamplingParams documents.

    ``end_ids`` are banned until ``params.min_tokens`` tokens have been sampled.
    """
    made: list[Processor] = []
    if params.logit_bias:
        made.append(Bias(dict(params.logit_bias)))
    if params.min_tokens and end_ids:
        made.append(BanUntil(end_ids, params.min_tokens))
    if params.repetition_penalty != 1:
        made.append(RepetitionPenalty(params.repetition_penalty, prompt))
    if params.presence_penalty or params.frequency_penalty:
        made.append(OccurrencePenalty(params.presence_penalty, params.frequency_penalty))
    return made


def adjusted(logits: Array, processors: Sequence[Processor]) -> Array:
    """``logits`` (vocab,) after all processors: the same array where none is active, else a copy."""
    active = [processor for processor in processors if processor.active]
    if active:
        logits = logits.copy()
    for processor in active:
        processor.adjust(logits)
    return logits
