"""OpenAI's API: chats and completions."""

from __future__ import annotations

from minicpm4.serve.endpoints import Api, Endpoint
from minicpm4.serve.errors import ApiError, openai_error
from minicpm4.serve.openai.chat import ChatBody, chat
from minicpm4.serve.openai.completions import CompletionBody, completions
from minicpm4.serve.openai.embeddings import EmbeddingBody, embeddings
from minicpm4.serve.openai.models import list_models, one_model
from minicpm4.serve.responses import event_text

DONE = event_text("[DONE]")


def error_event(error: ApiError) -> str:
    """The last words of a stream that cannot go on."""
    return event_text(openai_error(error)) + DONE


API = Api(
    endpoints=(
        Endpoint(
            method="POST",
            path="/v1/chat/completions",
            handle=chat,
            summary="Answer a conversation.",
            shape=ChatBody,
            generates=True,
        ),
        Endpoint(
            method="POST",
            path="/v1/completions",
            handle=completions,
            summary="Continue texts.",
            shape=CompletionBody,
            generates=True,
        ),
        Endpoint(
            method="POST",
            path="/v1/embeddings",
            handle=embeddings,
            summary="Vectors of texts.",
            shape=EmbeddingBody,
            generates=True,
        ),
        Endpoint(
            method="GET", path="/v1/models", handle=list_models, summary="Name the models.", needs="server"
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{model:path}",
            handle=one_model,
            summary="Tell of a model, by one of its names.",
            needs="known",
        ),
    ),
    error_body=openai_error,
    error_event=error_event,
)
