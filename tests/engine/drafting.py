"""Guesses for tests: oracles that are right, chance, and trees of both."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from minicpm4.engine.sequence import Drafts, Sequence
from minicpm4.engine.steps import Span, StepPlan

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


def texts_of(span: Span) -> list[list[int]]:
    """What each row of a span reads, itself included."""
    first = span.stop - span.num_drafts
    texts = [span.sequence.tokens[: end + 1] for end in range(span.start, first)]
    if span.drafts is not None:
        for token, parent in zip(span.drafts.tokens, span.drafts.parents, strict=True):
            texts.append([*texts[first - span.start + parent], token])
    return texts


def follow(plan: StepPlan, paths: list[list[int]]) -> None:
    """The texts go on with the accepted drafts, as they have when a plan is committed."""
    for span, path in zip(plan.spans, paths, strict=True):
        if span.drafts is not None:
            span.sequence.tokens += [span.drafts.tokens[i] for i in path]
