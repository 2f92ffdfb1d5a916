"""What callers get back: whole outputs, and pieces of a stream."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.sequence import FinishReason
from minicpm4.errors import Minicpm4Error
from minicpm4.text.toolcalls import ParsedReply, ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Natural log probabilities at one position. ``logprob``: of the model's own distribution (no penalty,
    bias, temperature or filter). ``top``: the best token ids, best first, with theirs.
    ``sampling_logprob``: of the distribution that the token was drawn from, after all of these; 0 where
    temperature is 0. It is what policy gradients divide by."""

    token_id: int
    logprob: float
    sampling_logprob: float
    top: dict[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOutput:
    """One sample. ``text`` ends before the stop string or end token; ``token_ids`` has every token.
    ``stop``: the stop string that ended it. ``reply``: of a chat, the text taken apart."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    reply: ParsedReply | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOutput:
    """The ``n`` samples of one request. ``text``, ``token_ids``, … are those of the first."""

    prompt_token_ids: list[int]
    outputs: list[SampleOutput]
    metrics: Metrics

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return self.outputs[0].logprobs

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the answer of a chat asks for, in order."""
        reply = self.outputs[0].reply
        return () if reply is None else reply.calls

    @property
    def reasoning(self) -> str:
        """What the answer of a chat thought before it."""
        reply = self.outputs[0].reply
        return "" if reply is None else reply.thought


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Text that has become final, and the tokens since the last piece. ``index``: which sample.

    The last piece of a sample has its ``finish_reason``, and ``stop`` where a stop string ended it; the last
    of a request has ``metrics``.
    """

    text: str
    token_ids: list[int]
    index: int = 0
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop: str | None = None
    metrics: Metrics | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Event: ``done`` of the ``total`` prompt tokens of a request are in the cache, ``cached`` of them from
    earlier requests. The first comes before any is read."""

    request_id: int
    done: int
    total: int
    cached: int = 0

    @property
    def last(self) -> bool:
        """Whether this is the last event of its request."""
        return False


@dataclass(frozen=True, slots=True)
class Sampled:
    """Event: a request has a new token, or has ended (then ``piece`` says so)."""

    request_id: int
    piece: Piece

    @property
    def last(self) -> bool:
        return self.piece.metrics is not None


@dataclass(frozen=True, slots=True)
class Read:
    """Event: a text that was only to be read has been, or is given up (not ``whole``)."""

    request_id: int
    whole: bool = True

    @property
    def last(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: a request was ended by an error of its own; the others go on."""

    request_id: int
    error: Minicpm4Error

    @property
    def last(self) -> bool:
        return True


Event = Prefilled | Sampled | Read | Failed
