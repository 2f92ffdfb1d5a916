"""What the engine remembers of one request: its samples, their text so far, and its figures; or the text that
it reads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.engine.api import Visit
from minicpm4.engine.grammar import Grammars
from minicpm4.engine.metrics import BlockCount, Metrics, PassCount
from minicpm4.engine.outputs import Piece, TokenLogprobs
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.processors import make_processors
from minicpm4.engine.runner import StepResult
from minicpm4.engine.sampler import SampleState, log_probabilities, sample
from minicpm4.engine.sequence import Attention, FinishReason, Sequence
from minicpm4.engine.steps import Span
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Array
from minicpm4.machine import peak_memory
from minicpm4.text.stream import TextStream

TextStreams = Callable[[Items[str], Collection[int], bool, bool], TextStream]


@dataclass(slots=True, eq=False)
class Sample:
    """One of the ``n`` samples."""

    sequence: Sequence
    state: SampleState
    text: TextStream

    def take(self, token: int, logprobs: TokenLogprobs | None) -> Piece:
        """Append a sampled token; the piece says how the sample ended, if it did."""
        self.sequence.tokens.append(token)
        self.state.accept(token)
        text = self.text.push(token)
        reason: FinishReason | None = "stop" if self.text.stopped else None
        constraint = self.state.constraint
        if reason is None and constraint is not None and constraint.complete:
            text += self.text.finish()
            reason = "stop"
        if reason is None and len(self.sequence.tokens) >= self.sequence.limit:
            text += self.text.finish()
            # What was held back may hold a stop string after all.
            reason = "stop" if self.text.stopped else "length"
        matched = self.text.matched
        return Piece(
            text=text,
            token_ids=[token],
            index=self.sequence.index,
            logprobs=None if logprobs is None else [logprobs],
            finish_reason=reason,
            stop=matched if isinstance(matched, str) else None,
        )

    def take_forced(self, piece: Piece) -> Piece:
        """Append the tokens about which the answer's grammar leaves no choice. They run in the next step,
        with the one before them, and cost no pass of their own. Returns ``piece`` with them."""
        texts, tokens = [piece.text], [*piece.token_ids]
        while piece.finish_reason is None and (token := self.state.forced()) is not None:
            piece = self.take(token, None)
            texts.append(piece.text)
            tokens.append(token)
        return replace(piece, text="".join(texts), token_ids=tokens)


class Samples:
    """Makes the samples of requests. ``text_streams``, ``end_ids``, ``grammars``, ``seed`` as in Engine."""

    def __init__(
        self,
        text_streams: TextStreams,
        end_ids: Collection[int],
        grammars: Grammars | None,
        seed: int | None,
    ) -> None:
        self._text_streams, self.grammars = text_streams, grammars
        self._end_ids = tuple(end_ids)
        self._entropy = np.random.SeedSequence(None if seed is None else _unsigned(seed)).entropy

    def make(self, request: Request, sequence: Sequence) -> Sample:
        """The sample of a request that ``sequence`` holds."""
        params = request.params
        # A request with a seed draws the same numbers whatever was asked before it.
        key = [self._entropy, request.request_id] if params.seed is None else [_unsigned(params.seed)]
        ends = () if params.ignore_eos else self._end_ids
        stops = (*ends, *params.stop_token_ids)
        rng = np.random.default_rng([*key, sequence.index])
        prompt = sequence.tokens[: sequence.num_prompt]
        constraint = None if self.grammars is None else self.grammars.start(params, prompt)
        processors = [*make_processors(params, prompt, stops), *([] if constraint is None else [constraint])]
        state = SampleState(params, rng, processors, constraint)
        return Sample(sequence, state, self.text_stream(params, stops))

    def text_stream(self, params: SamplingParams, stops: Collection[int]) -> TextStream:
        """The decoder of one sample, which the tokens ``stops`` end. Raises what refuses its stop strings."""
        return self._text_streams(params.stop, stops, params.skip_special_tokens, params.shows_marks)


def attention_of(wanted: str | None, own: SparseConfig | None) -> tuple[Attention, SparseConfig | None]:
    """How a request attends that asks for ``wanted`` of an engine that attends as ``own`` says: its name,
    empty where that is as all do, and its settings."""
    if wanted == "dense" and own is not None:
        return "dense", None
    if wanted == "sparse" and own is not None and own != own.at_once:
        return "sparse", own.at_once
    return "", own


def _unsigned(seed: int) -> int:
    """Seeds are taken modulo 2^64: NumPy wants no negative ones."""
    return seed & 0xFFFFFFFFFFFFFFFF


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are those of ``perf_counter``, None before the event. ``torn``: just now its
    samples are being changed; should an exception come, they cannot go on."""

    request_id: int
    params: SamplingParams
    sparse: SparseConfig | None
    samples: list[Sample] = field(default_factory=list)
    torn: bool = False
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    blocks: BlockCount = field(init=False)
    passes: PassCount = field(default_factory=PassCount)

    def __post_init__(self) -> None:
        self.blocks = BlockCount(self.sparse)

    @property
    def unfinished(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.sequence.finish_reason is None]

    @property
    def sequences(self) -> list[Sequence]:
        """Those that have not ended."""
        return [sample.sequence for sample in self.unfinished]

    @property
    def finished(self) -> bool:
        return not self.unfinished

    def ran(self, span: Span, accepted: int) -> None:
        """Count the tokens that have run of one of its sequences, so many of its drafts among them."""
        self.blocks.add(span.start, span.stop - span.num_drafts + accepted)

    def passed(self, span: Span, accepted: int, new: int) -> None:
        """Count what came of a pass in which one of its samples was decoded."""
        if new and span.start >= span.sequence.num_prompt:
            self.passes.add(span.num_drafts, accepted, new)

    def draw(self, ops: OpTable, member: Sample, logits: Array) -> Piece:
        """Sample the next token of one of its samples from ``logits`` (vocab,); it takes it, and those that
        its grammar adds."""
        draw = sample(ops, logits, member.state)
        wanted = self.params.logprobs
        logprobs = None if wanted is None else log_probabilities(ops, logits, draw, wanted)
        piece = member.take(draw.token, logprobs)
        if wanted is None:  # else each token needs the logits before it
            piece = member.take_forced(piece)
        self.sampled()
        return piece

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
            new_tokens=sum(sample.sequence.num_sampled for sample in self.samples),
            decode_s=last - then if last and then else 0.0,
            accept_length=self.passes.accept_length,
            draft_tokens=self.passes.drafts,
            accepted_tokens=self.passes.accepted,
            accepted_by_position=tuple(self.passes.positions),
            attention="sparse" if self.blocks.any_sparse else "dense",
            blocks_read_share=self.blocks.share,
            peak_memory=peak_memory(),
        )


@dataclass(slots=True, eq=False)
class Reading:
    """A text that is only read: what its steps compute is shown to ``visit`` (``EngineAPI.read``). ``torn``
    as in Request."""

    request_id: int
    sequence: Sequence
    visit: Visit
    torn: bool = False

    @property
    def sequences(self) -> list[Sequence]:
        return [self.sequence]

    def show(self, start: int, result: StepResult, first_logits: int, first_state: int, count: int) -> None:
        """``count`` rows from position ``start`` on have run; their logits or states are the result's from
        these on."""
        if self.sequence.wanted == "all":
            for at, logits in result.logit_blocks(first_logits, count):
                self.visit(start + at, logits)
        for layers in self.sequence.hidden:
            self.visit(start, result.hidden[layers][first_state : first_state + count])
