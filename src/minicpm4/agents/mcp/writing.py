"""What a model writes for us: JSON of a schema, and queries that need a tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minicpm4.agents.mcp.models import Endpoint, Local, Model
from minicpm4.agents.mcp.tools import Tool
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import parse_json

__all__ = ["queries_for", "varied", "written"]

MAX_QUERY = 1000
CHANCE = 0.9  # the temperature of what is to be other than before
_ENDS = {"array": ("[", "]"), "object": ("{", "}")}


async def written(model: Model, asked: str, schema: Mapping[str, Any], max_tokens: int) -> Any:
    """A list or table, as the model writes it: held to ``schema`` in this process, read from the text
    elsewhere. Raises ConfigError where it wrote none."""
    messages = [{"role": "user", "content": asked}]
    if isinstance(model, Local):
        params = model.params.changed(json_schema=schema, max_tokens=max_tokens)
        reply = await Local.of(model.llm, params).answer(messages, ())
    else:
        reply = await model.answer(messages, ())
    opening, closing = _ENDS[schema["type"]]
    text = reply.text[max(reply.text.find(opening), 0) : reply.text.rfind(closing) + 1]
    try:
        return parse_json(text, "it", ConfigError)
    except ConfigError as error:
        what = "list" if schema["type"] == "array" else "table"
        raise ConfigError(f"the model wrote no {what}: {reply.text[:200]!r}") from error


async def queries_for(model: Model, tool: Tool, count: int) -> list[str]:
    """Queries that need the tool. Raises ConfigError where the model wrote none or too few."""
    about = json.dumps(tool.function["function"], ensure_ascii=False)
    asked = (
        f"This is a tool:\n{about}\nWrite {count} different requests that a user may make and that cannot be "
        "answered without it. Name every value that the tool needs, such as real numbers, names and paths. "
        f"Answer with a JSON list of {count} texts and nothing else."
    )
    text = {"type": "string", "minLength": 8, "maxLength": 300}
    schema = {"type": "array", "items": text, "minItems": count, "maxItems": count}
    found = await written(model, asked, schema, count * 120)
    fine = isinstance(found, list) and all(isinstance(one, str) and one.strip() for one in found)
    require(fine and len(found) >= count, f"the model wrote {len(found)} queries in place of {count}")
    return [one[:MAX_QUERY] for one in found[:count]]


def varied(model: Model, number: int) -> Model:
    """The model with chance, another for each number: what the likeliest token gives is always the same."""
    if isinstance(model, Local):
        params = model.params.changed(temperature=CHANCE, seed=number)
        return Local(model.llm, params, enable_thinking=model.enable_thinking, hold=model.hold)
    if isinstance(model, Endpoint):
        return replace(model, settings={**model.settings, "temperature": CHANCE, "seed": number})
    return model
