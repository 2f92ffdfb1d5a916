"""What a server answers with: a model, its settings, and who is let in."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.api import check_ids
from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.engine.llm import LLM
from minicpm4.engine.outputs import Piece, TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import RequestError
from minicpm4.progress import Progress
from minicpm4.serve.errors import ApiError, api_error, invalid
from minicpm4.serve.gate import Gate
from minicpm4.serve.metrics import Metrics
from minicpm4.serve.settings import ServeSettings

logger = logging.getLogger("minicpm4.serve")


class Service:
    """``owned``: the model is closed when the server ends."""

    def __init__(self, llm: AsyncLLM, settings: ServeSettings) -> None:
        self.settings = settings
        self._llm = llm
        self.names = settings.names or (llm.llm.name,)
        self.created = int(time.time())
        self.gate = Gate(
            room=llm.llm.limits.max_sequences, waiting=settings.max_waiting, timeout=settings.timeout
        )
        self.metrics = Metrics(lambda: llm.llm.load, lambda: self.gate.count)

    @property
    def llm(self) -> LLM:
        """What is known of the model, and its text."""
        return self._llm.llm

    @property
    def name(self) -> str:
        return self.names[0]

    def check_model(self, name: str | None) -> None:
        """Raise ApiError unless ``name`` is that of the model; None is."""
        if name is not None and name not in self.names:
            message = f"there is no model {name[:100]!r} here, there is {', '.join(self.names)}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def checked(self, ids: Sequence[int], params: SamplingParams, field: str) -> SamplingParams:
        """The parameters that hold for a prompt, which can be served. ``field``: where the prompt came from.

        Raises ApiError.
        """
        context = self.llm.limits.context
        if len(ids) >= context:
            raise invalid(field, *_too_long(len(ids), context))
        try:
            ((_, wanted),) = await asyncio.to_thread(self.llm.checked, [list(ids)], params)
        except Exception as error:
            told = api_error(error)
            told.param = told.param or field
            raise told from error
        return wanted

    def check_scored(self, ids: Sequence[int], field: str) -> None:
        """Raise ApiError unless log probabilities of a text can be told: it may fill the context."""
        limits = self.llm.limits
        if len(ids) > limits.context:
            raise invalid(field, *_too_long(len(ids), limits.context))
        try:
            check_ids(ids, limits.vocab_size)
        except RequestError as error:
            raise invalid(field, str(error)) from error

    async def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprobs | None]:
        """As ``LLM.prompt_logprobs``; given up when the task is cancelled."""
        with _wanted() as progress:
            return await asyncio.to_thread(self.llm.prompt_logprobs, ids, top, progress=progress)

    async def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As ``LLM.embed`` of one text; given up when the task is cancelled."""
        with _wanted() as progress:
            return await asyncio.to_thread(self.llm.embed, ids, progress=progress)

    async def pieces(
        self, ids: Sequence[int], params: SamplingParams, progress: Progress | None = None
    ) -> AsyncGenerator[Piece]:
        """An answer, piece by piece; closing it ends the request."""
        if self.settings.log_prompts:
            logger.info("prompt: %r", self.llm.tokenizer.decode(ids, skip_special_tokens=False))
        async with aclosing(self._llm.stream(ids, params, progress=progress)) as pieces:
            async for piece in pieces:
                if piece.metrics is not None:
                    self.metrics.generated(piece.metrics)
                yield piece


@contextmanager
def _wanted() -> Iterator[Progress]:
    """A progress function that ends its work once this context is left."""
    left = threading.Event()

    def progress(done: int, total: int) -> None:
        if left.is_set():
            raise RequestError("nobody waits for this any more")

    try:
        yield progress
    finally:
        left.set()


def _too_long(tokens: int, context: int) -> tuple[str, str]:
    message = (
        f"the prompt has {tokens:,} tokens, the context is {context:,} for prompt and answer together. "
        "Nothing was cut: shorten it, or start the server with a larger --context"
    )
    return message, "context_length_exceeded"
