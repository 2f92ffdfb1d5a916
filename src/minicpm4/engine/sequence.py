"""One sequence of tokens on its way through the engine. Integers only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


class Status(Enum):
    """Where a sequence is: queued without pages, holding pages, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids, how many of them are in the cache, and the pages that hold them.

    There is no prefill or decode mode: tokens[computed:] are still to be run, and when the last of
    them has run, the next token can be sampled. A preempted sequence forgets its pages and has
    everything to run again. ``limit`` is the length, prompt included, at which it ends; ``order``
    (arrival of the request, sample index) decides who goes first. ``cached`` counts the tokens that the
    prefix cache had when it was first let in, -1 before. ``digests`` are those of its full
    pages as far as asked for, ``sealed`` the full pages already offered to the prefix cache.
    """

    request_id: int
    tokens: list[int]
    limit: int
    index: int = 0
    num_prompt: int = -1
    computed: int = 0
    cached: int = -1
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sealed: int = 0
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        if self.num_prompt < 0:
            self.num_prompt = len(self.tokens)

    @property
    def order(self) -> tuple[int, int]:
        return self.request_id, self.index

    @property
    def pending(self) -> int:
        """Tokens that have not run yet."""
        return len(self.tokens) - self.computed

    @property
    def output(self) -> list[int]:
        """The tokens sampled so far."""
        return self.tokens[self.num_prompt :]

    def branch(self, index: int) -> Sequence:
        """A sample of the same request with the same tokens and no pages."""
        return Sequence(
            self.request_id,
            list(self.tokens),
            self.limit,
            index,
            num_prompt=self.num_prompt,
            cached=self.cached,
        )
