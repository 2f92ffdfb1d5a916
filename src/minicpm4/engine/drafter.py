"""What an engine asks of a drafter: the state of sequences in, trees of guesses out.

A drafter knows nothing of weight formats, attention, grammars or sampling: the engine draws every token from
the model's own logits, and a draft is accepted where it is the token that was drawn. Whatever a drafter says,
the text stays the same; only how long it takes can change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

from minicpm4.engine.sequence import Drafts, Sequence

Array = Any  # of the runner's device: what handles integers only passes it on


@dataclass(frozen=True, slots=True)
class Guess:
    """Drafts, and how likely each seems to its drafter if what it follows is right (0 to 1)."""

    drafts: Drafts
    chances: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.chances) == len(self.drafts), "each draft has a chance"


@dataclass(frozen=True, slots=True)
class Wish:
    """Guess what follows ``sequence``: at most ``most`` tokens. ``pays(chances)``: whether one more draft can
    pay behind a chain of drafts with these chances; for drafters whose every guess costs time."""

    sequence: Sequence
    most: int
    pays: Callable[[Items[float]], bool]


class Drafter(Protocol):
    """Guesses what sequences go on with. What it remembers of a sequence ends with ``drop``. ``is_free``:
    whether a guess takes next to no time; ``hidden``: after how many of the model's layers it is shown states
    (as in ``Span``), none for most."""

    is_free: bool
    hidden: tuple[int, ...]

    def see(self, sequence: Sequence, start: int, states: Mapping[int, Array]) -> None:
        """``states`` (m, width), by the numbers of ``hidden``, of m positions of a sequence's text from
        ``start`` on, valid during the call. They come in order, but for what has run again."""
        ...

    def guess(self, wishes: Items[Wish]) -> list[Guess | None]:
        """A guess for each, None where it has none. A sequence's tokens only grow from call to call."""
        ...

    def drop(self, sequence: Sequence) -> None:
        """A sequence has ended: forget it. It need not be known."""
        ...

    def start_over(self) -> None:
        """Forget all sequences; those that go on are known anew by their tokens."""
        ...
