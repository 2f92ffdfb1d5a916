"""One sequence of tokens on its way through the engine. Integers only."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
Wanted = Literal["none", "last", "all"]
Attention = Literal["", "dense", "sparse"]

MAX_DRAFTS = 63  # with the token that they follow, what the kernels read as one tree


class Status(Enum):
    """Where a sequence is: queued without pages, holding pages, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Drafts:
    """Guesses of what follows a sequence, checked together in one step: a tree of at most MAX_DRAFTS tokens.

    ``tokens[i]`` follows ``tokens[parents[i]]``; where ``parents[i]`` is -1, the sequence's last token.
    Parents come before their children.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        assert 0 < len(self.tokens) == len(self.parents) <= MAX_DRAFTS, "not a tree of drafts"
        assert all(-1 <= parent < i for i, parent in enumerate(self.parents)), "a parent after its child"

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def chain(cls, tokens: Items[int]) -> Drafts:
        """Drafts that follow one another."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self) - 1))

    def first(self, count: int) -> Drafts:
        """The first ``count``, a tree by themselves."""
        return self if count >= len(self) else Drafts(self.tokens[:count], self.parents[:count])

    def only(self, kept: Items[int]) -> Drafts | None:
        """Those of these numbers, which ascend; each comes with those that it follows. None of none."""
        places = {-1: -1, **{old: new for new, old in enumerate(kept)}}
        if not kept:
            return None
        return Drafts(tuple(self.tokens[i] for i in kept), tuple(places[self.parents[i]] for i in kept))

    def child(self, parent: int, token: int) -> int | None:
        """The draft ``token`` that follows draft ``parent`` (-1: the sequence); None: it was not guessed."""
        for i, (own, guess) in enumerate(zip(self.parents, self.tokens, strict=True)):
            if own == parent and guess == token:
                return i
        return None

    def is_path(self, drafts: Items[int]) -> bool:
        """Whether these follow one another, from the sequence on."""
        return [self.parents[i] for i in drafts] == [-1, *drafts][: len(drafts)]


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids, how many of them are in the cache, and the pages that hold them.

    There is no prefill or decode mode: tokens[computed:] are still to be run, and when the last of
    them has run, the next token can be sampled. A preempted sequence forgets its pages and has
    everything to run again. ``limit`` is the length, prompt included, at which it ends; ``order``
    (arrival of the request, sample index) decides who goes first. ``cached`` counts the tokens that the
    prefix cache had when it was first let in, -1 before. ``digests`` are those of its full
    pages as far as asked for, ``sealed`` the full pages already offered to the prefix cache.

    ``drafts`` are to be checked in its next step, if that runs the token that was sampled last and no other;
    what has no room there is left out, the last ones first, and after any step they are gone.
    ``hidden``: after how many layers the hidden states of all its rows are wanted, as in ``Span``.
    ``wanted``: "last", to sample from; else its text is only read, for the logits of all of its rows, or of
    none. ``attention``: how its rows attend, where that is not as the engine does: to everything, or to
    chosen blocks from the first token on. Its pages are found by those alone that attend alike.
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
    drafts: Drafts | None = None
    hidden: tuple[int, ...] = ()
    wanted: Wanted = "last"
    attention: Attention = ""
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        if self.num_prompt < 0:
            self.num_prompt = len(self.tokens)

    @property
    def order(self) -> tuple[int, int]:
        return self.request_id, self.index

    @property
    def is_read(self) -> bool:
        """Whether all of its rows are to be seen, and nothing sampled: pages that hold some are of no use."""
        return self.wanted != "last"

    @property
    def pending(self) -> int:
        """Tokens that have not run yet."""
        return len(self.tokens) - self.computed

    @property
    def decodes(self) -> bool:
        """Whether its answer goes on in the next step: by one token, or by those that a grammar has added."""
        if self.is_read:
            return False
        return self.pending == 1 or (self.pending > 1 and self.computed >= self.num_prompt)

    @property
    def num_sampled(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.num_prompt

    def unload(self) -> None:
        """It holds no pages: all of its tokens are to be run again."""
        self.pages, self.computed, self.sealed, self.drafts = [], 0, 0, None

    def branch(self, index: int) -> Sequence:
        """A sample of the same request with the same tokens and no pages."""
        return Sequence(
            self.request_id,
            list(self.tokens),
            self.limit,
            index,
            num_prompt=self.num_prompt,
            cached=self.cached,
            hidden=self.hidden,
            attention=self.attention,
        )
