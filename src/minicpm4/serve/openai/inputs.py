"""What completions and embeddings are made of: texts or token ids, one of them or several."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from minicpm4.serve.sampling import Text, TokenId

__all__ = ["Input", "holds_several", "number_of"]

MOST = 1024  # texts of a body

Ids = Annotated[list[TokenId], Field(min_length=1)]
Input = (
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MOST)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MOST)]
)


def holds_several(given: str | list[Any]) -> bool:
    """Whether a field holds a list of texts, rather than a text or its token ids."""
    return isinstance(given, list) and not isinstance(given[0], int)


def number_of(given: str | list[Any]) -> int:
    """The texts of a field that holds one or several."""
    return len(given) if holds_several(given) else 1
