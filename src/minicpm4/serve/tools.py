"""What tools ask beside an API: health and figures, the server's facts, text to tokens and back."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from minicpm4 import __version__
from minicpm4.serve.bodies import Shape
from minicpm4.serve.chats import read_chat
from minicpm4.serve.endpoints import Api, Endpoint
from minicpm4.serve.errors import invalid, openai_error
from minicpm4.serve.metrics import CONTENT_TYPE
from minicpm4.serve.openai import error_event
from minicpm4.serve.responses import Reply
from minicpm4.serve.sampling import TokenId
from minicpm4.serve.service import Service
from minicpm4.serve.shelf import Shelf


class TokenizeBody(Shape):
    """A text, as ``prompt`` or ``content``, or a chat."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    enable_thinking: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Shape):
    """Token ids."""

    model: str | None = None
    tokens: list[TokenId]


async def health(shelf: Shelf, body: None) -> Reply:
    """200 while requests are let in, 503 when the server is ending or a model has died for good."""
    if shelf.closed:
        return Reply.of({"status": "ending"}, 503)
    if dead := [one.name for one in shelf.services if one.has_failed]:
        return Reply.of({"status": "failed", "models": dead}, 503)
    return Reply.of({"status": "ok"})


async def metrics(shelf: Shelf, body: None) -> Reply:
    """Figures for Prometheus."""
    return Reply(shelf.metrics.text(), media_type=CONTENT_TYPE)


async def props(service: Service, body: None) -> Reply:
    """What a model is, loaded or not, under the names that llama.cpp's clients know."""
    offer = service.offer
    settings = {"n_ctx": offer.context, **offer.sampling}
    return Reply.of(
        {
            "model": service.name,
            "model_alias": service.name,
            "description": service.description,
            "build_info": f"minicpm4 {__version__}",
            "n_ctx": offer.context,
            "total_slots": offer.max_sequences,
            "max_waiting": service.settings.max_waiting,
            "default_generation_settings": settings,
            "chat_template": offer.chat_template,
            "attention": offer.attention,
            "capabilities": {"chat": offer.chat_template is not None, "return_progress": True},
            "status": {"value": service.status},
        }
    )


async def tokenize(service: Service, body: TokenizeBody) -> Reply:
    """Token ids of a text or a chat."""
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise invalid(given[1] if given else "prompt", "give one of prompt, content and messages")
    if body.messages is not None:
        ids = await read_chat(service, body.messages, body.tools, body.enable_thinking)
    else:
        ids = await asyncio.to_thread(_encode, service, body)
    told: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.llm.limits.context}
    if body.with_pieces:
        own = service.llm.tokenizer
        told["tokens"] = [
            {"id": token, "piece": own.token_bytes(token).decode(errors="replace")} for token in ids
        ]
    return Reply.of(told)


def _encode(service: Service, body: TokenizeBody) -> list[int]:
    text = body.prompt if body.prompt is not None else body.content or ""
    own = service.llm.tokenizer
    ids = own.encode(text, add_special_tokens=False, parse_special=body.parse_special is not False)
    # llama.cpp's clients send content, and get what a prompt begins with only where they ask for it.
    begins = body.add_special_tokens is True or (body.add_special_tokens is None and body.prompt is not None)
    return own.with_prefix(ids) if begins else ids


async def detokenize(service: Service, body: DetokenizeBody) -> Reply:
    """The text of token ids, control tokens spelled out; under the two names that clients know."""
    size = service.llm.limits.vocab_size
    for i, token in enumerate(body.tokens):
        if token >= size:
            told = f"tokens[{i}] = {token} is no token: there are 0 to {size - 1}"
            raise invalid(f"tokens[{i}]", told, "invalid_value")
    text = await asyncio.to_thread(
        service.llm.tokenizer.decode, body.tokens, skip_special_tokens=False, continuation=True
    )
    return Reply.of({"prompt": text, "content": text})


async def tokenizer_info(service: Service, body: None) -> Reply:
    """The tokenizer as lm-evaluation-harness asks for it."""
    own = service.llm.tokenizer
    begin, ends = own.bos_token_id, own.eos_token_ids
    return Reply.of(
        {
            "bos_token": None if begin is None else own.id_to_token(begin),
            "eos_token": own.id_to_token(ends[0]) if ends else None,
            "pad_token": None,
            "vocab_size": own.vocab_size,
            "max_model_len": service.llm.limits.context,
            "chat_template": service.llm.chat_template,
        }
    )


API = Api(
    endpoints=(
        Endpoint(
            method="GET",
            path="/health",
            handle=health,
            summary="Whether requests are let in.",
            needs="server",
        ),
        Endpoint(
            method="GET", path="/metrics", handle=metrics, summary="Figures for Prometheus.", needs="server"
        ),
        Endpoint(
            method="GET", path="/props", handle=props, summary="What a model is (?model=).", needs="known"
        ),
        Endpoint(
            method="POST", path="/tokenize", handle=tokenize, summary="Text to token ids.", shape=TokenizeBody
        ),
        Endpoint(
            method="POST",
            path="/detokenize",
            handle=detokenize,
            summary="Token ids to text.",
            shape=DetokenizeBody,
        ),
        Endpoint(
            method="GET", path="/tokenizer_info", handle=tokenizer_info, summary="What the tokenizer is."
        ),
    ),
    error_body=openai_error,
    error_event=error_event,
)
