"""What Anthropic's clients send, and the chat that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from minicpm4.engine.params import SamplingParams
from minicpm4.serve.bodies import Shape
from minicpm4.serve.chats import ChatAsked, effort_variables
from minicpm4.serve.errors import invalid, not_built
from minicpm4.serve.forced import names_called, told_of
from minicpm4.serve.sampling import Count, CountOrZero, Sampling, Stop, Temperature, TopK, TopP
from minicpm4.serve.turns import APART, Turns, field, function_of, schema_of
from minicpm4.text.messages import MAX_MESSAGES, MAX_TOOLS
from minicpm4.text.stream import MAX_STOPS

# A line about who pays, other in each request of Claude Code: no prompt would ever be found in the cache.
_BILLING = "x-anthropic-billing-header:"


class Message(Shape):
    """A turn. What its blocks may be, ``asked`` says."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class MessageTool(Shape):
    """A tool that the client runs."""

    name: Annotated[str, Field(min_length=1)]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    # Of no consequence here.
    cache_control: Any = None
    strict: Any = None
    eager_input_streaming: Any = None
    defer_loading: Any = None
    allowed_callers: Any = None
    input_examples: Any = None


class ToolChoice(Shape):
    """Whether a tool is called, and which."""

    type: Literal["auto", "none", "any", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Shape):
    """Whether the model thinks first."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: CountOrZero | None = None
    display: Any = None


class OutputFormat(Shape):
    """What an answer is held to."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Shape):
    """How an answer is made."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class PromptBody(Shape):
    """What is told to the model."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: Any = None
    cache_control: Any = None
    # Known, and not built.
    mcp_servers: Any = None
    container: Any = None

    def without_effect(self) -> list[str]:
        """See Shape."""
        found = ["context_management"] if _edits(self.context_management) else []
        if self.thinking is not None and self.thinking.budget_tokens is not None:
            found.append("thinking.budget_tokens")
        return found + [
            f"tools[{i}] ({tool.type})" for i, tool in enumerate(self.tools or ()) if _is_own(tool)
        ]


class MessagesBody(PromptBody):
    """A request."""

    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    # Of no consequence here, whatever they hold.
    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None
    speed: Any = None


def chat_of(body: PromptBody) -> ChatAsked:
    """The chat that a body asks for. Raises ApiError."""
    for name, remedy in (("mcp_servers", "run the tools yourself"), ("container", "leave it out")):
        if getattr(body, name):
            raise not_built(name, f"{name} is not built here: {remedy}")
    choice = body.tool_choice or ToolChoice(type="auto")
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ()) if not _is_own(tool)]
    config = body.output_config or OutputConfig()
    thinking = None if body.thinking is None else body.thinking.type
    forced = choice.type in ("any", "tool")
    held, held_by = _held(body)
    with told_of(held_by):
        params = _params(body, held)
    return ChatAsked(
        messages=_turns(body),
        params=params,
        tools=tools if tools and choice.type != "none" else None,
        one_call=choice.disable_parallel_tool_use is True,
        forced=forced,
        names=_names(choice, tools) if forced else None,
        held_by=held_by,
        enable_thinking={"enabled": True, "disabled": False}.get(thinking or ""),
        variables=effort_variables(config.effort),
    )


def _names(choice: ToolChoice, tools: list[dict[str, Any]]) -> list[str] | None:
    """The tools that are to be called; None: any."""
    if choice.type == "tool" and choice.name is None:
        raise invalid("tool_choice.name", "tool_choice.name is missing", "missing_field")
    return names_called(tools, choice.name if choice.type == "tool" else None)


def _held(body: PromptBody) -> tuple[dict[str, Any] | None, str | None]:
    """The schema that an answer is held to, if any, and the field that it is from."""
    if body.output_config is not None and body.output_config.format is not None:
        return body.output_config.format.schema_, "output_config.format.schema"
    if body.output_format is not None:
        return body.output_format.schema_, "output_format.schema"
    return None, None


def _params(body: PromptBody, schema: dict[str, Any] | None) -> SamplingParams:
    if not isinstance(body, MessagesBody):
        return SamplingParams()
    drawn = Sampling(
        temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, stop=body.stop_sequences or None
    )
    return drawn.params(max_tokens=body.max_tokens, json_schema=schema)


def _is_own(tool: MessageTool) -> bool:
    """Whether a tool is one that Anthropic's servers run, or whose schema they know."""
    return tool.type not in (None, "custom")


def _tool(tool: MessageTool, where: str) -> dict[str, Any]:
    return function_of(
        tool.name, tool.description, schema_of({"input_schema": tool.input_schema}, "input_schema", where)
    )


def _edits(management: Any) -> bool:
    """Whether anything is to be left out of the conversation: to keep all thoughts is what is done here."""
    edits = management.get("edits") if isinstance(management, Mapping) else management
    return bool(edits) and edits != [{"type": "clear_thinking_20251015", "keep": "all"}]


def _turns(body: PromptBody) -> list[dict[str, Any]]:
    turns = Turns()
    if body.system:
        turns.system(_text(body.system, "system", leave_out=_BILLING))
    for i, message in enumerate(body.messages):
        where = f"messages[{i}].content"
        if message.role == "system":
            turns.system(_text(message.content, where))
        elif isinstance(message.content, str):
            (turns.user if message.role == "user" else turns.answer)(message.content)
        else:
            read = _said if message.role == "user" else _answered
            for j, block in enumerate(message.content):
                read(turns, block, f"{where}[{j}]")
    if turns.ends_in_answer:
        path = f"messages[{len(body.messages) - 1}]"
        raise not_built(path, f"{path}.role = 'assistant': to go on with a begun answer is not built here")
    return turns.messages()


def _said(turns: Turns, block: Mapping[str, Any], where: str) -> None:
    """A block of the user."""
    if block.get("type") == "tool_result":
        number = field(block, "tool_use_id", str, where)
        content = block.get("content")
        turns.result(number, _text(content or "", f"{where}.content"), f"{where}.tool_use_id")
    else:
        turns.user(_block_text(block, where))


def _answered(turns: Turns, block: Mapping[str, Any], where: str) -> None:
    """A block of the model."""
    kind = block.get("type")
    if kind == "thinking":
        turns.thought(field(block, "thinking", str, where))
    elif kind == "tool_use":
        turns.call(
            field(block, "id", str, where),
            field(block, "name", str, where),
            field(block, "input", dict, where),
        )
    elif kind != "redacted_thinking":  # nobody here can read one
        turns.answer(_block_text(block, where))


def _text(content: Any, where: str, leave_out: str | None = None) -> str:
    """Blocks of text as one; ``leave_out``: how blocks begin that are not read."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, f"{where} = {content!r:.80} is not text or a list of blocks", "invalid_value")
    texts = [_block_text(block, f"{where}[{i}]") for i, block in enumerate(content)]
    read = (text for text in texts if leave_out is None or not text.startswith(leave_out))
    return APART.join(filter(None, read))


def _block_text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    if kind != "text":
        raise not_built(where, f"{where} is a block of type {kind!r:.80}, which is not read there: give text")
    return str(field(block, "text", str, where))
