"""Chats, whatever the API: from messages to a prompt, and from pieces to thought, text and calls."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minicpm4.engine.calls import UNHELD, Calls, looser
from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece, Prefilled, TokenLogprobs
from minicpm4.engine.params import FORMS, SamplingParams
from minicpm4.errors import ConfigError, RequestError
from minicpm4.serve.errors import ApiError, api_error, invalid
from minicpm4.serve.forced import told_of
from minicpm4.serve.responses import header_list
from minicpm4.serve.service import Service
from minicpm4.text.call_formats import ID_CHARS
from minicpm4.text.messages import check_roles, check_variables
from minicpm4.text.reply_stream import ReplyPart, ReplyStream
from minicpm4.text.toolcalls import ToolCall, schemas_of

LOOSE, IGNORED = "X-Loose-Tools", "X-Ignored-Fields"
Finish = Literal["stop", "length", "tool_calls", "abort"]


def effort_variables(effort: str | None) -> dict[str, Any]:
    """What a template sees of how much is to be thought: the nearest that templates know."""
    return {"reasoning_effort": {"xhigh": "high", "max": "high"}.get(effort, effort)} if effort else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatAsked:
    """What is asked. ``tools``: those that the model may call; None: it may not. ``forced``: it may only
    call, one of the tools ``names`` if they are given, and a form in ``params`` says nothing; else the answer
    is calls or has that form. ``one_call``: the answer ends with its first call.
    ``held_by``: the field that a schema in ``params`` is from, if not ``json_schema``. ``variables``: more
    that the template sees."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Mapping[str, Any]] | None = None
    forced: bool = False
    names: Sequence[str] | None = None
    one_call: bool = False
    held_by: str | None = None
    enable_thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def calls(self, loose: Sequence[str] = ()) -> Calls | None:
        """What calls in the answer are held to, ``loose`` tools to less; None where nothing is called. Raises
        ConfigError."""
        if not self.tools:
            return None
        several = not (self.one_call or self.names)
        return Calls(tools=self.tools, forced=self.forced, several=several, names=self.names, loose=loose)

    def with_calls(self, loose: Sequence[str] = ()) -> SamplingParams:
        """``params`` and these calls. Those that are forced are the whole answer, so that a form, which is
        that of a text, has nothing to say. Raises ConfigError."""
        calls = self.calls(loose)
        if calls is None:
            return self.params
        return self.params.changed(calls=calls, **(dict.fromkeys(FORMS) if self.forced else {}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What has become certain of sample ``index``: more of its thought or text, or of a call as in
    ``ReplyPart``. The last of a sample has ``finish``, and ``stop`` where a stop string ended it; the last of
    all has ``metrics``, and ``thought``, the tokens of the reasoning of all samples, its marks included."""

    index: int
    reasoning: str = ""
    content: str = ""
    name: str = ""
    arguments: str = ""
    call: ToolCall | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
    stop: str | None = None
    metrics: Metrics | None = None
    thought: int = 0


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that can be answered: ``ids`` is its prompt. ``headers`` are the answer's."""

    service: Service
    asked: ChatAsked
    ids: list[int]
    params: SamplingParams
    headers: Mapping[str, str]

    async def whole(self, take: Callable[[Delta], object]) -> tuple[Delta, Metrics]:
        """Show ``take`` the whole answer, delta by delta; the last is returned, and the figures in it."""
        last: Delta | None = None
        async with aclosing(self.deltas()) as deltas:
            async for last in deltas:
                take(last)
        assert last is not None and last.metrics is not None, "an answer ends with its figures"
        return last, last.metrics

    async def deltas(self, read: Callable[[Prefilled], None] | None = None) -> AsyncGenerator[Delta]:
        """The answer; closing it ends the request. ``read`` is told how far the prompt is read."""
        samples: dict[int, _Sample] = {}

        def done(piece: Piece) -> bool:
            return samples[piece.index].done

        async with aclosing(self.service.pieces(self.ids, self.params, read, done)) as pieces:
            async for piece in pieces:
                sample = samples.get(piece.index)
                if sample is None:
                    sample = _Sample(piece.index, self._stream(), self.asked.one_call)
                    samples[piece.index] = sample
                deltas = sample.read(piece)
                if piece.finish_reason is not None:
                    finish: Finish = "tool_calls" if sample.has_called else piece.finish_reason
                    last = replace(sample.rest(), finish=finish, stop=piece.stop)
                    if piece.metrics is not None:
                        thought = sum(one.thought for one in samples.values())
                        last = replace(last, metrics=piece.metrics, thought=thought)
                    deltas.append(last)
                for delta in deltas:
                    yield delta

    def call_id(self, prefix: str) -> str:
        """A new call's id, which the model's template will take when the client sends it back."""
        number = uuid.uuid4().hex
        return number[:ID_CHARS] if self.service.llm.replies.short_ids else f"{prefix}_{number[:24]}"

    def _stream(self) -> ReplyStream:
        return self.service.llm.reply_stream(
            self.ids,
            self.params,
            self.asked.tools,
            enable_thinking=self.asked.enable_thinking,
        )


@dataclass(slots=True)
class _Sample:
    """``begun`` and ``calls``: how many calls have begun, and ended."""

    index: int
    reader: ReplyStream
    one_call: bool
    begun: int = 0
    calls: int = 0
    thought: int = 0  # tokens
    unsure: int = 0  # tokens that may yet belong to it
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing more is told of it: a grammar may not have ended it there, as none held its calls,
        or not those that it wrote."""
        return self.one_call and self.calls > 0

    @property
    def has_called(self) -> bool:
        """Whether the answer is calls, none of which was cut off."""
        return 0 < self.begun == self.calls and (self.done or not self.reader.cut_call)

    def read(self, piece: Piece) -> list[Delta]:
        """What a piece makes certain."""
        parts = [] if self.done else self._push(piece)
        if piece.finish_reason is not None and not self.done:
            parts += self.reader.finish(cut=piece.finish_reason == "length" or piece.stop is not None)
        self.logprobs += piece.logprobs or ()
        deltas = []
        for part in parts:
            if self.done:
                break
            self.begun += bool(part.name)
            self.calls += part.call is not None
            deltas.append(
                replace(
                    self.rest(),
                    reasoning=part.reasoning,
                    content=part.content,
                    name=part.name,
                    arguments=part.arguments,
                    call=part.call,
                )
            )
        return deltas

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

    def rest(self) -> Delta:
        """Log probabilities of tokens whose text is not out yet go with what comes next."""
        held, self.logprobs = tuple(self.logprobs), []
        return Delta(index=self.index, logprobs=held)


async def open_chat(service: Service, asked: ChatAsked) -> Chat:
    """Render and check a chat. Raises ApiError: a prompt that does not fit is refused, with both numbers."""
    ids = await read_chat(service, asked.messages, asked.tools, asked.enable_thinking, asked.variables)
    with told_of(asked.held_by):
        params, loose = await _checked(service, ids, asked)
    headers = {LOOSE: header_list(loose)} if loose else {}
    if asked.tools and not service.llm.replies.shows_tools:
        headers[IGNORED] = "tools"
    return Chat(service, asked, ids, replace(params, shows_marks=True), headers)


async def _checked(
    service: Service, ids: Sequence[int], asked: ChatAsked
) -> tuple[SamplingParams, Sequence[str]]:
    """The parameters that hold, and the tools whose arguments nothing holds to their schemas. What is forced
    is held, or refused. Raises ApiError."""

    async def check(loose: Sequence[str]) -> SamplingParams:
        try:
            given = asked.with_calls(loose)
        except ConfigError as error:
            raise invalid("tools", str(error), "invalid_value") from error
        return await service.checked(ids, given, "messages")

    loose: Sequence[str] = ()
    for _ in range(2):
        try:
            return await check(loose), loose
        except ApiError as error:
            if asked.forced or not asked.tools or not isinstance(error.__cause__, UNHELD):
                raise
            # In auto any schema may be offered: less is held then, which a header says.
            loose = looser(error.__cause__, loose)
            if not loose:
                if asked.params.form is not None:  # what no grammar holds may be no call, nor have its form
                    raise
                break
    params = await service.checked(ids, asked.params, "messages")
    return params, [*schemas_of(asked.tools or ())]


async def read_chat(
    service: Service,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a chat's prompt, however many. Raises ApiError."""
    try:
        check_roles(messages, service.llm.chat_template)
    except RequestError as error:
        where = error.condition.partition(" ")[0]
        raise invalid(where, str(error), "invalid_value") from error
    try:
        check_variables(variables or {})
    except RequestError as error:
        raise invalid("chat_template_kwargs", str(error), "invalid_value") from error
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
