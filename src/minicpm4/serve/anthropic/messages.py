"""``/v1/messages``, and how many tokens its prompts have."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from minicpm4.engine.metrics import Metrics
from minicpm4.serve.anthropic.body import MessagesBody, PromptBody, chat_of
from minicpm4.serve.chats import Chat, Delta, open_chat, read_chat
from minicpm4.serve.responses import Events, Reply, event_text
from minicpm4.serve.service import Service


async def messages(service: Service, body: MessagesBody) -> Reply | Events:
    """Answer a conversation, at once or in events."""
    answer = _Answer(await open_chat(service, chat_of(body)), body.max_tokens)
    headers = answer.chat.headers
    if body.stream:
        return Events(answer.events(), headers=headers, alive=lambda: _event("ping"))
    return Reply.of(await answer.whole(), headers=headers)


async def count_tokens(service: Service, body: PromptBody) -> Reply:
    """The tokens of a prompt, also of one that is too long."""
    asked = chat_of(body)
    ids = await read_chat(service, asked.messages, asked.tools, asked.enable_thinking, asked.variables)
    return Reply.of({"input_tokens": len(ids)})


@dataclass(slots=True)
class _Answer:
    """One answer, in either form."""

    chat: Chat
    max_tokens: int
    blocks: list[dict[str, Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex[:24]}")
    _open: bool = False

    async def whole(self) -> dict[str, Any]:
        last, figures = await self.chat.whole(
            lambda delta: [*self._block_events(delta)]
        )  # which makes the blocks
        return {
            **self._message(),
            **self._ending(last),
            "usage": _usage(figures, last.thought),
        }

    async def events(self) -> AsyncGenerator[str]:
        """The message without its content, each block from its start to its stop, and how it ended."""
        start = {"input_tokens": len(self.chat.ids), "output_tokens": 0}
        yield _event("message_start", message={**self._message(), "usage": start})
        yield _event("ping")
        async with aclosing(self.chat.deltas()) as deltas:
            async for delta in deltas:
                for event in self._block_events(delta):
                    yield event
                if delta.metrics is not None:
                    yield _event(
                        "message_delta", delta=self._ending(delta), usage=_usage(delta.metrics, delta.thought)
                    )
        yield _event("message_stop")

    def _block_events(self, delta: Delta) -> Iterator[str]:
        """Events of the blocks that a delta goes on with, begins or ends; ``blocks`` holds them."""
        if delta.reasoning:
            yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
            self.blocks[-1]["thinking"] += delta.reasoning
            yield self._block_delta("thinking_delta", thinking=delta.reasoning)
        if delta.content:
            yield from self._begin({"type": "text", "text": ""})
            self.blocks[-1]["text"] += delta.content
            yield self._block_delta("text_delta", text=delta.content)
        if delta.name:
            yield from self._end()
            number = self.chat.call_id("toolu")
            yield from self._begin({"type": "tool_use", "id": number, "name": delta.name, "input": {}})
        if delta.arguments:
            yield self._block_delta("input_json_delta", partial_json=delta.arguments)
        if delta.call is not None:
            self.blocks[-1]["input"] = delta.call.arguments
            yield from self._end()
        if delta.finish is not None:
            yield from self._end()

    def _begin(self, block: dict[str, Any]) -> Iterator[str]:
        if self._open and self.blocks[-1]["type"] == block["type"]:
            return
        yield from self._end()
        self.blocks.append(block)
        self._open = True
        yield _event("content_block_start", index=len(self.blocks) - 1, content_block=block)

    def _end(self) -> Iterator[str]:
        if self._open:
            self._open = False
            yield _event("content_block_stop", index=len(self.blocks) - 1)

    def _block_delta(self, kind: str, **more: Any) -> str:
        return _event("content_block_delta", index=len(self.blocks) - 1, delta={"type": kind, **more})

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.chat.service.name,
            "content": self.blocks,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _ending(self, last: Delta) -> dict[str, Any]:
        reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(last.finish or "", "end_turn")
        if reason == "max_tokens" and last.metrics is not None and last.metrics.new_tokens < self.max_tokens:
            reason = "model_context_window_exceeded"
        if reason == "end_turn" and last.stop is not None:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": last.stop if reason == "stop_sequence" else None}


def _usage(figures: Metrics, thought: int) -> dict[str, Any]:
    """What came from the cache is no input here: the two together are the prompt."""
    return {
        "input_tokens": figures.prompt_tokens - figures.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached_tokens,
        "output_tokens": figures.new_tokens,
        "output_tokens_details": {"thinking_tokens": thought},
    }


def _event(kind: str, **more: Any) -> str:
    return event_text({"type": kind, **more}, kind)
