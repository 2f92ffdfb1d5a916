"""Chats, whatever the API: from messages to a prompt, and from pieces to thought, text and calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece, Prefilled, TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.serve.errors import api_error
from minicpm4.serve.forced import read_call, told_of
from minicpm4.serve.service import Service
from minicpm4.text.reply_stream import ReplyPart, ReplyStream
from minicpm4.text.toolcalls import ToolCall

Finish = Literal["stop", "length", "tool_calls", "abort"]


def effort_variables(effort: str | None) -> dict[str, Any]:
    """What a template sees of how much is to be thought: the nearest that templates know."""
    return {"reasoning_effort": {"xhigh": "high", "max": "high"}.get(effort, effort)} if effort else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatAsked:
    """What is asked. ``tools``: those that the model may call; None: it may not. ``one_call``: what follows
    its first call is left out. ``forced``: it may only call (``forced.call_schema``
    is in ``params``). ``held_by``: the field that a schema in ``params`` is from, if not ``json_schema``.
    ``variables``: more that the template sees."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Mapping[str, Any]] | None = None
    one_call: bool = False
    forced: bool = False
    held_by: str | None = None
    enable_thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What has become certain of sample ``index``. The last of a sample has ``finish``, and ``stop`` where a
    stop string ended it; the last of all has ``metrics``, and ``thought``, the tokens of the reasoning of all
    samples, its marks included."""

    index: int
    reasoning: str = ""
    content: str = ""
    call: ToolCall | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
    stop: str | None = None
    metrics: Metrics | None = None
    thought: int = 0


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that can be answered: ``ids`` is its prompt."""

    service: Service
    asked: ChatAsked
    ids: list[int]
    params: SamplingParams
    with_specials: bool

    async def deltas(self, read: Callable[[Prefilled], None] | None = None) -> AsyncGenerator[Delta]:
        """The answer; closing it ends the request. ``read`` is told how far the prompt is read."""
        samples: dict[int, _Sample] = {}
        async with aclosing(self.service.pieces(self.ids, self.params, read)) as pieces:
            async for piece in pieces:
                sample = samples.get(piece.index)
                if sample is None:
                    one_call, forced = self.asked.one_call, self.asked.forced
                    sample = _Sample(piece.index, self._stream(), one_call, forced)
                    samples[piece.index] = sample
                deltas = sample.read(piece)
                if piece.finish_reason is not None:
                    finish: Finish = "tool_calls" if sample.calls else piece.finish_reason
                    last = replace(sample.rest(), finish=finish, stop=piece.stop)
                    if piece.metrics is not None:
                        thought = sum(one.thought for one in samples.values())
                        last = replace(last, metrics=piece.metrics, thought=thought)
                    deltas.append(last)
                for delta in deltas:
                    yield delta

    def _stream(self) -> ReplyStream:
        return self.service.llm.replies.stream(
            self.ids,
            tools=None if self.asked.forced else self.asked.tools,
            enable_thinking=self.asked.enable_thinking,
            with_specials=self.with_specials,
        )


@dataclass(slots=True)
class _Sample:
    index: int
    reader: ReplyStream
    one_call: bool
    forced: bool
    calls: int = 0
    thought: int = 0  # tokens
    unsure: int = 0  # tokens that may yet belong to it
    text: str = ""  # of a call that is forced
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.one_call and self.calls > 0

    def read(self, piece: Piece) -> list[Delta]:
        """What a piece makes certain."""
        ends = piece.finish_reason is not None
        parts = [] if self.done else self._push(piece)
        if ends and not self.done:
            parts += self.reader.finish()
        if self.forced:
            self.text += "".join(part.content for part in parts)
            parts = [part for part in parts if part.reasoning]
            if ends:
                call = read_call(self.text)
                parts.append(ReplyPart(content=self.text) if call is None else ReplyPart(call=call))
        return self.take(parts, piece.logprobs or ())

    def _push(self, piece: Piece) -> list[ReplyPart]:
        """Take a piece's text, and count its first token if it belongs to the thought: what a grammar has
        added to that comes behind a thought."""
        before = self.reader.thinks
        parts = self.reader.push(piece.text)
        self.unsure += min(len(piece.token_ids), 1)
        if self.reader.thinks is not None:
            if before or self.reader.thinks:
                self.thought += self.unsure
            self.unsure = 0
        return parts

    def take(self, parts: Sequence[ReplyPart], logprobs: Sequence[TokenLogprobs]) -> list[Delta]:
        self.logprobs += logprobs
        deltas = []
        for part in parts:
            if self.done:
                break
            self.calls += part.call is not None
            deltas.append(
                replace(self.rest(), reasoning=part.reasoning, content=part.content, call=part.call)
            )
        return deltas

    def rest(self) -> Delta:
        """Log probabilities of tokens whose text is not out yet go with what comes next."""
        held, self.logprobs = tuple(self.logprobs), []
        return Delta(index=self.index, logprobs=held)


async def open_chat(service: Service, asked: ChatAsked) -> Chat:
    """Render and check a chat. Raises ApiError: a prompt that does not fit is refused, with both numbers."""
    ids = await read_chat(service, asked.messages, asked.tools, asked.enable_thinking, asked.variables)
    with told_of(asked.held_by):
        params = await service.checked(ids, asked.params, "messages")
    with_specials = service.llm.replies.marks_are_hidden and params.skip_special_tokens
    if with_specials:
        params = replace(params, skip_special_tokens=False)
    return Chat(service, asked, ids, params, with_specials)


async def read_chat(
    service: Service,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a chat's prompt, however many. Raises ApiError."""
    try:
        return await asyncio.to_thread(
            service.llm.chat_ids,
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            variables=variables,
        )
    except Exception as error:
        told = api_error(error)
        told.param = told.param or "messages"
        raise told from error
