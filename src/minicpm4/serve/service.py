"""What a server answers with: a model, its settings, and who is let in to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.api import Load, check_text
from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.engine.llm import LLM
from minicpm4.engine.outputs import Piece, Prefilled, TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import Minicpm4Error, RequestError
from minicpm4.serve.errors import api_error, invalid
from minicpm4.serve.gate import Gate
from minicpm4.serve.metrics import Metrics
from minicpm4.serve.offers import Offer
from minicpm4.serve.settings import ServeSettings

logger = logging.getLogger("minicpm4.serve")

MAX_DEATHS, WITHIN = 3, 300.0  # so many in so many seconds, and it is not loaded any more
NOTHING = Load(running=0, waiting=0, pages_held=0, pages=0)  # in hand, of a model that is not loaded


class Service:
    """One model of a server, loaded or not, and who waits for it. What it says of itself without being
    loaded is in ``offer``; all that answers needs it loaded, and borrowed (``Shelf.borrow``).

    For the shelf: ``users`` who have borrowed it, ``waiting`` those who would; ``used``: when it was last
    given back; ``comes``: it is being loaded, or about to be; ``leaving``: nobody borrows it any more.
    """

    def __init__(self, offer: Offer, settings: ServeSettings, metrics: Metrics) -> None:
        self.offer, self.settings, self.metrics = offer, settings, metrics
        self.created = int(time.time())
        self.gate = Gate(room=offer.max_sequences, waiting=settings.max_waiting, timeout=settings.timeout)
        self.users = 0
        self.waiting: list[asyncio.Future[None]] = []
        self.used = 0.0
        self.comes = self.leaving = False
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._llm: AsyncLLM | None = None
        metrics.watch(self.name, self._figures, lambda: self.gate.count, lambda: self.is_loaded)

    @property
    def names(self) -> tuple[str, ...]:
        return self.offer.names

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def is_loaded(self) -> bool:
        return self._llm is not None

    @property
    def stays(self) -> bool:
        """Whether it is loaded and may be borrowed. One that cannot be loaded again stays, even dead."""
        return self.is_loaded and not self.leaving and not self.is_to_go

    @property
    def status(self) -> str:
        """As llama.cpp's router calls it."""
        if self.has_failed:
            return "failed"
        return "loaded" if self.is_loaded else "loading" if self.comes else "unloaded"

    def put(self, llm: AsyncLLM) -> None:
        """It is loaded."""
        self._llm = llm

    def take(self) -> AsyncLLM | None:
        """It is not loaded any more: what was loaded is the caller's to close."""
        llm, self._llm = self._llm, None
        return llm

    @property
    def _loaded(self) -> AsyncLLM:
        assert self._llm is not None, "asked of a model that was not borrowed"
        return self._llm

    @property
    def llm(self) -> LLM:
        """What is known of the loaded model, and its text."""
        return self._loaded.llm

    @property
    def description(self) -> str:
        return self.offer.description if self._llm is None else self._llm.llm.description

    def _figures(self) -> Load:
        llm = self._llm
        try:
            return NOTHING if llm is None else llm.llm.load
        except Minicpm4Error:  # its engine has ended: the figures of the others must still be told
            return NOTHING

    @property
    def has_died(self) -> bool:
        """Whether it is loaded, and its engine has ended by a fault."""
        try:
            return self._llm is not None and self._llm.llm.load is None
        except Minicpm4Error:
            return True

    @property
    def is_to_go(self) -> bool:
        """Whether it has died, and may be loaded again."""
        return self.offer.again and self.has_died

    def died(self) -> None:
        """Its engine has, once more."""
        self._deaths.append(time.monotonic())

    @property
    def given_up(self) -> bool:
        """Whether it has died too often at a time to be loaded again."""
        deaths = self._deaths
        return len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] <= WITHIN

    @property
    def has_failed(self) -> bool:
        """Whether it will answer nobody any more."""
        return self.given_up or (self.has_died and not self.offer.again)

    @property
    def share(self) -> int:
        """How many prompts of one request run at a time: half of the places, so that others find some."""
        return max(1, self.offer.max_sequences // 2)

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
        try:
            check_text(ids, limits)
        except RequestError as error:
            code = "context_length_exceeded" if len(ids) > limits.context else None
            raise invalid(field, str(error), code) from error

    async def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprobs | None]:
        """As ``LLM.prompt_logprobs``; given up when the task is cancelled."""
        return await self._loaded.prompt_logprobs(ids, top)

    async def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As ``LLM.embed`` of one text; given up when the task is cancelled."""
        return await self._loaded.embed(ids)

    async def pieces(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        read: Callable[[Prefilled], None] | None = None,
        until: Callable[[Piece], bool] | None = None,
    ) -> AsyncGenerator[Piece]:
        """An answer, piece by piece; closing it ends the request. ``read`` is told how far the prompt is
        read; a sample ends behind a piece at which ``until`` says so."""
        if self.settings.log_prompts:
            logger.info("prompt: %r", self.llm.tokenizer.decode(ids, skip_special_tokens=False))
        async with aclosing(self._loaded.stream(ids, params, read=read, until=until)) as pieces:
            async for piece in pieces:
                if piece.metrics is not None:
                    self.metrics.generated(self.name, piece.metrics)
                yield piece


def _too_long(tokens: int, context: int) -> tuple[str, str]:
    message = (
        f"the prompt has {tokens:,} tokens, the context is {context:,} for prompt and answer together. "
        "Nothing was cut: shorten it, or start the server with a larger --context"
    )
    return message, "context_length_exceeded"
