"""What clients of ``/v1/responses`` send, and the chat that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from minicpm4.serve.bodies import Shape, Unread
from minicpm4.serve.chats import ChatAsked, effort_variables
from minicpm4.serve.errors import invalid, not_built
from minicpm4.serve.forced import names_called, told_of
from minicpm4.serve.sampling import Count, Sampling, Seed, Temperature, TopK, TopP
from minicpm4.serve.turns import APART, Turns, field, function_of, schema_of
from minicpm4.text.messages import MAX_MESSAGES, MAX_TOOLS

_INPUT = "input"  # the one argument of a tool that takes text
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class ReasoningOptions(Shape):
    """Whether, and how long, the model thinks first."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Any = None
    generate_summary: Any = None


class TextFormat(Shape):
    """What an answer is held to."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    name: str | None = None
    description: Any = None
    strict: Any = None


class TextOptions(Shape):
    """How an answer is written."""

    format: TextFormat | None = None
    verbosity: Any = None


class EventOptions(Shape):
    """Of no consequence here."""

    include_obfuscation: Any = None


class ResponseBody(Unread):
    """A request. What items and tools may be, ``chat_of`` says."""

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Of no consequence here, whatever they hold.
    include: list[str] | None = None
    client_metadata: Any = None
    max_tool_calls: Any = None
    # Known, and not built.
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    truncation: Any = None
    top_logprobs: Any = None

    def without_effect(self) -> list[str]:
        """See Shape."""
        found = ["store"] if self.store else []
        kinds = [(i, tool.get("type")) for i, tool in enumerate(self.tools or ())]
        return found + [f"tools[{i}] ({kind!s:.40})" for i, kind in kinds if kind not in _READ]


_NOT_BUILT = {
    "previous_response_id": "nothing is kept here: send the whole conversation as input",
    "conversation": "nothing is kept here: send the whole conversation as input",
    "background": "leave it out, and stream",
    "prompt": "send instructions and input",
    "top_logprobs": "/v1/chat/completions has log probabilities",
}


@dataclass(frozen=True, slots=True)
class Known:
    """A tool as its client knows it. ``takes_text``: its argument is a text, not JSON."""

    name: str
    namespace: str | None = None
    takes_text: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """The chat that is asked for, and its tools by the names that the model sees."""

    chat: ChatAsked
    known: Mapping[str, Known]


def wanted(body: ResponseBody) -> Wanted:
    """Raises ApiError."""
    _refuse_not_built(body)
    offered: dict[str, dict[str, Any]] = {}
    known: dict[str, Known] = {}
    for i, tool in enumerate(body.tools or ()):
        for made, one in _read_tool(tool, f"tools[{i}]", None):
            name = made["function"]["name"]
            offered[name], known[name] = made, one
    effort = None if body.reasoning is None else body.reasoning.effort
    variables = {**effort_variables(effort), **(body.chat_template_kwargs or {})}
    thinking = variables.pop("enable_thinking", None)
    if thinking is not None and type(thinking) is not bool:
        where = "chat_template_kwargs.enable_thinking"
        raise invalid(where, f"{where} = {thinking!r:.80} is not true or false")
    if thinking is None and effort == "none":
        thinking = False
    tools = [*offered.values()]
    forced = body.tool_choice not in (None, "none", "auto")
    names = _names(body.tool_choice, tools) if forced else None
    held, held_by = _held(body)
    drawn = Sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, seed=body.seed)
    with told_of(held_by):
        params = drawn.params(max_tokens=body.max_output_tokens, **held)
    chat = ChatAsked(
        messages=_turns(body),
        params=params,
        tools=tools if tools and body.tool_choice != "none" else None,
        one_call=body.parallel_tool_calls is False,
        forced=forced,
        names=names,
        held_by=held_by,
        enable_thinking=thinking,
        variables=variables,
    )
    return Wanted(chat, known)


def _refuse_not_built(body: ResponseBody) -> None:
    for name, remedy in _NOT_BUILT.items():
        if getattr(body, name):
            raise not_built(name, f"{name} is not built here: {remedy}")
    if body.truncation not in (None, "disabled"):
        raise not_built("truncation", f"truncation = {body.truncation!r:.40}: nothing is cut here")


def _names(choice: Any, tools: list[dict[str, Any]]) -> list[str] | None:
    """The tools that ``tool_choice`` asks for; None: any."""
    name = None
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind not in ("function", "custom"):
            raise not_built("tool_choice.type", f"tool_choice.type = {kind!r:.80} is not built here")
        name = _shown(field(choice, "name", str, "tool_choice"), choice.get("namespace"))
    return names_called(tools, name)


def _held(body: ResponseBody) -> tuple[dict[str, Any], str | None]:
    """The schema that an answer is held to, if any, and the field that it is from."""
    form = None if body.text is None else body.text.format
    if form is None or form.type == "text":
        return {}, None
    if form.type == "json_object":
        return {"json_schema": True}, "text.format"
    if form.schema_ is None:
        raise invalid("text.format.schema", "text.format.schema is missing", "missing_field")
    return {"json_schema": form.schema_}, "text.format.schema"


_READ = ("function", "custom", "namespace")


def _read_tool(
    tool: Mapping[str, Any], where: str, namespace: str | None
) -> list[tuple[dict[str, Any], Known]]:
    """A tool as templates know it; none where a server would have to run it."""
    kind = tool.get("type")
    if kind not in _READ:
        return []
    name = field(tool, "name", str, where)
    if kind == "namespace":
        if namespace is not None:
            raise not_built(f"{where}.type", f"{where}.type = 'namespace' inside another is not built here")
        inner = field(tool, "tools", list, where)
        found = []
        for i, one in enumerate(inner):
            if not isinstance(one, Mapping):
                raise invalid(f"{where}.tools[{i}]", f"{where}.tools[{i}] is not a tool, which is an object")
            found += _read_tool(one, f"{where}.tools[{i}]", name)
        return found
    shown = _shown(name, namespace)
    told = tool.get("description")
    if kind == "function":
        made = function_of(shown, told, schema_of(tool, "parameters", where))
        return [(made, Known(name, namespace))]
    form = tool.get("format")
    if isinstance(form, Mapping) and isinstance(form.get("definition"), str):
        told = f"{told or ''}\n\nThe input follows this grammar:\n{form['definition']}".strip()
    text = {"type": "string", "description": "The whole input, as text."}
    schema = {"type": "object", "properties": {_INPUT: text}, "required": [_INPUT]}
    return [(function_of(shown, told, schema), Known(name, namespace, takes_text=True))]


def _shown(name: str, namespace: Any) -> str:
    """What the model calls a tool: those of different namespaces may be called alike."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


def _turns(body: ResponseBody) -> list[dict[str, Any]]:
    turns = Turns()
    if body.instructions:
        turns.system(body.instructions)
    if isinstance(body.input, str):
        turns.user(body.input)
    else:
        for i, item in enumerate(body.input):
            _read_item(turns, item, f"input[{i}]")
    return turns.messages()


def _read_item(turns: Turns, item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        role = field(item, "role", str, where)
        say = {
            "user": turns.user,
            "assistant": turns.answer,
            "system": turns.system,
            "developer": turns.system,
        }
        if role not in say:
            raise invalid(f"{where}.role", f"{where}.role = {role[:80]!r} is not a role", "invalid_value")
        say[role](_text(item.get("content"), f"{where}.content"))
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        turns.thought(_text(parts, f"{where}.content"))
    elif kind in ("function_call", "custom_tool_call"):
        name = _shown(field(item, "name", str, where), item.get("namespace"))
        number = field(item, "call_id", str, where)
        if kind == "function_call":
            turns.call(number, name, field(item, "arguments", str, where))
        else:
            turns.call(number, name, {_INPUT: field(item, "input", str, where)})
    elif kind in ("function_call_output", "custom_tool_call_output"):
        number = field(item, "call_id", str, where)
        turns.result(number, _text(item.get("output"), f"{where}.output"), f"{where}.call_id")
    elif kind == "item_reference":
        raise not_built(
            where, f"{where} is an item_reference, and nothing is kept here: send the item itself"
        )
    else:
        raise not_built(f"{where}.type", f"{where}.type = {kind!r:.80} is not read here")


def _text(content: Any, where: str) -> str:
    """Parts of text as one."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, f"{where} = {content!r:.80} is not text or a list of parts", "invalid_value")
    return APART.join(filter(None, (_part(part, f"{where}[{i}]") for i, part in enumerate(content))))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "refusal":
        return str(field(part, "refusal", str, where))
    if kind not in _TEXTS:
        raise not_built(where, f"{where} is a part of type {kind!r:.80}, which is not read: give text")
    return str(field(part, "text", str, where))
