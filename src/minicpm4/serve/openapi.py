"""The description of all APIs, for programs that read OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minicpm4 import __version__
from minicpm4.serve.endpoints import Api, Endpoint

REFERENCE = "#/components/schemas/{model}"


def openapi(apis: Sequence[Api]) -> dict[str, Any]:
    """An OpenAPI document of every endpoint: its body, and the status of answers."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for api in apis:
        for endpoint in api.endpoints:
            operation = _operation(endpoint, schemas)
            paths.setdefault(endpoint.path, {}).setdefault(endpoint.method.lower(), operation)
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


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    answers = {"200": "the answer", "401": "no key", "403": "a page or name of elsewhere"}
    operation: dict[str, Any] = {"summary": endpoint.summary}
    if endpoint.shape is not None:
        answers |= {
            "400": "a field is wrong: the error names it",
            "404": "no such model",
            "408": "the body came too slowly",
            "413": "the body is too large",
            "415": "the body is no JSON",
        }
        schema = endpoint.shape.model_json_schema(ref_template=REFERENCE)
        for name, one in {**schema.pop("$defs", {}), endpoint.shape.__name__: schema}.items():
            assert schemas.setdefault(name, one) == one, f"two shapes are called {name}"
        body = {"schema": {"$ref": REFERENCE.format(model=endpoint.shape.__name__)}}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    if endpoint.generates:
        answers |= {
            "429": "the queue is full",
            "501": "this model or engine cannot",
            "504": "it took too long",
        }
    answers["503"] = "the server is ending"
    operation["responses"] = {status: {"description": meaning} for status, meaning in answers.items()}
    return operation
