"""What can be asked of a whole text at once: logits, the likelihood of its tokens, its mean state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.config.strict import check_integer
from minicpm4.engine.api import Shown, check_ids
from minicpm4.engine.driver import Driver
from minicpm4.engine.mailbox import Mailbox
from minicpm4.engine.outputs import Event, Failed, Prefilled, Read, TokenLogprobs
from minicpm4.engine.params import MAX_LOGPROBS, nearest_or_sampling
from minicpm4.engine.plan import check_score
from minicpm4.engine.prompts import Prompt, Prompts, plain_ids, split_prompts
from minicpm4.engine.sampler import Draw, log_probabilities
from minicpm4.errors import EngineError, RequestError
from minicpm4.kernels.contract import OpTable
from minicpm4.machine import available_memory
from minicpm4.progress import Progress, check_progress

Floats = NDArray[np.float32]
T = TypeVar("T")


class Score(Generic[T]):
    """What is made of a text while it is read. ``visit`` may be shown rows again, from the first on."""

    shown: Shown = "logits"

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def visit(self, start: int, rows: Floats) -> None:
        """Take what the engine shows (``EngineAPI.read``)."""
        raise NotImplementedError

    def result(self) -> T:
        """When all has been shown."""
        raise NotImplementedError


class Logits(Score[Floats]):
    """Logits (n, vocab). Raises MemoryPlanError where they do not fit."""

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        super().__init__(ids)
        check_score(len(ids), vocab_size, available_memory())
        self._found = np.empty((len(ids), vocab_size), np.float32)

    def visit(self, start: int, rows: Floats) -> None:
        """See Score."""
        self._found[start : start + len(rows)] = rows

    def result(self) -> Floats:
        """See Score."""
        return self._found


class Losses(Score[Floats]):
    """-log p of each next token, (n - 1,), in nats; ``ops`` are the host's. Raises RequestError."""

    def __init__(self, ids: Sequence[int], ops: OpTable) -> None:
        super().__init__(ids)
        if len(ids) < 2:
            raise RequestError(f"{len(ids)} tokens have no next token to score", "pass two or more")
        self._ops, self._found = ops, np.empty(len(ids) - 1, np.float32)

    def visit(self, start: int, rows: Floats) -> None:
        """See Score."""
        following = self.ids[start + 1 : start + 1 + len(rows)]
        rows = rows[: len(following)]
        if len(rows):
            chosen = rows[np.arange(len(rows)), following]
            self._found[start : start + len(rows)] = self._ops.log_sum_exp(rows) - chosen

    def result(self) -> Floats:
        """See Score."""
        return self._found


@dataclass(frozen=True, slots=True)
class Ending:
    """How well a text's end is foreseen: log p of all its tokens together, in nats, and whether each of them
    is the likeliest in its place."""

    logprob: float
    greedy: bool


class Endings(Score[list[Ending]]):
    """Endings of texts that are alike but for their last tokens, which are not among ``ids``. ``asked``: of
    each the place where its end begins, and its last token; ``ops`` are the host's."""

    def __init__(self, ids: Sequence[int], asked: Sequence[tuple[int, int]], ops: OpTable) -> None:
        super().__init__(ids)
        self._asked, self._ops = asked, ops
        self._skipped = min(first for first, _ in asked) - 1  # rows that foresee none of the ends
        self._inner, self._best = np.zeros(len(ids) - 1, np.float32), np.zeros(len(ids), np.int64)
        self._last = np.zeros(len(asked), np.float32)

    def visit(self, start: int, rows: Floats) -> None:
        """See Score."""
        skipped = max(0, self._skipped - start)
        start, rows = start + skipped, rows[skipped:]
        if not len(rows):
            return
        sums = self._ops.log_sum_exp(rows)
        self._best[start : start + len(rows)] = rows.argmax(axis=1)
        following = np.asarray(self.ids[start + 1 : start + 1 + len(rows)], np.int64)
        count = len(following)
        self._inner[start : start + count] = rows[np.arange(count), following] - sums[:count]
        if count < len(rows):
            self._last[:] = rows[-1, [last for _, last in self._asked]] - sums[-1]

    def result(self) -> list[Ending]:
        """See Score."""
        own = np.asarray(self.ids[1:], np.int64)
        return [
            Ending(
                float(self._inner[first - 1 :].sum(dtype=np.float64) + final),
                bool((self._best[first - 1 : -1] == own[first - 1 :]).all() and self._best[-1] == last),
            )
            for (first, last), final in zip(self._asked, self._last, strict=True)
        ]


class Likelihoods(Score[list[TokenLogprobs | None]]):
    """Log probabilities of each token and of the ``top`` best in its place, None for the first."""

    def __init__(self, ids: Sequence[int], ops: OpTable, top: int) -> None:
        super().__init__(ids)
        self._ops, self._top = ops, top
        self._found: list[TokenLogprobs | None] = [None] * len(ids)

    def visit(self, start: int, rows: Floats) -> None:
        """See Score."""
        for at, row in enumerate(rows[: len(self.ids) - 1 - start], start + 1):
            self._found[at] = log_probabilities(self._ops, row, Draw(self.ids[at], 0.0), self._top)

    def result(self) -> list[TokenLogprobs | None]:
        """See Score."""
        return self._found


class Direction(Score[Floats]):
    """The mean state (hidden,) of a text's tokens, of length 1."""

    shown: Shown = "states"

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(ids)
        self._total: NDArray[np.float64] | None = None

    def visit(self, start: int, rows: Floats) -> None:
        """See Score."""
        # Row by row, in order: however the text was cut, the sum is the same.
        parts: list[NDArray[Any]] = [rows] if start == 0 or self._total is None else [self._total[None], rows]
        self._total = np.add.reduce(np.concatenate(parts, dtype=np.float64), axis=0)

    def result(self) -> Floats:
        """See Score."""
        assert self._total is not None
        return (self._total / max(float(np.linalg.norm(self._total)), 1e-30)).astype(np.float32)


class Readings:
    """Texts that are being read, for a mailbox of ``driver``. ``progress(done, total)`` counts the tokens of
    all together."""

    def __init__(self, driver: Driver, box: Mailbox, progress: Progress | None) -> None:
        self._driver, self._box, self._progress = driver, box, progress
        self._read: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def ask(self, scores: Sequence[Score[Any]]) -> None:
        """Have them read, all or none. Raises RequestError, UnsupportedError."""
        for one in scores:
            self._driver.check_read(one.ids, one.shown)
        for one in scores:
            number = self._driver.read(self._box, one.ids, one.shown, one.visit)
            self._read[number] = 0, len(one.ids)
            self._open.add(number)

    @property
    def complete(self) -> bool:
        return not self._open

    def take(self, event: Event) -> None:
        """Note an event. Raises the error of a text that could not be read."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Prefilled):
            self._read[event.request_id] = event.done, event.total
            if self._progress is not None:
                every = self._read.values()
                self._progress(sum(done for done, _ in every), sum(total for _, total in every))
        elif isinstance(event, Read):
            if not event.whole:
                raise EngineError("a text was given up before it was read", "ask again")
            self._open.discard(event.request_id)


@nearest_or_sampling
class Scores:
    """What an LLM tells of whole texts. They are read in steps, beside what others ask."""

    driver: Driver
    prompt_ids: Callable[[Prompt], list[int]]

    @property
    def _host_ops(self) -> OpTable:
        raise NotImplementedError

    @property
    def config(self) -> ModelConfig:
        raise NotImplementedError

    def logits(self, ids: Sequence[int], *, progress: Progress | None = None) -> Floats:
        """Return the logits (n, vocab) of n token ids in one full pass. Raises RequestError,
        MemoryPlanError."""
        check_progress(progress)
        return self._scored([Logits(plain_ids(ids), self.driver.limits.vocab_size)], progress)[0]

    def nll(self, ids: Sequence[int], *, progress: Progress | None = None) -> Floats:
        """Return -log p of each next token, (n - 1,), in nats. Holds 64 rows of logits at a time.
        Raises RequestError."""
        check_progress(progress)
        return self._scored([Losses(plain_ids(ids), self._host_ops)], progress)[0]

    def endings(
        self, texts: Sequence[tuple[Sequence[int], int]], *, progress: Progress | None = None
    ) -> list[Ending]:
        """Of texts (token ids, where the end begins): log p of the end after what comes before it, and
        whether each of its tokens is the likeliest. They are read together, and once where they differ in the
        last token alone. Raises RequestError."""
        check_progress(progress)
        alike: dict[tuple[int, ...], list[int]] = {}
        each = [(plain_ids(ids), first) for ids, first in texts]
        for number, (ids, first) in enumerate(each):
            check_ids(ids, self.driver.limits.vocab_size)
            if not 0 < first < len(ids):
                raise RequestError(
                    f"the end of text {number} begins at token {first} of {len(ids)}",
                    "give 1 or more before it",
                )
            alike.setdefault(tuple(ids[:-1]), []).append(number)
        scores = [
            Endings(ids, [(each[one][1], each[one][0][-1]) for one in numbers], self._host_ops)
            for ids, numbers in alike.items()
        ]
        found: list[Ending | None] = [None] * len(each)
        for numbers, endings in zip(alike.values(), self._scored(scores, progress), strict=True):
            for number, ending in zip(numbers, endings, strict=True):
                found[number] = ending
        return [one for one in found if one is not None]

    def embed(self, prompts: Prompt | Prompts, *, progress: Progress | None = None) -> Floats:
        """Return the direction (hidden,) of a text, of a list (m, hidden): the mean over its tokens of the
        states that the head would read, of length 1. ``progress`` counts tokens of all texts.
        Raises RequestError, and UnsupportedError where states cannot be had (on a GPU)."""
        check_progress(progress)
        each, is_batch = split_prompts(prompts)
        found = self._scored([Direction(self.prompt_ids(one)) for one in each], progress)
        return self.directions(found, is_batch)

    def directions(self, found: Sequence[Floats], is_batch: bool) -> Floats:
        """What ``embed`` returns of the directions of its texts: of no texts (0, hidden)."""
        if is_batch and not found:
            return np.empty((0, self.config.hidden_size), np.float32)
        return np.array(found, np.float32) if is_batch else found[0]

    def prompt_logprobs(
        self, ids: Sequence[int], top: int = 0, *, progress: Progress | None = None
    ) -> list[TokenLogprobs | None]:
        """Log probabilities of each of n token ids after those before it, and of the ``top`` best there; None
        for the first. ``sampling_logprob`` is 0: nothing was drawn. Raises RequestError."""
        check_progress(progress)
        return self._scored([self.likelihoods(ids, top)], progress)[0]

    def likelihoods(self, ids: Sequence[int], top: int) -> Likelihoods:
        """What ``prompt_logprobs`` has a text read for. Raises RequestError, ConfigError."""
        check_integer("top", top, 0, MAX_LOGPROBS)
        return Likelihoods(plain_ids(ids), self._host_ops, top)

    def _scored(self, scores: Sequence[Score[T]], progress: Progress | None) -> list[T]:
        box = Mailbox()
        readings = Readings(self.driver, box, progress)
        try:
            readings.ask(scores)
            while not readings.complete:
                readings.take(self.driver.receive(box))
        finally:
            self.driver.drop(box)
        return [one.result() for one in scores]
