"""Drafts are judged by drawing: the next token is drawn from the model's own logits, as ever; where it is one
of the drafts, the logits behind that draft are there already, and the next is drawn from those.

So a text is what it would be without drafts, greedy or not, with a seed or without: each token is drawn from
the same logits, after the same processors and by the same random number, one a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minicpm4.engine.outputs import Piece
from minicpm4.engine.steps import Span
from minicpm4.errors import Minicpm4Error
from minicpm4.kernels.step import Array


@dataclass(slots=True)
class Judged:
    """What was drawn behind a span: ``path``, the drafts that are the text's next tokens; ``pieces``, all
    that was drawn; ``error``, what ends the request behind these."""

    path: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    error: Minicpm4Error | None = None


def judge(span: Span, logits: Array, draw: Callable[[Array], Piece]) -> Judged:
    """Draw for as long as drafts go along. ``logits`` (rows, vocab): of the span's rows, the first draft's
    the second; only the last, where there are no drafts. ``draw`` takes a row and appends to the text."""
    found, at = Judged(), -1
    while True:
        try:
            piece = draw(logits[at + 1])
        except Minicpm4Error as error:
            found.error = error
            return found
        found.pieces.append(piece)
        if span.drafts is None or piece.finish_reason is not None:
            return found
        for token in piece.token_ids:
            draft = span.drafts.child(at, token)
            if draft is None:
                return found
            found.path.append(draft)
            at = draft
