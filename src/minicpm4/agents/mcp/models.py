"""Models that call tools: one in this process, held to the tools' schemas, or one behind an address."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast

import httpx2

from minicpm4.config.strict import from_table
from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.engine.calls import UNHELD, Calls, looser
from minicpm4.engine.llm import LLM
from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import EngineError, RequestError
from minicpm4.files import Kept, finite, parse_json
from minicpm4.text.call_formats import ID_CHARS
from minicpm4.text.call_messages import call_message
from minicpm4.text.reply_stream import ReplyPart
from minicpm4.text.toolcalls import ToolCall, schemas_of

__all__ = ["Called", "Endpoint", "Local", "Model", "Reply", "asked", "calls_of", "in_text", "kept_calls"]

MAX_ANSWER_BYTES = 16 << 20
REFUSED = (400, 413, 422)  # this request, as where it is too long; others tell of the key, the address, haste
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model answered: text, or calls of tools, each with an id. ``unread``: why a call could not be
    read; ``cut``: it was not at its end."""

    text: str = ""
    thought: str = ""
    calls: tuple[tuple[str, ToolCall], ...] = ()
    unread: str = ""
    cut: bool = False

    def as_message(self) -> dict[str, Any]:
        """What the model is told of it in the next step."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        return call_message([(number, one.name, one.arguments) for number, one in self.calls], self.text)


Heard = Callable[[ReplyPart], None]


class Model(Protocol):
    """Whoever answers. ``hold``: False: calls are taken as they are; else they are held to schemas where that
    can be, and an answer that was meant for a call is asked for again as one."""

    hold: bool

    @property
    def name(self) -> str:
        """For people."""
        ...

    async def answer(
        self, messages: Messages, tools: Tools, *, must_call: bool = False, heard: Heard | None = None
    ) -> Reply:
        """``heard`` is told of parts as they come, where they come in parts. Raises Minicpm4Error."""
        ...


@dataclass(slots=True)
class Local:
    """A model in this process. Calls are held to the tools' schemas by a grammar where one can be made: from
    the mark that opens a call on, or from the first token where it must call. ``loose``: tools of whose
    arguments that could not be; ``held``: whether any could; ``hold``: False
    holds none; ``metrics``: of the last answer."""

    llm: LLM
    params: SamplingParams = field(default_factory=SamplingParams)
    enable_thinking: bool | None = None
    loose: tuple[str, ...] = ()
    held: bool = True
    hold: bool = True
    metrics: Metrics | None = None

    @classmethod
    def of(cls, llm: LLM | AsyncLLM, params: SamplingParams | None = None) -> Local:
        return cls(llm.llm if isinstance(llm, AsyncLLM) else llm, params or SamplingParams())

    @property
    def name(self) -> str:
        return self.llm.name

    async def answer(
        self, messages: Messages, tools: Tools, *, must_call: bool = False, heard: Heard | None = None
    ) -> Reply:
        """See Model. What is ``heard`` is heard on another thread."""
        left = threading.Event()
        try:
            return await asyncio.to_thread(self.reply, messages, tools, must_call, heard, left)
        except asyncio.CancelledError:
            left.set()
            raise

    def reply(
        self,
        messages: Messages,
        tools: Tools,
        must_call: bool = False,
        heard: Heard | None = None,
        left: threading.Event | None = None,
    ) -> Reply:
        """The answer, at once; it ends early where ``left`` is set."""
        text, thought = [], []
        calls: list[tuple[str, ToolCall]] = []
        cut = False
        for part, is_cut in self._parts(messages, tools, must_call, left):
            text.append(part.content)
            thought.append(part.reasoning)
            cut = cut or is_cut
            if part.call is not None:
                calls.append((self._call_id(), part.call))
            if heard is not None:
                heard(part)
        return Reply(
            text="".join(text).strip(), thought="".join(thought), calls=tuple(calls), cut=cut and not calls
        )

    def _parts(
        self, messages: Messages, tools: Tools, must_call: bool, left: threading.Event | None
    ) -> Iterator[tuple[ReplyPart, bool]]:
        llm, given = self.llm, tools or None
        ids = llm.chat_ids(messages, tools=given, enable_thinking=self.enable_thinking)
        params = replace(self._held(ids, tools, must_call), shows_marks=True)
        reader = llm.reply_stream(ids, params, given, enable_thinking=self.enable_thinking)
        with closing(cast("Generator[Piece]", llm.stream(ids, params))) as pieces:
            for piece in pieces:
                self.metrics = piece.metrics or self.metrics
                is_cut = piece.finish_reason == "length"
                parts = reader.push(piece.text)
                if piece.finish_reason is not None:
                    parts += reader.finish(cut=is_cut or piece.stop is not None)
                yield from ((part, False) for part in parts)
                if is_cut:
                    yield ReplyPart(), True
                if left is not None and left.is_set():
                    return

    def _held(self, ids: Sequence[int], tools: Tools, must_call: bool) -> SamplingParams:
        """The parameters with as much held as can be. Raises what refuses them for another reason."""
        if not (tools and self.hold):
            self.loose, self.held = tuple(schemas_of(tools)), False
            return self.params
        loose: tuple[str, ...] = ()
        for _ in range(2):
            try:
                params = self.params.changed(calls=Calls(tools=tools, forced=must_call, loose=loose))
                self.llm.checked([list(ids)], params)
            except UNHELD as error:
                loose = looser(error, loose)
                if not loose:
                    break
            else:
                self.loose, self.held = loose, True
                return params
        self.loose, self.held = tuple(schemas_of(tools)), False
        return self.params

    def _call_id(self) -> str:
        number = uuid.uuid4().hex
        return number[:ID_CHARS] if self.llm.replies.short_ids else f"call_{number[:24]}"


async def asked(model: Model, messages: Messages, tools: Tools, *, must_call: bool = False) -> Reply:
    """An answer. One that was meant for a call and is none is asked for once more as a call, where calls are
    held: small models write them in forms of their own."""
    reply = await model.answer(messages, tools, must_call=must_call)
    if must_call or not missed_call(model, reply, tools):
        return reply
    return await model.answer(messages, tools, must_call=True)


def missed_call(model: Model, reply: Reply, tools: Tools) -> bool:
    """Whether an answer was meant for a call and is none, where calls are held."""
    return not reply.calls and model.hold and meant_call(reply.text, tools)


@dataclass(frozen=True, kw_only=True, slots=True)
class Called:
    """What is kept of an answer: its ``calls``, name and arguments each, or why it was ``refused``, as where
    its prompt does not fit. ``cut``: the limit of tokens ended it before a call (None: it was kept before
    that was asked)."""

    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    refused: str
    cut: bool | None = None


async def calls_of(model: Model, messages: Messages, tools: Tools, *, must_call: bool = False) -> Called:
    """What the model calls. Raises EngineError, TextError."""
    try:
        reply = await asked(model, messages, tools, must_call=must_call)
    except RequestError as error:
        return Called(calls=(), refused=str(error), cut=False)
    calls = tuple((call.name, finite(call.arguments)) for _, call in reply.calls)
    return Called(calls=calls, refused="", cut=reply.cut)


async def kept_calls(
    kept: Kept | None, key: Sequence[Any], until: float, make: Callable[[], Awaitable[Called]]
) -> Called | None:
    """What was kept under ``key``, else what ``make`` gives, kept; None where ``until`` (by time.monotonic)
    came first. Raises ConfigError for a piece that is damaged."""
    found = (
        None if kept is None else kept.get(lambda value: from_table(Called, value, "it", any_text=True), *key)
    )
    if found is None:
        if time.monotonic() > until:
            return None
        found = await make()
        if kept is not None:
            kept.put(asdict(found), *key)
    return found


def meant_call(text: str, tools: Tools) -> bool:
    """Whether an answer without a call names a tool as a call would."""
    names = "|".join(re.escape(tool["function"]["name"]) for tool in tools)
    return (
        bool(names)
        and re.search(rf"""["']name["']\s*:\s*["']({names})["']|^\s*({names})\(""", text) is not None
    )


@dataclass(slots=True)
class Endpoint:
    """A model behind an OpenAI-compatible address, ``url`` up to and with ``/v1``. Nothing here holds its
    calls to schemas: arguments are checked before a tool is called."""

    url: str
    name: str
    key: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 600.0
    hold: bool = True

    async def answer(
        self, messages: Messages, tools: Tools, *, must_call: bool = False, heard: Heard | None = None
    ) -> Reply:
        """See Model. Raises RequestError for one that is refused, else EngineError."""
        body: dict[str, Any] = {**self.settings, "model": self.name, "messages": [*map(in_text, messages)]}
        if tools:
            body |= {"tools": list(tools), "tool_choice": "required" if must_call else "auto"}
        reply = _reply_of(await self._asked(body))
        if heard is not None and reply.text:
            heard(ReplyPart(content=reply.text))
        return reply

    async def _asked(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        where = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        got = bytearray()
        try:
            async with (
                httpx2.AsyncClient(timeout=httpx2.Timeout(30.0, read=self.seconds)) as client,
                client.stream("POST", where, json=body, headers=headers) as response,
            ):
                async for chunk in response.aiter_bytes():
                    got += chunk
                    if len(got) > MAX_ANSWER_BYTES:
                        raise EngineError(f"{where} answered with over {MAX_ANSWER_BYTES:,} bytes")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise EngineError(f"{where}: {type(error).__name__} {error}", "check the address") from error
        if response.status_code != 200:
            told = got[:500].decode(errors="replace")
            condition = f"{where} answered {response.status_code}: {told}"
            if response.status_code in REFUSED:
                raise RequestError(condition)
            remedy = "check the address, the key and the model's name" if response.is_client_error else ""
            raise EngineError(condition, remedy)
        answer = parse_json(bytes(got), where, EngineError)
        if not isinstance(answer, Mapping):
            raise EngineError(f"{where} answered with no table")
        return answer


def in_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with the arguments of its calls as JSON text, as that API has them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    made = []
    for call in calls:
        function = call["function"]
        arguments = function["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        made.append({**call, "function": {**function, "arguments": text}})
    return {**message, "tool_calls": made}


def _reply_of(answer: Mapping[str, Any]) -> Reply:
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        calls, unread = [], ""
        for one in message.get("tool_calls") or ():
            name, given = one["function"]["name"], one["function"].get("arguments") or "{}"
            try:
                what = f"what is given to {name}"
                arguments = parse_json(given, what, RequestError) if isinstance(given, str) else given
            except RequestError as error:
                arguments, unread = None, str(error)
            if isinstance(arguments, dict):
                number = str(one.get("id") or f"call_{uuid.uuid4().hex[:24]}")
                calls.append((number, ToolCall(name=str(name), arguments=arguments)))
            else:
                unread = unread or f"the arguments of {name} are no table"
        return Reply(
            text=str(message.get("content") or "").strip(),
            thought=str(message.get("reasoning_content") or message.get("reasoning") or ""),
            calls=tuple(calls),
            unread=unread,
            cut=choice.get("finish_reason") == "length" and not calls,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineError(f"the answer of the model's server has not the form of one: {error!r}") from error
