"""Chat templates: the checkpoint's own Jinja source, which turns messages into one prompt."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from minicpm4.errors import Minicpm4Error, RequestError, TextError
from minicpm4.files import read_text
from minicpm4.text.files import MAX_TEMPLATES, own_roles, read_settings, template_files, text_settings
from minicpm4.text.messages import check_messages, check_tools
from minicpm4.text.sandbox import AbsentToken, TemplateSandbox, TracingSandbox
from minicpm4.text.shapes import as_parts, shaped
from minicpm4.text.tokenizer import Tokenizer
from minicpm4.text.written import Written

__all__ = ["ChatTemplate", "chat_template_from_gguf", "load_chat_template"]

MAX_SOURCE_CHARS = 1 << 20
_NO_TEMPLATE = "pass a raw prompt to generate instead of messages, or add the model's chat_template.jinja"


class ChatTemplate:
    """A chat template and the tokens that it may name.

    ``source``: the Jinja text, or a table of named ones ("default", "tool_use"): tools choose
    "tool_use" where there is one. ``bos_token``, ``eos_token`` and the like in ``tokens`` are
    variables of the template. Raises TextError when the source is no template.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        bos_token: str | None = None,
        eos_token: str | None = None,
        *,
        tokens: Mapping[str, str] | None = None,
        seconds: float = 10.0,
    ) -> None:
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        if not self.sources:
            raise TextError("the checkpoint's list of chat templates is empty", _NO_TEMPLATE)
        given = {"bos_token": bos_token, "eos_token": eos_token, **(tokens or {})}
        self._variables = {name: text or AbsentToken(name=name) for name, text in given.items()}
        self._seconds = seconds
        self._sandbox = TemplateSandbox(seconds)
        self._compiled = self._compile_all(self._sandbox)
        self._tracing: TracingSandbox | None = None  # made at the first use
        self._traced: dict[str, jinja2.Template] = {}
        self._names_reasoning = any(re.search(r"\breasoning\b", text) for text in self.sources.values())
        self._lock = threading.Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt of a chat, as transformers' apply_chat_template writes it.

        ``enable_thinking`` reaches the template only when not None, ``kwargs`` always do. Control
        tokens spelled in a message stand in the prompt like the template's own: ``encode_chat``
        keeps them apart. Raises RequestError for malformed messages, TextError with the template's
        own message when it refuses them.
        """
        return self.render_checked(
            check_messages(messages),
            check_tools(tools),
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            **kwargs,
        )

    def render_checked(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: Any
    ) -> str:
        """``render`` for messages and tools that were checked already."""
        return self._render_all(self._values(messages, tools, **options))

    def trace_checked(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: Any
    ) -> Written:
        """``render_checked``, with the account of what in it the template wrote. A role that is a word counts
        as the template's: some write ``<|user|>`` from it."""
        values = self._values(messages, tools, **options)
        own = {name: text for name, text in self._variables.items() if name not in options}
        values |= {name: Written.whole(text) for name, text in own.items() if isinstance(text, str)}
        values["messages"] = [
            {**m, "role": Written.whole(m["role"])} if is_word(m["role"]) else m for m in values["messages"]
        ]
        with self._lock:
            if self._tracing is None:
                self._tracing = TracingSandbox(self._seconds)
                self._traced = self._compile_all(self._tracing)
        text = self._render_all(values, self._tracing, self._traced)
        return text if isinstance(text, Written) else Written(text)

    def _values(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        enable_thinking: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the template sees."""
        if enable_thinking is not None and type(enable_thinking) is not bool:
            kind = type(enable_thinking).__name__
            raise RequestError(f"enable_thinking is a {kind}", "give True, False, or None: as the model does")
        values = {**self._variables, "tools": tools, "documents": None, **kwargs}
        if enable_thinking is not None:
            values["enable_thinking"] = enable_thinking
        messages = [self._with_reasoning(message) for message in messages]
        messages = shaped(messages, lambda shape: self._render({**values, "messages": shape}))
        return {**values, "messages": messages}

    def _with_reasoning(self, message: dict[str, Any]) -> dict[str, Any]:
        """``message`` with its reasoning under the name that transformers does not give it."""
        said = message.get("reasoning_content") if self._names_reasoning else None
        return message if said is None else {"reasoning": said, **message}

    def _render_all(
        self,
        values: dict[str, Any],
        sandbox: TemplateSandbox | None = None,
        compiled: Mapping[str, jinja2.Template] | None = None,
    ) -> str:
        """The text, in which plain text of messages is not missing because the template reads only parts."""
        refusal: TextError | None = None
        try:
            text = self._render(values, sandbox, compiled)
        except TextError as error:
            # What a template says itself, and what took too much, holds for parts as well.
            if type(error.__cause__) in (type(None), TemplateError, SecurityError, MemoryError):
                raise
            text, refusal = "", error
        parts = as_parts(values["messages"], text, lambda shape: self._render({**values, "messages": shape}))
        if parts is not None:
            return self._render({**values, "messages": parts}, sandbox, compiled)
        if refusal is not None:
            raise refusal
        return text

    def _render(
        self,
        values: dict[str, Any],
        sandbox: TemplateSandbox | None = None,
        compiled: Mapping[str, jinja2.Template] | None = None,
    ) -> str:
        sandbox, compiled = sandbox or self._sandbox, compiled or self._compiled
        with self._lock:
            try:
                return sandbox.render(_choose(compiled, bool(values["tools"])), values)
            except SecurityError as error:
                raise TextError(f"the chat template does what the sandbox forbids: {error}") from error
            except TemplateError as error:
                raise TextError(f"the chat template refuses the messages: {error}") from error
            except (RecursionError, MemoryError, OverflowError) as error:
                raise TextError(f"the chat template takes too much: {type(error).__name__}") from error
            except Minicpm4Error:
                raise
            except Exception as error:  # whatever the code of a stranger raises
                raise TextError(f"the chat template fails on these messages: {error}") from error

    def _compile_all(self, sandbox: TemplateSandbox) -> dict[str, jinja2.Template]:
        return {name: self._compile(name, text, sandbox) for name, text in self.sources.items()}

    def _compile(self, name: str, source: str, sandbox: TemplateSandbox) -> jinja2.Template:
        if not isinstance(source, str) or len(source) > MAX_SOURCE_CHARS:
            raise TextError(f"chat template {name!r} is not text of at most {MAX_SOURCE_CHARS} characters")
        try:
            return sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise TextError(
                f"chat template {name!r} has a syntax error in line {error.lineno}: {error.message}"
            ) from error
        except (RecursionError, MemoryError, ValueError, SyntaxError) as error:
            raise TextError(f"chat template {name!r} cannot be compiled: {error}") from error


def is_word(role: str) -> bool:
    """Whether a role is one of letters, from which some templates make control tokens."""
    return role.replace("_", "").isalpha()


def _choose(compiled: Mapping[str, jinja2.Template], with_tools: bool) -> jinja2.Template:
    if with_tools and "tool_use" in compiled:
        return compiled["tool_use"]
    if "default" in compiled:
        return compiled["default"]
    if len(compiled) == 1:
        return next(iter(compiled.values()))
    raise TextError(f"the checkpoint has chat templates {sorted(compiled)}, none is the default")


def load_chat_template(
    folder: Path, *, bos_token: str | None = None, eos_token: str | None = None
) -> ChatTemplate | None:
    """The chat template of a checkpoint folder; None where there is none.

    Looked for in chat_template.jinja, chat_template.json, and tokenizer_config.json, in this order; named
    ones are in additional_chat_templates, too. Special tokens are those of ``text_settings`` unless given.
    Raises TextError for one that cannot be read.
    """
    folder = Path(folder)
    settings = text_settings(folder)
    jinja = folder / "chat_template.jinja"
    source = read_text(jinja, 4 * MAX_SOURCE_CHARS, TextError) if jinja.is_file() else None
    if source is None:
        source = read_settings(folder / "chat_template.json").get("chat_template")
    if source is None:
        source = settings.get("chat_template")
    named = {
        name: read_text(file, 4 * MAX_SOURCE_CHARS, TextError)
        for name, file in template_files(folder).items()
    }
    if source is None and not named:
        return None
    sources = {} if source is None else _named(source)
    roles = {name: settings.get(name) for name in settings if name.endswith("_token")} | own_roles(settings)
    tokens = {name: text for name, value in roles.items() if (text := _spelling(value))}
    tokens |= {k: v for k, v in (("bos_token", bos_token), ("eos_token", eos_token)) if v is not None}
    return ChatTemplate({**sources, **named}, tokens=tokens)


def chat_template_from_gguf(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a GGUF file. Raises TextError when it has none."""
    source = metadata.get("tokenizer.chat_template")
    if not source:
        raise TextError("the GGUF file has no chat template", _NO_TEMPLATE)
    sources = {"default": source}
    names = metadata.get("tokenizer.chat_templates") or ()
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) > MAX_TEMPLATES:
        raise TextError("GGUF tokenizer.chat_templates is no list of names", _NO_TEMPLATE)
    for name in names:
        sources[str(name)] = metadata.get(f"tokenizer.chat_template.{name}", source)
    bos, ends = tokenizer.bos_token_id, tokenizer.eos_token_ids
    return ChatTemplate(
        sources,
        None if bos is None else tokenizer.id_to_token(bos),
        tokenizer.id_to_token(ends[0]) if ends else None,
    )


def _spelling(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named(source: Any) -> dict[str, str]:
    if isinstance(source, str):
        return {"default": source}
    try:
        return {str(entry["name"]): entry["template"] for entry in source}
    except (TypeError, KeyError):
        raise TextError(
            "chat_template is neither a string nor a list of {name, template} tables", _NO_TEMPLATE
        ) from None
