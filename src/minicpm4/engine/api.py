"""The outer face of an engine: what drivers, LLM, AsyncLLM and servers ask of it.

``Engine`` fulfils it, ``minicpm4.testing`` has a scripted one; other runtimes behind the same server will.
Token ids go in, events come out. What stands above never looks further in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from minicpm4.config.strict import shown
from minicpm4.engine.outputs import Event
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import RequestError
from minicpm4.kernels.step import Array
from minicpm4.text.replies import ReplyReader
from minicpm4.text.tokenizer import Tokenizer

Shown = Literal["logits", "states"]
Visit = Callable[[int, Array], None]
"""``visit(position of the first, array (m, ...))``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an engine takes at most. ``context``: tokens of prompt and answer together; ``max_sequences``:
    how many are answered at a time (more may wait). ``attentions``: what a request may ask for."""

    vocab_size: int
    context: int
    max_sequences: int
    attentions: tuple[str, ...] = ("auto", "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What an engine has in hand: ``running`` and ``waiting`` sequences, and pages of its cache that they
    hold, of ``pages`` (those that only the prefix cache keeps are free)."""

    running: int
    waiting: int
    pages_held: int
    pages: int


class EngineAPI(Protocol):
    """Requests in, events out. ``check``, ``limits`` and ``load`` are for any thread, the rest for one at a
    time.

    An exception may leave any of its methods at any moment (Ctrl-C, memory). The next call works all the
    same: requests that were not touched go on, others end with a ``Failed`` event. What had happened is in
    ``events``.
    """

    @property
    def limits(self) -> Limits: ...

    @property
    def load(self) -> Load:
        """What is in hand just now; while a step runs its numbers need not fit together."""
        ...

    @property
    def events(self) -> deque[Event]:
        """What has happened, oldest first: the caller takes events from the left. Of each request that was
        added, one is the last (``event.last``)."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do something: while a request is under way, it would."""
        ...

    def check(self, ids: Sequence[int], params: SamplingParams) -> None:
        """Raise RequestError or TextError unless a prompt and its parameters can be served."""
        ...

    def add(self, request_id: int, ids: Sequence[int], params: SamplingParams) -> None:
        """Queue a prompt under a number that the caller chose and has not used before; lower ones go first.

        A number that is under way is left alone: after an exception, add it again or abort it. Raises as
        ``check`` does.
        """
        ...

    def abort(self, request_id: int, index: int | None = None) -> None:
        """End a request now, or one of its samples; what is unknown is ignored. Its last event follows."""
        ...

    def step(self) -> None:
        """Do some work, if there is any, and append to ``events`` what came of it."""
        ...

    def check_read(self, ids: Sequence[int], shown: Shown) -> None:
        """Raise RequestError or UnsupportedError unless a text can be read."""
        ...

    def read(self, request_id: int, ids: Sequence[int], shown: Shown, visit: Visit) -> None:
        """Queue a text, under a number as in ``add``, that is run through the model in steps, beside others'
        prompts and answers; nothing is sampled. ``visit`` is shown every position's logits (m, vocab), or
        states (m, hidden), float32, that the head would read: after all layers and the last norm. In order,
        some at a time, each valid until the next; from position 0 again where the text had to be begun anew.

        It is called within ``step``, may not call the engine, and what it raises ends its request alone if
        it is a Minicpm4Error. The last event is ``Read`` or ``Failed``. Raises as ``check_read`` does.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Nothing else may be called afterwards."""
        ...


class Text(Protocol):
    """From text to token ids, for what stands above an engine. Raises TextError where a part is missing."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def replies(self) -> ReplyReader: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        **variables: Any,
    ) -> list[int]: ...

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, enable_thinking: bool | None = None, **variables: Any
    ) -> str: ...


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise RequestError unless ``ids`` is a non-empty list of ids below ``vocab_size``."""
    if not ids:
        raise RequestError("the prompt is empty", "give at least one token")
    for position, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise RequestError(
                f"token {shown(token)} at position {position} is not in the vocabulary of {vocab_size}",
                f"token ids are integers from 0 to {vocab_size - 1}",
            )


def check_text(ids: Sequence[int], limits: Limits) -> None:
    """Raise RequestError unless a text that is to be read, and nothing written after it, is within
    ``limits``."""
    check_ids(ids, limits.vocab_size)
    if len(ids) > limits.context:
        raise RequestError(
            f"the text has {len(ids):,} tokens, the context is {limits.context:,}",
            "split it, or load the model with a larger context",
        )


def check_request(limits: Limits, ids: Sequence[int], params: SamplingParams) -> None:
    """Raise RequestError unless a prompt and its parameters are within ``limits``."""
    check_ids(ids, limits.vocab_size)
    if len(ids) >= limits.context:
        raise RequestError(
            f"the prompt has {len(ids):,} tokens, prompt and answer together may have "
            f"{limits.context:,} (context)",
            "shorten it, or load the model with a larger context (--context), or a model that has one",
        )
    if params.attention is not None and params.attention not in limits.attentions:
        raise RequestError(
            f"attention = {params.attention!r} cannot be had: the model was loaded with dense attention",
            "leave it out, or load the model with attention='sparse'",
        )
    named = {"stop_token_ids": params.stop_token_ids, "logit_bias": params.logit_bias}
    for name, tokens in named.items():
        beyond = [token for token in tokens if token >= limits.vocab_size]
        if beyond:
            raise RequestError(
                f"{name} names token {shown(beyond[0])}, the vocabulary has {limits.vocab_size}",
                f"token ids are 0 to {limits.vocab_size - 1}",
            )
