"""Chat templates: the checkpoint's own Jinja source, which turns messages into one prompt."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from minicpm4.errors import TextError
from minicpm4.text.files import read_json, read_text
from minicpm4.text.messages import check_messages, check_tools
from minicpm4.text.sandbox import TemplateSandbox
from minicpm4.text.tokenizer import Tokenizer

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
        self._variables = {"bos_token": bos_token or "", "eos_token": eos_token or "", **(tokens or {})}
        self._sandbox = TemplateSandbox(seconds)
        self._compiled = {name: self._compile(name, text) for name, text in self.sources.items()}
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
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        enable_thinking: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """``render`` for messages and tools that were checked already."""
        values = {**self._variables, "messages": messages, "tools": tools, "documents": None, **kwargs}
        if enable_thinking is not None:
            values["enable_thinking"] = enable_thinking
        with self._lock:
            try:
                return self._sandbox.render(self._choose(bool(tools)), values)
            except SecurityError as error:
                raise TextError(f"the chat template does what the sandbox forbids: {error}") from error
            except TemplateError as error:
                raise TextError(f"the chat template refuses the messages: {error}") from error
            except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise TextError(f"the chat template fails on these messages: {error}") from error
            except (RecursionError, MemoryError, OverflowError) as error:
                raise TextError(f"the chat template takes too much: {type(error).__name__}") from error

    def _choose(self, with_tools: bool) -> jinja2.Template:
        if with_tools and "tool_use" in self._compiled:
            return self._compiled["tool_use"]
        if "default" in self._compiled:
            return self._compiled["default"]
        if len(self._compiled) == 1:
            return next(iter(self._compiled.values()))
        raise TextError(f"the checkpoint has chat templates {sorted(self._compiled)}, none is the default")

    def _compile(self, name: str, source: str) -> jinja2.Template:
        if not isinstance(source, str) or len(source) > MAX_SOURCE_CHARS:
            raise TextError(f"chat template {name!r} is not text of at most {MAX_SOURCE_CHARS} characters")
        try:
            return self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise TextError(
                f"chat template {name!r} has a syntax error in line {error.lineno}: {error.message}"
            ) from error
        except (RecursionError, MemoryError, ValueError, SyntaxError) as error:
            raise TextError(f"chat template {name!r} cannot be compiled: {error}") from error


def load_chat_template(
    folder: Path, *, bos_token: str | None = None, eos_token: str | None = None
) -> ChatTemplate:
    """The chat template of a checkpoint folder.

    Looked for in chat_template.jinja, chat_template.json, and tokenizer_config.json, in this order;
    the special tokens come from the last unless given. Raises TextError when there is none.
    """
    folder = Path(folder)
    settings = read_json(folder / "tokenizer_config.json")
    jinja = folder / "chat_template.jinja"
    source = read_text(jinja, 4 * MAX_SOURCE_CHARS) if jinja.is_file() else None
    if source is None:
        source = read_json(folder / "chat_template.json").get("chat_template")
    if source is None:
        source = settings.get("chat_template")
    if source is None:
        raise TextError(f"{folder} has no chat template", _NO_TEMPLATE)
    tokens = {
        name: text for name in settings if name.endswith("_token") and (text := _spelling(settings[name]))
    }
    tokens |= {k: v for k, v in (("bos_token", bos_token), ("eos_token", eos_token)) if v is not None}
    return ChatTemplate(_named(source), tokens=tokens)


def chat_template_from_gguf(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a GGUF file. Raises TextError when it has none."""
    source = metadata.get("tokenizer.chat_template")
    if not source:
        raise TextError("the GGUF file has no chat template", _NO_TEMPLATE)
    sources = {"default": source}
    for name in metadata.get("tokenizer.chat_templates") or ():
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


def _named(source: Any) -> str | dict[str, str]:
    if isinstance(source, str):
        return source
    try:
        return {str(entry["name"]): entry["template"] for entry in source}
    except (TypeError, KeyError):
        raise TextError(
            "chat_template is neither a string nor a list of {name, template} tables", _NO_TEMPLATE
        ) from None
