"""``/v1/embeddings``: the direction of a text, by which texts are compared."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

from pydantic import Field

from minicpm4.serve.bodies import Shape
from minicpm4.serve.errors import not_built
from minicpm4.serve.openai.completions import MAX_PROMPTS, Ids
from minicpm4.serve.responses import Reply
from minicpm4.serve.service import Service

Text = Annotated[str, Field(min_length=1)]


class EmbeddingBody(Shape):
    """A request."""

    model: str | None = None
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Any = None  # of no consequence here


async def embeddings(service: Service, body: EmbeddingBody) -> Reply:
    """A vector of length 1 for each text: the mean of what the model thinks at its tokens."""
    if body.dimensions is not None:
        raise not_built("dimensions", "dimensions is not built here: vectors have the model's own size")
    given: Any = body.input
    many = isinstance(given, list) and not isinstance(given[0], int)
    found, total = [], 0
    for i, one in enumerate(given if many else [given]):
        ids = await asyncio.to_thread(service.llm.prompt_ids, one)
        service.check_scored(ids, f"input[{i}]" if many else "input")
        total += len(ids)
        vector = await service.embed(ids)
        if body.encoding_format == "base64":
            told: Any = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        else:
            told = vector.tolist()
        found.append({"object": "embedding", "index": i, "embedding": told})
    usage = {"prompt_tokens": total, "total_tokens": total}
    return Reply.of({"object": "list", "data": found, "model": service.name, "usage": usage})
