"""``/v1/responses``: an answer as items, whole or in events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from minicpm4.engine.metrics import Metrics
from minicpm4.serve.chats import Chat, Delta, open_chat
from minicpm4.serve.errors import ApiError
from minicpm4.serve.items.body import Known, ResponseBody, Wanted, wanted
from minicpm4.serve.responses import Events, Reply, event_text
from minicpm4.serve.service import Service
from minicpm4.text.toolcalls import ToolCall


async def respond(service: Service, body: ResponseBody) -> Reply | Events:
    """Answer items, at once or in events."""
    asked = wanted(body)
    answer = _Answer(await open_chat(service, asked.chat), body, asked)
    headers = answer.chat.headers
    if body.stream:
        return Events(answer.events(), answer.failed, headers, answer.alive)
    return Reply.of(await answer.whole(), headers=headers)


@dataclass(slots=True)
class _Answer:
    """One answer, in either form. ``output``: its items as they are by now, the last of which may be open."""

    chat: Chat
    body: ResponseBody
    asked: Wanted
    output: list[dict[str, Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex[:24]}")
    created: int = field(default_factory=lambda: int(time.time()))
    _sent: int = 0

    async def whole(self) -> dict[str, Any]:
        last, _ = await self.chat.whole(lambda delta: [*self._item_events(delta)])  # which makes the items
        return self._response(_status(last), last)

    async def events(self) -> AsyncGenerator[str]:
        """The response without its output, each item from its beginning to its end, and the whole."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self.alive()
        async with aclosing(self.chat.deltas()) as deltas:
            async for delta in deltas:
                for event in self._item_events(delta):
                    yield event
                if delta.metrics is not None:
                    status = _status(delta)
                    yield self._event(f"response.{status}", response=self._response(status, delta))

    def alive(self) -> str:
        """That nothing is new: what the stream begins with, once more."""
        return self._event("response.in_progress", response=self._response("in_progress"))

    def failed(self, error: ApiError) -> str:
        """The last event of a stream that cannot go on."""
        code = "server_error" if error.status >= 500 else error.code or "invalid_prompt"
        told = {**self._response("failed"), "error": {"code": code, "message": error.message}}
        return self._event("response.failed", response=told)

    def _item_events(self, delta: Delta) -> Iterator[str]:
        """Events of the items that a delta goes on with, begins or ends."""
        if delta.reasoning:
            yield from self._begin("reasoning", summary=[], content=[])
            yield from self._say("reasoning_text", delta.reasoning)
        if delta.content:
            yield from self._begin("message", role="assistant", content=[])
            yield from self._say("output_text", delta.content)
        if delta.name:
            yield from self._end("completed")
            yield from self._begin_call(delta.name)
        if delta.arguments:
            yield from self._more_arguments(delta.arguments)
        if delta.call is not None:
            yield from self._end_call(delta.call)
        if delta.finish is not None:
            cut = delta.finish == "length" or (self._open is not None and "call_id" in self._open)
            yield from self._end("incomplete" if cut else "completed")

    def _begin(self, kind: str, **more: Any) -> Iterator[str]:
        """Go on with an item of this kind, or begin one."""
        if self._open is not None and self._open["type"] == kind:
            return
        yield from self._end("completed")
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}[kind]
        item = {"type": kind, "id": f"{prefix}_{uuid.uuid4().hex[:24]}", "status": "in_progress", **more}
        self.output.append(item)
        yield self._event("response.output_item.added", output_index=len(self.output) - 1, item=item)

    def _say(self, kind: str, text: str) -> Iterator[str]:
        """More text of the open item, whose only part it is."""
        item, more = self.output[-1], _no_logprobs(kind)
        if not item["content"]:
            item["content"].append(_part(kind))
            yield self._part_event("response.content_part.added", part=_part(kind))
        item["content"][0]["text"] += text
        yield self._part_event(f"response.{kind}.delta", delta=text, **more)

    def _begin_call(self, name: str) -> Iterator[str]:
        known = self.asked.known.get(name, Known(name))
        kind, key = ("custom_tool_call", "input") if known.takes_text else ("function_call", "arguments")
        space = {} if known.namespace is None else {"namespace": known.namespace}
        number = self.chat.call_id("call")
        yield from self._begin(kind, call_id=number, name=known.name, **space, **{key: ""})

    def _more_arguments(self, text: str) -> Iterator[str]:
        """More of the arguments of the call that is open; a text is told at its end, when it is read."""
        item = self.output[-1]
        if item["type"] == "function_call":
            item["arguments"] += text
            yield self._call_event("function_call_arguments.delta", delta=text)

    def _end_call(self, call: ToolCall) -> Iterator[str]:
        item = self.output[-1]
        kind, key = "function_call_arguments", "arguments"
        if item["type"] == "custom_tool_call":
            kind, key, text = "custom_tool_call_input", "input", call.arguments.get("input")
            item[key] = text if isinstance(text, str) else call.arguments_text
            yield self._call_event(f"{kind}.delta", delta=item[key])
        yield self._call_event(f"{kind}.done", **{key: item[key], "name": item["name"]})
        yield from self._end("completed")

    def _call_event(self, kind: str, **more: Any) -> str:
        place = {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}
        return self._event(f"response.{kind}", **place, **more)

    def _end(self, status: str) -> Iterator[str]:
        item = self._open
        if item is None:
            return
        if item.get("content"):
            (part,) = item["content"]
            more = _no_logprobs(part["type"])
            yield self._part_event(f"response.{part['type']}.done", text=part["text"], **more)
            yield self._part_event("response.content_part.done", part=part)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    @property
    def _open(self) -> dict[str, Any] | None:
        """The item that may go on."""
        return self.output[-1] if self.output and self.output[-1]["status"] == "in_progress" else None

    def _part_event(self, kind: str, **more: Any) -> str:
        place = {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, "content_index": 0}
        return self._event(kind, **place, **more)

    def _event(self, kind: str, **more: Any) -> str:
        text = event_text({"type": kind, "sequence_number": self._sent, **more}, kind)
        self._sent += 1
        return text

    def _response(self, status: str, last: Delta | None = None) -> dict[str, Any]:
        body, params = self.body, self.chat.params
        form = body.text.format if body.text is not None and body.text.format is not None else None
        told = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        reasoning = body.reasoning
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.chat.service.name,
            "output": self.output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": told},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if last is None or last.metrics is None else _usage(last.metrics, last.thought),
        }


def _status(last: Delta) -> str:
    return "incomplete" if last.finish == "length" else "completed"


def _part(kind: str) -> dict[str, Any]:
    notes: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
    return {"type": kind, "text": "", **notes, **_no_logprobs(kind)}


def _no_logprobs(kind: str) -> dict[str, Any]:
    """Clients want the list, which this API fills nowhere here."""
    return {"logprobs": []} if kind == "output_text" else {}


def _usage(figures: Metrics, thought: int) -> dict[str, Any]:
    return {
        "input_tokens": figures.prompt_tokens,
        "input_tokens_details": {"cached_tokens": figures.cached_tokens},
        "output_tokens": figures.new_tokens,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": figures.prompt_tokens + figures.new_tokens,
    }
