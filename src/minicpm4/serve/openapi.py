"""The description of all APIs, for programs that read OpenAPI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minicpm4 import __version__
from minicpm4.serve.described import ANSWERS, BODIES, EVENT, OBJECT, OTHER_ANSWERS, RULES, shape_of
from minicpm4.serve.endpoints import Api, Endpoint
from minicpm4.serve.errors import invalid
from minicpm4.serve.offers import Offer
from minicpm4.serve.sampling import MAX_INTEGER

REFERENCE = "#/components/schemas/{model}"
_TOKEN = {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER}  # sampling.TokenId


def openapi(apis: Sequence[Api], offers: Sequence[Offer]) -> dict[str, Any]:
    """An OpenAPI document of every endpoint: its body, and its answers. ``offers``: the models, asked by
    their names; token ids are those of the smallest of their vocabularies."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for api in apis:
        for endpoint in api.endpoints:
            operation = _operation(api, endpoint, schemas)
            path = endpoint.path.replace(":path}", "}")
            paths.setdefault(path, {}).setdefault(endpoint.method.lower(), operation)
    names = [name for offer in offers for name in offer.names]
    most = min(offer.vocab_size for offer in offers) - 1
    for one in _tables(schemas):
        if one.get("items") == _TOKEN:
            one["items"] = {**_TOKEN, "maximum": most}
        if "model" in one.get("properties", {}):
            one["properties"]["model"] = {"enum": [*names, None], "default": None}
    return {
        "openapi": "3.1.0",
        "info": {"title": "minicpm4", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(api: Api, endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    answers = {"401": "no key", "403": "a page or name of elsewhere", "503": "the server is ending"}
    operation: dict[str, Any] = {"summary": endpoint.summary}
    if endpoint.shape is not None:
        answers |= {
            "400": "a field is wrong: the error names it",
            "404": "no such model",
            "408": "the body came too slowly",
            "413": "the body is too large",
            "415": "the body is no JSON",
        }
        name = endpoint.shape.__name__
        schema = endpoint.shape.model_json_schema(ref_template=REFERENCE)
        for called, one in {**schema.pop("$defs", {}), name: schema}.items():
            one["properties"] |= BODIES.get(called, {})
            one |= RULES.get(called, {})
            assert schemas.setdefault(called, one) == one, f"two shapes are called {called}"
        body = {"schema": {"$ref": REFERENCE.format(model=name)}}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    if "{model:path}" in endpoint.path:
        answers["404"] = "no such model"
        named = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [named]
    if endpoint.generates:
        answers |= {
            "429": "the queue is full",
            "501": "this model or engine cannot",
            "504": "it took too long",
        }
    error = {"application/json": {"schema": shape_of(api.error_body(invalid("", "")))}}
    operation["responses"] = {
        "200": {"description": "the answer", "content": _answer(endpoint)},
        **{status: {"description": meaning, "content": error} for status, meaning in sorted(answers.items())},
    }
    return operation


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    """What an endpoint answers, by media type."""
    what = f"{endpoint.method} {endpoint.path}"
    if what in OTHER_ANSWERS:
        return {OTHER_ANSWERS[what]: {"schema": {"type": "string"}}}
    found: dict[str, Any] = {"application/json": {"schema": ANSWERS.get(what, OBJECT)}}
    if endpoint.shape is not None and "stream" in endpoint.shape.model_fields:
        found["text/event-stream"] = {"schema": EVENT}
    return found


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within ``value``."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tables(item)
