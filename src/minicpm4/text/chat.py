"""From messages to token ids, with the control tokens of the template and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from minicpm4.errors import TextError
from minicpm4.text.guard import MASK
from minicpm4.text.messages import check_messages, check_tools
from minicpm4.text.template import ChatTemplate, is_word
from minicpm4.text.tokenizer import Tokenizer
from minicpm4.text.written import Written

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
    if trust_content:
        text = template.render_checked(checked, functions, **options)
        return tokenizer.with_prefix(tokenizer.encode(text, add_special_tokens=False))
    traced = template.trace_checked(checked, functions, **options)
    ids = _plain_ids(tokenizer, traced)
    if ids is None:
        ids = tokenizer.encode_guarded(_guarded(tokenizer, template, traced, checked, functions, options))
    # An end token after the prompt would end it before the answer.
    return tokenizer.with_prefix(ids)


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
    checked, functions = check_messages(messages), check_tools(tools)
    traced = template.trace_checked(checked, functions, **options)
    return _guarded(tokenizer, template, traced, checked, functions, options)


def _plain_ids(tokenizer: Tokenizer, traced: Written) -> list[int] | None:
    """Ids of a prompt in which every control token is the template's own, without the guard, which takes time
    to make; None where one may be another's: spelled in a message, or found by the tokenizer's normaliser."""
    own = tokenizer.spellings.count_written(traced)
    if own is None:
        return None
    ids = tokenizer.encode(str.__str__(traced), add_special_tokens=False)
    control = frozenset(tokenizer.control_tokens.values())
    return ids if sum(1 for i in ids if i in control) == own else None


def _guarded(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    traced: Written,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> str:
    """``traced``, which the template made of the rest, with aliases for its control tokens."""
    tokenizer.check_text(traced)
    guard = tokenizer.guard
    text, others = guard.own_to_aliases(traced)
    if not others:
        return text
    # Either a message's, and text, or the template's, which has altered them so that nobody can tell.
    spelled = _spells(tokenizer, messages, tools, options)
    altered: int | None = None
    for mask in (tokenizer.spellings.mask, _blanked) if spelled else (_blanked,):
        altered = _untold(tokenizer, template, messages, tools, options, mask)
        if altered == 0:
            return text
    if altered == others and not spelled:
        return guard.to_aliases(str.__str__(traced))  # no message has part in them: all are the template's
    raise TextError(
        "a message spells a control token, which cannot be told from those that the chat template alters",
        "remove the spelling from the message",
    )


def _untold(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
    mask: Callable[[str], str],
) -> int | None:
    """How many control tokens are not known as the template's when no message spells one, since all of
    them are seen through ``mask``; None: it refuses such messages."""
    masked = [
        _map_strings(mask, message) | ({"role": message["role"]} if is_word(message["role"]) else {})
        for message in messages
    ]
    options = {name: _map_strings(mask, value) for name, value in options.items()}
    try:
        traced = template.trace_checked(masked, _map_strings(mask, tools), **options)
    except TextError:
        return None
    return tokenizer.guard.own_to_aliases(traced)[1]


def _blanked(text: str) -> str:
    """Text as long, of which no template makes a control token."""
    return "".join(char if char.isspace() else MASK for char in text)


def _spells(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: Any, options: Mapping[str, Any]
) -> bool:
    """Whether what the caller says may spell a control token, alone or with what stands beside it."""
    # A role that is a word is what the template makes of it.
    said = [[{**m, "role": ""} if is_word(m["role"]) else m for m in messages], tools, options]
    return any(tokenizer.spellings.touch(text) for text in _strings(said))


def _map_strings(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(change, k): _map_strings(change, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(change, item) for item in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
