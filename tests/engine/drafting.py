"""Guesses for tests: oracles that are right, chance, and trees of both."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from minicpm4.engine.sequence import Drafts, Sequence

Choose = Callable[[list[int]], int]
"""The token that a model would choose after these."""


def make_drafts(
    rng: Random, sequence: Sequence, choose: Choose, *, vocab: int, chains: float = 0.3
) -> Drafts:
    """A tree, or, at a chance of ``chains``, a chain; most of its tokens are what the model would choose."""
    count = rng.randint(1, 12)
    chain = rng.random() < chains
    parents = [i - 1 if chain else rng.randint(max(-1, i - 4), i - 1) for i in range(count)]
    texts: list[list[int]] = []
    for parent in parents:
        before = texts[parent] if parent >= 0 else sequence.tokens
        token = choose(before) if rng.random() < 0.6 else rng.randrange(vocab)
        texts.append([*before, token])
    return Drafts(tuple(text[-1] for text in texts), tuple(parents))


def walk(drafts: Drafts | None, choose: Callable[[int], int]) -> tuple[list[int], int]:
    """The path of drafts that the model would have chosen, and the token that it chooses then.
    ``choose(row)``: after a row of the span, 0 being the token that the drafts follow, 1 the first draft."""
    path: list[int] = []
    while True:
        token = choose(path[-1] + 1 if path else 0)
        child = None if drafts is None else drafts.child(path[-1] if path else -1, token)
        if child is None:
            return path, token
        path.append(child)
