"""From messages to token ids, with the control tokens of the template and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minicpm4.errors import TextError
from minicpm4.text.guard import alternatives
from minicpm4.text.messages import check_messages, check_tools
from minicpm4.text.template import ChatTemplate
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["encode_chat", "guarded_text"]


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
    trust_content: bool = False,
    **kwargs: Any,
) -> list[int]:
    """Token ids of a chat's prompt, with BOS (where the checkpoint wants one) exactly once.

    A control token spelled inside a message or tool (``<|im_end|>`` typed by a user) stays plain
    text: it cannot end the turn or forge another. ``trust_content=True`` reads it as the token, as
    transformers does; without such spellings both give the same ids. Raises RequestError for
    malformed messages, TextError when the template fails.
    """
    checked, functions = check_messages(messages), check_tools(tools)
    options = {
        "add_generation_prompt": add_generation_prompt,
        "enable_thinking": enable_thinking,
        **kwargs,
    }
    spelled = alternatives(tokenizer.control_tokens)
    if trust_content or spelled is None or not _any_string(spelled.search, [checked, functions, kwargs]):
        text = template.render_checked(checked, functions, **options)
        ids = tokenizer.encode(text, add_special_tokens=False)
    else:
        ids = tokenizer.encode_guarded(_guarded(tokenizer, template, checked, functions, options))
    # An end token after the prompt would end it before the answer.
    before = tokenizer.prefix_ids
    return ids if ids[: len(before)] == before else [*before, *ids]


def guarded_text(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> str:
    """A chat's text for ``tokenizer.encode_guarded``, which may be cut anywhere between tokens: the
    template's control tokens stand as aliases (``tokenizer.guard``), so none of the messages' words can be
    one. Options and errors are those of ``encode_chat``."""
    options = {"enable_thinking": None, **options}
    return _guarded(tokenizer, template, check_messages(messages), check_tools(tools), options)


def _guarded(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> str:
    # Spellings in the content become marks, the template is rendered, its own spellings become
    # aliases, and the marks become the spellings again: now they are ordinary text.
    guard = tokenizer.guard
    marks = {name: f"\ue0f3{guard.nonce}{i:x}\ue0f4" for i, name in enumerate(guard.aliases)}
    spelled, marked = alternatives(marks), alternatives(marks.values())
    assert spelled is not None and marked is not None
    names = {mark: name for name, mark in marks.items()}

    def hide(text: str) -> str:
        return spelled.sub(lambda m: marks[m[0]], text)

    options = {name: _map_strings(hide, value) for name, value in options.items()}
    text = template.render_checked(_map_strings(hide, messages), _map_strings(hide, tools), **options)
    tokenizer.check_text(text)
    text = marked.sub(lambda m: names[m[0]], guard.to_aliases(text))
    if "\ue0f3" + guard.nonce in text:
        raise TextError(
            "the chat template alters a control token that a message spells",
            "remove the spelling from the message, or pass trust_content=True",
        )
    return text


def _map_strings(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(change, k): _map_strings(change, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(change, item) for item in value]
    return value


def _any_string(test: Callable[[str], Any], value: Any) -> bool:
    if isinstance(value, str):
        return bool(test(value))
    if isinstance(value, Mapping):
        return any(_any_string(test, item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return any(_any_string(test, item) for item in value)
    return False
