"""OpenAI's API of items, ``/v1/responses``, which Codex speaks. Nothing is kept between two requests."""

from __future__ import annotations

from minicpm4.serve.endpoints import Api, Endpoint
from minicpm4.serve.errors import openai_error
from minicpm4.serve.items.answers import respond
from minicpm4.serve.items.body import ResponseBody
from minicpm4.serve.openai import error_event

API = Api(
    endpoints=(
        Endpoint(
            method="POST",
            path="/v1/responses",
            handle=respond,
            summary="Answer items.",
            shape=ResponseBody,
            generates=True,
        ),
    ),
    error_body=openai_error,
    error_event=error_event,
)
