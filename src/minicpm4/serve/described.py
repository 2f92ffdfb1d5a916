"""What types do not say of bodies and answers, for the description of the APIs (``openapi``): what the free
parts of bodies hold, which fields must be left out, and what answers have. Bodies are checked elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]


def kind(value: str) -> Schema:
    return {"type": "string", "const": value}


def table(optional: Schema | None = None, /, **needed: Any) -> Schema:
    """An object that has the properties ``needed``, and may have others."""
    return {"type": "object", "properties": {**needed, **(optional or {})}, "required": [*needed]}


def one_of(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


def many(*kinds: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": kinds[0] if len(kinds) == 1 else one_of(*kinds), "minItems": least}


def or_null(schema: Schema) -> Schema:
    return {**one_of(schema, ABSENT), "default": None}


TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ABSENT: Schema = {"type": "null", "default": None}

_PART = table(type=kind("text"), text=TEXT)
_SAID = one_of(TEXT, many(_PART))
_ARGUMENTS: Schema = {"type": "string", "contentMediaType": "application/json"}
_CALL = table(id=NAME, type=kind("function"), function=table(name=NAME, arguments=_ARGUMENTS))
_MESSAGES = many(
    table(role={"enum": ["system", "developer", "user"]}, content=_SAID),
    table(
        {"content": or_null(_SAID), "tool_calls": many(_CALL), "reasoning_content": TEXT},
        role=kind("assistant"),
    ),
    table(role=kind("tool"), content=_SAID, tool_call_id=NAME),
    least=1,
)
_FUNCTION = table({"description": TEXT, "parameters": OBJECT}, name=NAME)
_TOOLS = or_null(many(table(type=kind("function"), function=_FUNCTION)))
_VARIABLES = or_null(
    {
        "type": "object",
        "properties": {"enable_thinking": FLAG},
        "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    }
)

_ITEM_TEXT = one_of(
    TEXT, many(*(table(type=kind(name), text=TEXT) for name in ("input_text", "output_text")))
)
_ITEMS = many(
    table(
        {"type": kind("message")},
        role={"enum": ["user", "assistant", "system", "developer"]},
        content=_ITEM_TEXT,
    ),
    table(type=kind("reasoning"), summary=many(table(type=kind("summary_text"), text=TEXT))),
    table(type=kind("function_call"), call_id=NAME, name=NAME, arguments=_ARGUMENTS),
    table(type=kind("function_call_output"), call_id=NAME, output=_ITEM_TEXT),
    least=1,
)
_ITEM_TOOLS = or_null(
    many(
        table({"description": TEXT, "parameters": OBJECT}, type=kind("function"), name=NAME),
        table({"description": TEXT}, type=kind("custom"), name=NAME),
    )
)

_THOUGHT = table(type=kind("thinking"), thinking=TEXT)
_USE = table(type=kind("tool_use"), id=NAME, name=NAME, input=OBJECT)
_RESULT = table({"content": _SAID}, type=kind("tool_result"), tool_use_id=NAME)
_BLOCKS = {
    "user": many(_PART, _RESULT, least=1),
    "assistant": many(_PART, _THOUGHT, _USE, least=1),
    "system": many(_PART, least=1),
}
_BLOCK_MESSAGES = many(
    *(table(role=kind(role), content=one_of(TEXT, blocks)) for role, blocks in _BLOCKS.items()), least=1
)
_PROMPT: Mapping[str, Schema] = {
    "messages": _BLOCK_MESSAGES,
    "system": or_null(_SAID),
    "mcp_servers": ABSENT,
    "container": ABSENT,
}

# Properties of bodies, by the names of their shapes. Much of what one field asks of another is
# left to the errors.
BODIES: Mapping[str, Mapping[str, Schema]] = {
    "ChatBody": {
        "messages": _MESSAGES,
        "tools": _TOOLS,
        "chat_template_kwargs": _VARIABLES,
        "modalities": {"enum": [["text"], None], "default": None},
        "functions": ABSENT,
        "function_call": ABSENT,
        "audio": ABSENT,
        "prediction": ABSENT,
        "web_search_options": ABSENT,
    },
    "CompletionBody": {"suffix": ABSENT},
    "EmbeddingBody": {"dimensions": ABSENT},
    "ResponseBody": {
        "input": one_of(TEXT, _ITEMS),
        "tools": _ITEM_TOOLS,
        "chat_template_kwargs": _VARIABLES,
        "truncation": {"enum": ["disabled", None], "default": None},
        "previous_response_id": ABSENT,
        "conversation": ABSENT,
        "background": ABSENT,
        "prompt": ABSENT,
        "top_logprobs": ABSENT,
    },
    "PromptBody": _PROMPT,
    "MessagesBody": _PROMPT,
    "TokenizeBody": {"messages": or_null(_MESSAGES), "tools": _TOOLS},
}

_GIVEN = {"prompt": TEXT, "content": TEXT, "messages": {"type": "array"}}
# What fields of a body ask of one another.
RULES: Mapping[str, Schema] = {
    "TokenizeBody": {
        "oneOf": [
            {"properties": {name: schema, **dict.fromkeys({*_GIVEN} - {name}, ABSENT)}, "required": [name]}
            for name, schema in _GIVEN.items()
        ]
    }
}

_HEAD = {"id": NAME, "created": COUNT, "model": NAME}
_USAGE = table(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
_FINISH = {"enum": ["stop", "length", "tool_calls"]}
_MODELS = many(table(id=NAME), least=1)
_SPENT = table(input_tokens=COUNT, output_tokens=COUNT)

# What is answered with status 200 and is JSON, by method and path.
ANSWERS: Mapping[str, Schema] = {
    "POST /v1/chat/completions": table(
        **_HEAD,
        object=kind("chat.completion"),
        choices=many(
            table(index=COUNT, finish_reason=_FINISH, message=table(role=kind("assistant"))), least=1
        ),
        usage=_USAGE,
    ),
    "POST /v1/completions": table(
        **_HEAD,
        object=kind("text_completion"),
        choices=many(table(index=COUNT, finish_reason=_FINISH, text=TEXT), least=1),
        usage=_USAGE,
    ),
    "POST /v1/embeddings": table(
        object=kind("list"),
        model=NAME,
        data=many(
            table(object=kind("embedding"), index=COUNT, embedding=one_of(TEXT, many({"type": "number"}))),
            least=1,
        ),
        usage=table(prompt_tokens=COUNT, total_tokens=COUNT),
    ),
    "POST /v1/responses": table(
        id=NAME,
        object=kind("response"),
        status={"enum": ["completed", "incomplete"]},
        model=NAME,
        output=many(table(type=NAME)),
        usage=_SPENT,
    ),
    "POST /v1/messages": table(
        id=NAME,
        type=kind("message"),
        role=kind("assistant"),
        model=NAME,
        content=many(table(type=NAME)),
        stop_reason=NAME,
        usage=_SPENT,
    ),
    "POST /v1/messages/count_tokens": table(input_tokens=COUNT),
    "GET /v1/models": table(data=_MODELS),
    "GET /v1/models/{model:path}": table(id=NAME),
    "POST /tokenize": table(tokens=many({}), count=COUNT, max_model_len=COUNT),
    "POST /detokenize": table(prompt=TEXT, content=TEXT),
    "GET /health": table(status=kind("ok")),
    "GET /tokenizer_info": table(vocab_size=COUNT, max_model_len=COUNT),
    "GET /props": table(n_ctx=COUNT, total_slots=COUNT, model=NAME),
}
# One event of a stream.
EVENT = table({"event": NAME}, data=TEXT)
# What is answered that is not JSON.
OTHER_ANSWERS: Mapping[str, str] = {"GET /metrics": "text/plain"}


def shape_of(example: Any) -> Schema:
    """A schema of what is built like ``example``, where texts may be missing."""
    if isinstance(example, dict):
        return table(**{name: shape_of(value) for name, value in example.items()})
    return {"type": ["string", "null"]}
