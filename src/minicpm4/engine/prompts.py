"""What callers may pass as prompts and as their parameters, put in one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minicpm4.engine.params import SamplingParams
from minicpm4.errors import RequestError

Prompt = str | Sequence[int]
Prompts = list[str] | list[list[int]] | list[Prompt] | tuple[Prompt, ...] | Iterator[Prompt]
Params = SamplingParams | Iterable[SamplingParams | None] | None
Messages = Sequence[Mapping[str, Any]]


def split_prompts(prompts: Any) -> tuple[list[Any], bool]:
    """The single prompts, and whether they came as a batch.

    A string is a prompt, so are token ids: a sequence or a 1-d array of integers. What holds prompts is a
    batch: a list, tuple, iterator or 2-d array, also an empty list. Anything else is taken for one prompt,
    for ``plain_ids`` to refuse.
    """
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return [prompts], False
    if isinstance(prompts, np.ndarray):
        return (list(prompts), True) if prompts.ndim > 1 else ([prompts], False)
    if not isinstance(prompts, Sequence):
        prompts = list(prompts)
    if len(prompts) and not isinstance(prompts[0], str | bytes | Sequence | np.ndarray):
        return [prompts], False
    return list(prompts), True


def split_chats(messages: Any) -> tuple[list[Any], bool]:
    """The single conversations, and whether they came as a batch: a list whose first item is a list."""
    batch = isinstance(messages, Sequence) and not isinstance(messages, str | bytes) and len(messages) > 0
    if batch and isinstance(messages[0], Sequence) and not isinstance(messages[0], str | bytes):
        return list(messages), True
    return [messages], False


def plain_ids(ids: Any) -> list[int]:
    """Token ids as a list of Python integers; values are checked by the engine. Raises RequestError."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise RequestError(f"token ids come as {ids.ndim}-d {ids.dtype}", "pass a 1-d array of integers")
        return list(map(int, ids))
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise RequestError(
            f"a {type(ids).__name__} was given, not token ids",
            "pass a list of integers; of a text: llm.tokenizer.encode(text)",
        )
    return [int(i) if isinstance(i, np.integer) else i for i in ids]


def one_each(params: Any, count: int) -> list[SamplingParams]:
    """The parameters of each of ``count`` prompts: one for all, or one for each;
    None is SamplingParams(). Raises RequestError."""
    if params is None:
        params = SamplingParams()
    if isinstance(params, str | bytes | Mapping) or not isinstance(params, Iterable):
        each: list[Any] = [params] * max(count, 1)
    else:
        each = [SamplingParams() if one is None else one for one in params]
        if len(each) != count:
            raise RequestError(
                f"{count} prompts came with {len(each)} params", "pass one for all or one for each"
            )
    for one in each:
        if not isinstance(one, SamplingParams):
            raise RequestError(f"params is a {type(one).__name__}", "pass SamplingParams(...)")
    return each[:count]
