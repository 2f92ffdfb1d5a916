"""The engine: requests in, events out, one step at a time. A server or LLM drives it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from minicpm4.config import SparseConfig
from minicpm4.engine.outputs import Event, Failed, Piece, Prefilled, Sampled
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Request, Sample, TextStream
from minicpm4.engine.runner import StepRunner, Visit
from minicpm4.engine.sampler import SampleState, log_probabilities, sample
from minicpm4.engine.scheduler import Rows, Scheduler, StepPlan
from minicpm4.engine.sequence import Sequence
from minicpm4.errors import Minicpm4Error, RequestError
from minicpm4.kernels.contract import Array, OpTable

TextStreams = Callable[[Items[str], Collection[int]], TextStream]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLimits:
    """Sizes of an engine. ``context``: tokens of one sequence; ``max_rows``: tokens of one step;
    ``max_sequences``: sequences at a time; pages as in PageAllocator."""

    vocab_size: int
    context: int
    num_pages: int
    page_size: int
    max_rows: int
    max_sequences: int
    prefix_cache: bool = True


class Engine:
    """Serves any number of requests with one runner. Not for use from several threads at once.

    ``text_streams(stop, stop_token_ids)`` makes the decoder of one sample; ``end_ids`` are the
    tokens at which the model ends a turn. Requests without a seed draw theirs from ``seed``.
    """

    def __init__(
        self,
        runner: StepRunner,
        ops: OpTable,
        limits: EngineLimits,
        *,
        text_streams: TextStreams,
        end_ids: Collection[int] = (),
        sparse: SparseConfig | None = None,
        seed: int | None = None,
    ) -> None:
        self.limits = limits
        self._runner, self._ops, self._sparse = runner, ops, sparse
        self._text_streams, self._end_ids = text_streams, tuple(end_ids)
        self._entropy = np.random.SeedSequence(None if seed is None else _unsigned(seed)).entropy
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Drop every request and the whole prefix cache."""
        limits = self.limits
        pages = PageAllocator(limits.num_pages, limits.page_size, prefix_cache=limits.prefix_cache)
        self.scheduler = Scheduler(pages, max_rows=limits.max_rows, max_sequences=limits.max_sequences)
        self._requests: dict[int, Request] = {}
        self._queued: list[Event] = []

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._queued)

    def is_active(self, request_id: int) -> bool:
        """Whether a request still has events to come."""
        return request_id in self._requests or any(e.request_id == request_id for e in self._queued)

    def check(self, ids: Items[int], params: SamplingParams) -> None:
        """Raise RequestError unless a prompt and its parameters can be served."""
        limits = self.limits
        check_ids(ids, limits.vocab_size)
        if len(ids) >= limits.context:
            raise RequestError(
                f"the prompt has {len(ids):,} tokens, prompt and answer together may have "
                f"{limits.context:,} (context)",
                "shorten it, or load the model with a larger context",
            )
        named = {"stop_token_ids": params.stop_token_ids, "logit_bias": params.logit_bias}
        for name, tokens in named.items():
            beyond = [token for token in tokens if token >= limits.vocab_size]
            if beyond:
                raise RequestError(
                    f"{name} names token {beyond[0]}, the vocabulary has {limits.vocab_size}",
                    f"token ids are 0 to {limits.vocab_size - 1}",
                )

    def add_request(self, ids: Items[int], params: SamplingParams) -> int:
        """Queue a prompt; return the id that its events carry. Raises RequestError."""
        self.check(ids, params)
        request_id, self._next_id = self._next_id, self._next_id + 1
        room = self.limits.context - len(ids)
        limit = len(ids) + min(room, params.max_tokens or room)
        request = Request(request_id, params, self._sparse)
        sequence = Sequence(request_id, list(ids), limit)
        self.scheduler.add(sequence)
        request.samples.append(self._sample(request, sequence))
        self._requests[request_id] = request
        return request_id

    def step(self) -> list[Event]:
        """Run one forward pass and return what came of it; nothing when there is no work.

        After any exception the engine is consistent: an interrupted pass is run again by the next
        step, an error in the bookkeeping drops every request.
        """
        events, self._queued = self._queued, []
        if not self.scheduler.has_work:
            return events
        plan: StepPlan | None = None
        try:
            plan = self.scheduler.schedule()
            self._note_start(plan)
            logits = self._runner.execute(plan)
            executed, plan = plan, None
            return events + self._advance(executed, logits)
        except BaseException:
            if plan is None:
                self.reset()
            else:
                self.scheduler.rollback(plan)
                self._queued = events + self._queued
            raise

    def abort(self, request_id: int) -> None:
        """End a request now; its last events come with the next step."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        aborted = self.scheduler.abort(request_id)
        for number, sequence in enumerate(aborted, 1):
            last = number == len(aborted)
            text = request.samples[sequence.index].text.finish()
            piece = Piece(text=text, token_ids=[], index=sequence.index, finish_reason="abort")
            self._queued.append(
                Sampled(request_id, replace(piece, metrics=request.metrics()) if last else piece)
            )

    def score(
        self, ids: Items[int], visit: Visit, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Run ``ids`` through the model and show every row's logits, in slices: see StepRunner.score.

        ``progress(tokens done, tokens)``. Raises RequestError.
        """
        check_ids(ids, self.limits.vocab_size)
        n, pages = len(ids), self.scheduler.pages
        if n > self.limits.context:
            raise RequestError(
                f"the text has {n:,} tokens, the context is {self.limits.context:,}",
                "split it, or load the model with a larger context",
            )
        sequence = Sequence(-1, list(ids), limit=n)
        try:
            if pages.ensure(sequence, n) is None:
                raise RequestError(
                    f"the text needs {pages.pages_for(n)} pages, {pages.num_available} are free",
                    "wait for running requests to end, or load the model with a larger context",
                )
            for start in range(0, n, self.limits.max_rows):
                count = min(self.limits.max_rows, n - start)
                self._runner.score(Rows(sequence, start, count), visit)
                sequence.computed = start + count
                pages.seal(sequence)
                if progress is not None:
                    progress(sequence.computed, n)
        finally:
            pages.release(sequence)

    def _sample(self, request: Request, sequence: Sequence) -> Sample:
        params = request.params
        # A request with a seed draws the same numbers whatever was asked before it.
        key = [self._entropy, request.request_id] if params.seed is None else [_unsigned(params.seed)]
        ends = () if params.ignore_eos else self._end_ids
        stops = (*ends, *params.stop_token_ids)
        rng = np.random.default_rng([*key, sequence.index])
        prompt = sequence.tokens[: sequence.num_prompt]
        state = SampleState(params, prompt, rng, stops)
        return Sample(sequence, state, self._text_streams(params.stop, stops))

    def _note_start(self, plan: StepPlan) -> None:
        now = perf_counter()
        for rows in plan.rows:
            request = self._requests[rows.sequence.request_id]
            request.started = request.started or now

    def _advance(self, plan: StepPlan, logits: Array) -> list[Event]:
        self.scheduler.commit(plan)
        events: list[Event] = []
        sampled = iter(logits)
        for rows in plan.rows:
            sequence, end = rows.sequence, rows.start + rows.count
            row = next(sampled) if rows.sample else None
            request = self._requests.get(sequence.request_id)
            if request is None:  # another of its samples has failed just now
                continue
            request.ran(rows.start, end)
            if not sequence.output:
                events.append(Prefilled(request.request_id, end, sequence.num_prompt))
            if row is not None:
                events += self._next_tokens(request, sequence, row)
        return events

    def _next_tokens(self, request: Request, sequence: Sequence, logits: Array) -> list[Event]:
        """Sample the next token of a sequence; right after the prompt, of every sample."""
        members = [request.samples[sequence.index]]
        if not sequence.output and request.params.n > 1:
            for child in self.scheduler.fork(sequence, request.params.n - 1):
                request.samples.append(self._sample(request, child))
            members = request.samples
        events: list[Event] = []
        for member in members:
            try:
                piece = self._next_token(request, member, logits)
            except Minicpm4Error as error:
                self.scheduler.abort(request.request_id)
                del self._requests[request.request_id]
                return [*events, Failed(request.request_id, error)]
            events.append(Sampled(request.request_id, piece))
        return events

    def _next_token(self, request: Request, member: Sample, logits: Array) -> Piece:
        token = sample(self._ops, logits, member.state)
        wanted = request.params.logprobs
        logprobs = None if wanted is None else log_probabilities(self._ops, logits, token, wanted)
        piece = member.take(token, logprobs)
        request.sampled()
        if piece.finish_reason is not None:
            self.scheduler.finish(member.sequence, piece.finish_reason)
            if request.finished:
                del self._requests[request.request_id]
                return replace(piece, metrics=request.metrics())
        return piece


def check_ids(ids: Items[int], vocab_size: int) -> None:
    """Raise RequestError unless ``ids`` is a non-empty list of ids below ``vocab_size``."""
    if not ids:
        raise RequestError("the prompt is empty", "give at least one token")
    for position, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise RequestError(
                f"token {token!r} at position {position} is not in the vocabulary of {vocab_size}",
                f"token ids are integers from 0 to {vocab_size - 1}",
            )


def _unsigned(seed: int) -> int:
    """Seeds are taken modulo 2^64: NumPy wants no negative ones."""
    return seed & 0xFFFFFFFFFFFFFFFF
