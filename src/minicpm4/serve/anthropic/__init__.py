"""Anthropic's API: messages. A request that has the header ``anthropic-version`` means it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from minicpm4.serve.anthropic.body import MessagesBody, PromptBody
from minicpm4.serve.anthropic.messages import count_tokens, messages
from minicpm4.serve.endpoints import Api, Endpoint
from minicpm4.serve.errors import ApiError
from minicpm4.serve.responses import Reply, event_text
from minicpm4.serve.service import Service
from minicpm4.serve.shelf import Shelf

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: ApiError) -> dict[str, Any]:
    """Anthropic's form: the field that is wrong stands in the message."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    param = error.param
    message = error.message if not param or param in error.message else f"{param}: {error.message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_event(error: ApiError) -> str:
    """The last words of a stream that cannot go on."""
    return event_text(error_body(error), "error")


async def list_models(shelf: Shelf, body: None) -> Reply:
    """Every name of every model."""
    listed = [_told(one, name) for one in shelf.services for name in one.names]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
    return Reply.of({"data": listed, "has_more": False, **ends})


async def one_model(service: Service, body: None) -> Reply:
    """A model, by its own name."""
    return Reply.of(_told(service, service.name))


def _told(one: Service, name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(one.created, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": one.offer.context,
        "max_tokens": one.offer.context,
        "lifecycle": "active",
    }


API = Api(
    endpoints=(
        Endpoint(
            method="POST",
            path="/v1/messages",
            handle=messages,
            summary="Answer a conversation, by Anthropic's form.",
            shape=MessagesBody,
            generates=True,
        ),
        Endpoint(
            method="POST",
            path="/v1/messages/count_tokens",
            handle=count_tokens,
            summary="Count the tokens of a conversation.",
            shape=PromptBody,
        ),
        Endpoint(
            method="GET",
            path="/v1/models",
            handle=list_models,
            summary="Name the models, by Anthropic's form.",
            needs="server",
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{model:path}",
            handle=one_model,
            summary="Tell of a model, by Anthropic's form.",
            needs="known",
        ),
    ),
    error_body=error_body,
    error_event=error_event,
    header=b"anthropic-version",
)
