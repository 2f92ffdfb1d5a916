"""``/v1/embeddings``: the direction of a text, by which texts are compared."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field

from minicpm4.serve.bodies import WHOLE, Shape
from minicpm4.serve.errors import not_built
from minicpm4.serve.merge import merged
from minicpm4.serve.openai.inputs import Input, holds_several, number_of
from minicpm4.serve.responses import Reply
from minicpm4.serve.service import Service


class EmbeddingBody(Shape):
    """A request."""

    model: str | None = None
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1), WHOLE] | None = None
    user: Any = None  # of no consequence here

    def at_once(self, share: int) -> int:
        """See Shape."""
        return min(number_of(self.input), share)


async def embeddings(service: Service, body: EmbeddingBody) -> Reply:
    """A vector of length 1 for each text: the mean of what the model thinks at its tokens."""
    if body.dimensions is not None:
        raise not_built("dimensions", "dimensions is not built here: vectors have the model's own size")
    given: Any = body.input
    many = holds_several(given)
    texts = []
    for i, one in enumerate(given if many else [given]):
        texts.append(await asyncio.to_thread(service.llm.prompt_ids, one))
        service.check_scored(texts[-1], f"input[{i}]" if many else "input")
    vectors: dict[int, Any] = {}
    async with aclosing(merged([_vector(service, body, ids) for ids in texts], service.share)) as items:
        async for i, vector in items:
            vectors[i] = vector
    found = [{"object": "embedding", "index": i, "embedding": vectors[i]} for i in range(len(texts))]
    total = sum(map(len, texts))
    usage = {"prompt_tokens": total, "total_tokens": total}
    return Reply.of({"object": "list", "data": found, "model": service.name, "usage": usage})


async def _vector(service: Service, body: EmbeddingBody, ids: list[int]) -> AsyncGenerator[str | list[float]]:
    vector = await service.embed(ids)
    if body.encoding_format == "base64":
        yield base64.b64encode(vector.astype("<f4").tobytes()).decode()
    else:
        yield vector.tolist()
