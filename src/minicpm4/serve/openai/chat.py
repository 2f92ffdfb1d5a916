"""``/v1/chat/completions``."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from minicpm4.engine.outputs import Prefilled
from minicpm4.serve.bodies import WHOLE, Shape, Unread
from minicpm4.serve.chats import Chat, ChatAsked, Delta, open_chat
from minicpm4.serve.errors import invalid, not_built
from minicpm4.serve.forced import names_called, told_of
from minicpm4.serve.openai.figures import chat_logprobs, timings_of, usage_of
from minicpm4.serve.responses import Events, Reply, event_text
from minicpm4.serve.sampling import TOP_LOGPROBS, Count, Sampling
from minicpm4.serve.service import Service
from minicpm4.text.messages import MAX_MESSAGES, MAX_TOOLS


class StreamOptions(Shape):
    """What a stream has beside its deltas."""

    include_usage: bool | None = None


class ResponseFormat(Shape):
    """How an answer is formed."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatBody(Sampling, Unread):
    """A request. What a message may hold, ``text.messages`` says."""

    model: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS), WHOLE] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    # Of no consequence here, whatever they hold.
    metadata: Any = None
    store: Any = None
    # Known, and not built.
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


_NOT_BUILT = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "answers are text",
    "prediction": "leave it out",
    "web_search_options": "this server looks nothing up",
}


async def chat(service: Service, body: ChatBody) -> Reply | Events:
    """Answer a conversation, at once or in events."""
    _refuse_not_built(body)
    answer = _Answer(await open_chat(service, _asked(body)), body)
    headers = answer.chat.headers
    if body.stream:
        return Events(answer.events(), headers=headers)
    return Reply.of(await answer.whole(), headers=headers)


def _refuse_not_built(body: ChatBody) -> None:
    for name, remedy in _NOT_BUILT.items():
        if getattr(body, name) is not None:
            raise not_built(name, f"{name} is not built here: {remedy}")
    if body.modalities not in (None, ["text"]):
        raise not_built("modalities", "modalities is not ['text'], and answers are text")


def _asked(body: ChatBody) -> ChatAsked:
    wants_tools = body.tools and body.tool_choice != "none"
    for i, tool in enumerate(body.tools or ()):
        _check_tool(tool, f"tools[{i}]")
    variables = dict(body.chat_template_kwargs or {})
    inner = variables.pop("enable_thinking", None)
    if inner is not None and type(inner) is not bool:
        raise invalid(
            "chat_template_kwargs.enable_thinking",
            f"chat_template_kwargs.enable_thinking = {inner!r:.80} is not true or false",
        )
    thinking = body.enable_thinking if body.enable_thinking is not None else inner
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
        if thinking is None and body.reasoning_effort == "none":
            thinking = False
    if None not in (body.max_tokens, body.max_completion_tokens) and (
        body.max_tokens != body.max_completion_tokens
    ):
        raise invalid(
            "max_tokens",
            f"max_tokens = {body.max_tokens} and max_completion_tokens = {body.max_completion_tokens} mean "
            "the same and differ: leave one out",
            "invalid_value",
        )
    top = body.top_logprobs
    if top is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs: true", "invalid_value")
    form, forced = _form(body.response_format), body.tool_choice not in (None, "auto", "none")
    held_by = "response_format.json_schema.schema" if form else None
    with told_of(held_by):
        params = body.params(
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=(top or 0) if body.logprobs else None,
            **form,
        )
    return ChatAsked(
        messages=body.messages,
        params=params,
        tools=body.tools if wants_tools else None,
        forced=forced,
        names=_names(body) if forced else None,
        held_by=held_by,
        one_call=body.parallel_tool_calls is False,
        enable_thinking=thinking,
        variables=variables,
    )


def _form(wanted: ResponseFormat | None) -> dict[str, Any]:
    """Parameters that hold an answer to a response_format."""
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"json_schema": True}
    where = "response_format.json_schema"
    if wanted.json_schema is None:
        raise invalid(where, f"{where} is missing", "missing_field")
    schema = wanted.json_schema.get("schema")
    if not isinstance(schema, dict):
        raise invalid(f"{where}.schema", f"{where}.schema is missing, or no schema, which is an object")
    return {"json_schema": schema}


def _names(body: ChatBody) -> list[str] | None:
    """The tools that tool_choice asks for; None: any."""
    choice, name = body.tool_choice, None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if not isinstance(name, str):
            where = "tool_choice.function.name"
            raise invalid(where, f"{where} is missing", "missing_field")
    return names_called(body.tools or (), name)


def _check_tool(tool: dict[str, Any], where: str) -> None:
    if tool.get("type", "function") != "function":
        raise not_built(
            f"{where}.type", f"{where}.type = {tool['type']!r:.80}: only functions are built here"
        )
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise invalid(f"{where}.function.name", f"{where}.function.name is missing", "missing_field")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(
            f"{where}.function.parameters", f"{where}.function.parameters is no schema, which is an object"
        )


@dataclass(slots=True)
class _Answer:
    """One answer, in either form."""

    chat: Chat
    body: ChatBody
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex[:24]}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> dict[str, Any]:
        choices: dict[int, _Choice] = {}

        def add(delta: Delta) -> None:
            choices.setdefault(delta.index, _Choice(delta.index, self.chat)).add(delta)

        last, figures = await self.chat.whole(add)
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(choices[index]) for index in sorted(choices)],
            "usage": usage_of([figures], last.thought),
            "timings": timings_of(figures),
        }

    async def events(self) -> AsyncGenerator[str]:
        """The answer as events: the role, what is said, how it ended, and figures."""
        source = self._with_progress() if self.body.return_progress else self.chat.deltas()
        calls: dict[int, int] = {}
        async with aclosing(source) as items:
            async for item in items:
                if isinstance(item, dict):
                    yield self._chunk(0, {}, prompt_progress=item)
                    continue
                if item.index not in calls:
                    calls[item.index] = 0
                    yield self._chunk(item.index, {"role": "assistant", "content": ""})
                for event in self._delta_events(item, calls):
                    yield event
        yield event_text("[DONE]")

    def _delta_events(self, delta: Delta, calls: dict[int, int]) -> Iterator[str]:
        """``calls``: how many each sample has begun."""
        said: dict[str, Any] = {}
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.content:
            said["content"] = delta.content
        if delta.name:
            calls[delta.index] += 1
            said["tool_calls"] = [{"index": calls[delta.index] - 1, **_call(self.chat, delta)}]
        elif delta.arguments:
            more = {"index": calls[delta.index] - 1, "function": {"arguments": delta.arguments}}
            said["tool_calls"] = [more]
        logprobs = self._logprobs(delta)
        if said or logprobs:
            yield self._chunk(delta.index, said, logprobs=logprobs)
        if delta.finish is None:
            return
        figures = delta.metrics
        timings = {} if figures is None else {"timings": timings_of(figures)}
        yield self._chunk(delta.index, {}, finish=delta.finish, **timings)
        options = self.body.stream_options
        if figures is not None and options is not None and options.include_usage:
            head, usage = self._head("chat.completion.chunk"), usage_of([figures], delta.thought)
            yield event_text({**head, "choices": [], "usage": usage, **timings})

    async def _with_progress(self) -> AsyncGenerator[Delta | dict[str, Any]]:
        """Deltas, and before them how far the prompt was read."""
        queue: asyncio.Queue[Delta | dict[str, Any] | BaseException | None] = asyncio.Queue()
        started = time.monotonic()

        def read(event: Prefilled) -> None:
            ms = round((time.monotonic() - started) * 1e3)
            queue.put_nowait(
                {"total": event.total, "cache": event.cached, "processed": event.done, "time_ms": ms}
            )

        async def fill() -> None:
            try:
                async with aclosing(self.chat.deltas(read)) as deltas:
                    async for delta in deltas:
                        queue.put_nowait(delta)
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        filling = asyncio.ensure_future(fill())
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            filling.cancel()
            await asyncio.wait({filling})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.chat.service.name,
            "system_fingerprint": None,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Any = None,
        finish: str | None = None,
        **more: Any,
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event_text({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self.body.logprobs or not delta.logprobs:
            return None
        tokenizer = self.chat.service.llm.tokenizer
        entries = chat_logprobs(tokenizer, delta.logprobs, tokenizer.eos_token_ids)
        return {"content": entries, "refusal": None} if entries else None

    def _choice(self, made: _Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": made.content or None, "refusal": None}
        if not made.calls and message["content"] is None:
            message["content"] = ""
        if made.reasoning:
            message["reasoning_content"] = made.reasoning
        if made.calls:
            message["tool_calls"] = made.calls
        logprobs = {"content": made.logprobs(self), "refusal": None} if self.body.logprobs else None
        return {"index": made.index, "message": message, "logprobs": logprobs, "finish_reason": made.finish}


@dataclass(slots=True)
class _Choice:
    """A sample, put together."""

    index: int
    chat: Chat
    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    _deltas: list[Delta] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.reasoning += delta.reasoning
        self.content += delta.content
        if delta.name:
            self.calls.append(_call(self.chat, delta))
        elif delta.arguments:
            self.calls[-1]["function"]["arguments"] += delta.arguments
        if delta.logprobs:
            self._deltas.append(delta)
        self.finish = delta.finish or self.finish

    def logprobs(self, answer: _Answer) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for delta in self._deltas:
            found += (answer._logprobs(delta) or {"content": []})["content"]
        return found


def _call(chat: Chat, begun: Delta) -> dict[str, Any]:
    function = {"name": begun.name, "arguments": begun.arguments}
    return {"id": chat.call_id("call"), "type": "function", "function": function}
