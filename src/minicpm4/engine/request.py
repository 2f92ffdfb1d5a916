"""What the engine remembers of one request: its samples, their text so far, and its figures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from minicpm4.config import SparseConfig
from minicpm4.engine.metrics import BlockCount, Metrics, peak_memory
from minicpm4.engine.outputs import Piece, TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.sampler import SampleState
from minicpm4.engine.sequence import FinishReason, Sequence


class TextStream(Protocol):
    """Turns the tokens of one sample into text and says where it stops: text.StreamDecoder."""

    @property
    def stopped(self) -> bool: ...

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class NoText:
    """For checkpoints without a tokenizer: no text, but the same end tokens."""

    def __init__(self, stop_token_ids: Collection[int]) -> None:
        self._ends = frozenset(stop_token_ids)
        self.stopped = False

    def push(self, token_id: int) -> str:
        self.stopped = self.stopped or token_id in self._ends
        return ""

    def finish(self) -> str:
        return ""


@dataclass(slots=True, eq=False)
class Sample:
    """One of the ``n`` samples."""

    sequence: Sequence
    state: SampleState
    text: TextStream

    def take(self, token: int, logprobs: TokenLogprobs | None) -> Piece:
        """Append a sampled token; the piece says how the sample ended, if it did."""
        self.sequence.tokens.append(token)
        self.state.append(token)
        text = self.text.push(token)
        reason: FinishReason | None = "stop" if self.text.stopped else None
        if reason is None and len(self.sequence.tokens) >= self.sequence.limit:
            text += self.text.finish()
            # What was held back may hold a stop string after all.
            reason = "stop" if self.text.stopped else "length"
        return Piece(
            text=text,
            token_ids=[token],
            index=self.sequence.index,
            logprobs=None if logprobs is None else [logprobs],
            finish_reason=reason,
        )


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are those of ``perf_counter``, None before the event."""

    request_id: int
    params: SamplingParams
    sparse: SparseConfig | None
    samples: list[Sample] = field(default_factory=list)
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    blocks: BlockCount = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = BlockCount(self.sparse)

    @property
    def finished(self) -> bool:
        return all(sample.sequence.finish_reason for sample in self.samples)

    def ran(self, start: int, stop: int) -> None:
        """Count the tokens at positions ``start`` to ``stop`` - 1 of one of its sequences."""
        self.blocks.add(start, stop)

    def sampled(self) -> None:
        """Note the time of a token."""
        self.last_token = perf_counter()
        self.first_token = self.first_token or self.last_token

    def metrics(self) -> Metrics:
        """Figures so far."""
        first = self.samples[0].sequence
        start, then, last = self.started, self.first_token, self.last_token
        return Metrics(
            prompt_tokens=first.num_prompt,
            cached_tokens=max(first.cached, 0),
            prefill_s=then - start if then and start else 0.0,
            new_tokens=sum(len(sample.sequence.output) for sample in self.samples),
            decode_s=last - then if last and then else 0.0,
            attention="sparse" if self.blocks.any_sparse else "dense",
            blocks_read_share=self.blocks.share,
            peak_memory=peak_memory(),
        )
