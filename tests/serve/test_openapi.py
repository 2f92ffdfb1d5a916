"""The description of the APIs is whole, and true."""

from __future__ import annotations

from typing import Any

import jsonschema

from minicpm4.serve.app import APIS
from tests.serve.conftest import CHAT, HELLO


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [one for item in value.values() for one in references(item)]
    return [one for item in value for one in references(item)] if isinstance(value, list) else []


def test_every_endpoint_is_described(serve: Any) -> None:
    told = serve().ask("GET", "/openapi.json").json()
    for api in APIS:
        for endpoint in api.endpoints:
            operation = told["paths"][endpoint.path.replace(":path}", "}")][endpoint.method.lower()]
            assert ("requestBody" in operation) == (endpoint.shape is not None)
    for path in references(told):
        assert path.removeprefix("#/components/schemas/") in told["components"]["schemas"]


def test_what_it_calls_valid_is_taken_and_the_rest_is_not(serve: Any) -> None:
    server = serve()
    told = server.ask("GET", "/openapi.json").json()
    schema = {"$ref": "#/components/schemas/ChatBody", "components": told["components"]}
    for body, valid in [
        ({"messages": HELLO}, True),
        ({"messages": HELLO, "temperature": 0.5, "stop": ["a"], "tools": [], "unknown": 1}, True),
        ({"messages": HELLO, "top_p": 2}, False),
        ({"messages": HELLO, "stop": [5]}, False),
        ({"messages": []}, False),
    ]:
        assert jsonschema.Draft202012Validator(schema).is_valid(body) == valid
        assert (server.post(CHAT, **body).status_code == 200) == valid
