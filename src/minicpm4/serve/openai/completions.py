"""``/v1/completions``: texts or token ids, continued."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece, TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.serve.bodies import WHOLE, Shape
from minicpm4.serve.errors import invalid, not_built
from minicpm4.serve.merge import merged
from minicpm4.serve.openai.figures import timings_of, usage_of
from minicpm4.serve.openai.inputs import Input, holds_several, number_of
from minicpm4.serve.openai.texts import TokenLists
from minicpm4.serve.responses import Events, Reply, event_text
from minicpm4.serve.sampling import TOP_LOGPROBS, CountOrZero, Sampling
from minicpm4.serve.service import Service

DEFAULT_TOKENS = 16  # OpenAI's


class UsageOptions(Shape):
    """What a stream has beside its text."""

    include_usage: bool | None = None


class CompletionBody(Sampling):
    """A request."""

    model: str | None = None
    prompt: Input
    max_tokens: CountOrZero | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS), WHOLE] | bool | None = None
    stream: bool | None = None
    stream_options: UsageOptions | None = None
    best_of: Annotated[int, Field(ge=1), WHOLE] | None = None
    suffix: str | None = None
    user: Any = None  # of no consequence here

    def at_once(self, share: int) -> int:
        """See Shape."""
        return min(number_of(self.prompt), share) * super().at_once(share)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt: its ids, its text as ``echo`` shows it, and how many of its ids stand before that text.
    ``params`` None: nothing is to be written."""

    ids: list[int]
    text: str
    prefix: int
    params: SamplingParams | None


async def completions(service: Service, body: CompletionBody) -> Reply | Events:
    """Continue each prompt, at once or in events."""
    if body.suffix:
        raise not_built(
            "suffix", "suffix is not built here: put all that the model is to see into the prompt"
        )
    if body.best_of not in (None, 1, body.n):
        raise not_built(
            "best_of", f"best_of = {body.best_of} is not built here: ask for n answers and choose"
        )
    if body.echo and _wanted(body) is not None and body.attention not in (None, "auto"):
        message = (
            f"attention = {body.attention!r} is not built for log probabilities of prompts: leave it out"
        )
        raise not_built("attention", message)
    answer = _Answer(service, body, await _prompts(service, body))
    return Events(answer.events()) if body.stream else Reply.of(await answer.whole())


async def _prompts(service: Service, body: CompletionBody) -> list[_Prompt]:
    """What is asked, each fit to be served. Raises ApiError."""
    many = holds_several(body.prompt)
    each: list[Any] = body.prompt if many else [body.prompt]  # type: ignore[assignment]
    params = _params(body)
    found = []
    for i, one in enumerate(each):
        where = f"prompt[{i}]" if many else "prompt"
        ids, text, prefix = await asyncio.to_thread(_read, service, one)
        checked = None
        if params is not None:
            checked = await service.checked(ids, params, where)
        else:
            service.check_scored(ids, where)
        found.append(_Prompt(ids, text, prefix, checked))
    return found


def _params(body: CompletionBody) -> SamplingParams | None:
    if body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens", "max_tokens = 0 leaves nothing to answer without echo", "invalid_value")
    if body.max_tokens == 0:
        return None
    return body.params(max_tokens=body.max_tokens or DEFAULT_TOKENS, logprobs=_wanted(body))


def _wanted(body: CompletionBody) -> int | None:
    """How many of the best tokens are to be told at each; None: nothing is. True is 1."""
    return None if body.logprobs is None or body.logprobs is False else int(body.logprobs)


def _read(service: Service, prompt: str | list[int]) -> tuple[list[int], str, int]:
    llm = service.llm
    if isinstance(prompt, list):
        return prompt, llm.tokenizer.decode(prompt, skip_special_tokens=False), 0
    ids = llm.prompt_ids(prompt)
    return ids, prompt, len(ids) - len(llm.tokenizer.encode(prompt, add_special_tokens=False))


@dataclass(slots=True)
class _Answer:
    """The answer to one request, in either form."""

    service: Service
    body: CompletionBody
    prompts: list[_Prompt]
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex[:24]}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def samples(self) -> int:
        return self.body.n or 1

    async def whole(self) -> dict[str, Any]:
        choices: dict[int, dict[str, Any]] = {}
        figures: list[Metrics] = []
        async with aclosing(self._parts()) as parts:
            async for index, part, metrics in parts:
                made = choices.setdefault(index, {"index": index, "text": "", "logprobs": None})
                made["text"] += part["text"]
                made["finish_reason"] = part["finish_reason"]
                if part["logprobs"] is not None:
                    held = made["logprobs"] or {name: [] for name in part["logprobs"]}
                    made["logprobs"] = {name: held[name] + part["logprobs"][name] for name in held}
                if metrics is not None:
                    figures.append(metrics)
        ordered = [choices[index] for index in sorted(choices)]
        timings = {"timings": timings_of(figures[0])} if len(figures) == 1 else {}
        return {**self._head(), "choices": ordered, "usage": self._usage(figures), **timings}

    async def events(self) -> AsyncGenerator[str]:
        figures: list[Metrics] = []
        async with aclosing(self._parts()) as parts:
            async for index, part, metrics in parts:
                more = {}
                if metrics is not None:
                    figures.append(metrics)
                    more = {"timings": timings_of(metrics)}
                yield event_text({**self._head(), "choices": [{"index": index, **part}], **more})
        options = self.body.stream_options
        if options is not None and options.include_usage:
            yield event_text({**self._head(), "choices": [], "usage": self._usage(figures)})
        yield event_text("[DONE]")

    async def _parts(self) -> AsyncGenerator[tuple[int, dict[str, Any], Metrics | None]]:
        """Parts of choices, by their index, with the figures of each prompt at its end."""
        parts = [self._continued(prompt) for prompt in self.prompts]
        async with aclosing(merged(parts, self.service.share)) as items:
            async for number, (index, part, metrics) in items:
                yield number * self.samples + index, part, metrics

    async def _continued(self, prompt: _Prompt) -> AsyncGenerator[tuple[int, dict[str, Any], Metrics | None]]:
        wanted, llm = _wanted(self.body), self.service.llm
        shown = self.body.skip_special_tokens is False
        lists = [TokenLists(llm.tokenizer, shown) for _ in range(self.samples)]
        if self.body.echo:
            async for index, part in self._echoed(prompt, lists, wanted):
                yield index, part, None
        if prompt.params is None:
            return
        async with aclosing(self.service.pieces(prompt.ids, prompt.params)) as pieces:
            async for piece in pieces:
                logprobs = None if wanted is None else lists[piece.index].take(_entries(piece))
                yield piece.index, _part(piece.text, logprobs, piece.finish_reason), piece.metrics

    async def _echoed(
        self, prompt: _Prompt, lists: list[TokenLists], wanted: int | None
    ) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
        scores: list[TokenLogprobs | None] = []
        if wanted is not None:
            scores = await self.service.prompt_logprobs(prompt.ids, wanted)
        for index, one in enumerate(lists):
            logprobs = None
            if wanted is not None:
                own = TokenLists(one.tokenizer, shown=True)  # a prompt's control tokens stand in its text
                logprobs = own.take(list(zip(prompt.ids, scores, strict=True)), silent=prompt.prefix)
            one.offset = len(prompt.text)
            yield index, _part(prompt.text, logprobs, "length" if prompt.params is None else None)

    def _usage(self, figures: list[Metrics]) -> dict[str, Any]:
        usage = usage_of(figures)
        if len(figures) < len(self.prompts):  # what was only echoed has no figures
            usage["prompt_tokens"] = sum(len(prompt.ids) for prompt in self.prompts)
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        return usage

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.service.name,
            "system_fingerprint": None,
        }


def _entries(piece: Piece) -> list[tuple[int, TokenLogprobs | None]]:
    return [(entry.token_id, entry) for entry in piece.logprobs or ()]


def _part(text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"text": text, "logprobs": logprobs, "finish_reason": reason}
