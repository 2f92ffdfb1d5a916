"""The engine: requests in, events out, one step at a time. A driver runs it (engine/driver.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from time import perf_counter

from minicpm4.config import SparseConfig
from minicpm4.engine.api import Limits, Load, Shown, Visit, check_request, check_text
from minicpm4.engine.drafting import Drafting
from minicpm4.engine.grammar import Grammars
from minicpm4.engine.judging import Judged, judge
from minicpm4.engine.kept_pages import KeptPages
from minicpm4.engine.outputs import Event, Failed, Piece, Prefilled, Read, Sampled
from minicpm4.engine.pace import Pace
from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Reading, Request, Sample, Samples, TextStreams, attention_of
from minicpm4.engine.runner import StepResult, StepRunner
from minicpm4.engine.scheduler import Scheduler
from minicpm4.engine.sequence import FinishReason, Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.errors import EngineError, Minicpm4Error, RequestError, ToolSchemaError, UnsupportedError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLimits(Limits):
    """Sizes of an engine. ``max_rows``: tokens of one step; pages as in PageAllocator; ``num_layers``: of
    the model, 0 where its states cannot be had; ``stored``: tokens of its stored prefix."""

    num_pages: int
    page_size: int
    max_rows: int
    prefix_cache: bool = True
    num_layers: int = 0
    stored: int = 0


class State(Enum):
    """What an exception would leave behind: nothing, a step to roll back, or half a change."""

    WHOLE = "whole"
    RUNNING = "running"
    CHANGING = "changing"


class Engine:
    """Serves any number of requests with one runner: see EngineAPI.

    ``text_streams(stop, stop_token_ids, skip_special_tokens, shows_marks)`` makes the decoder of one sample;
    ``end_ids`` are the tokens at which the model ends a turn. ``grammars`` compiles what answers are held to;
    None: such requests are refused. Requests without a seed draw theirs from ``seed``. With a ``pace``
    prompts leave running answers their speed. ``kept``: pages that are saved elsewhere, and come from there.
    ``drafting`` guesses tokens, which are checked several at a time; it may be changed between requests.

    The truth is the requests' tokens. Whatever an exception has torn is thrown away by the next call
    (``_mend``): scheduler and pages are made anew and what is unfinished runs again, to the same tokens.
    Only a request whose next token was just being taken cannot go on; it fails by name.
    """

    def __init__(
        self,
        runner: StepRunner,
        ops: OpTable,
        limits: EngineLimits,
        *,
        text_streams: TextStreams,
        end_ids: Collection[int] = (),
        grammars: Grammars | None = None,
        sparse: SparseConfig | None = None,
        seed: int | None = None,
        pace: Pace | None = None,
        kept: KeptPages | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        self.limits = limits
        self.events: deque[Event] = deque()
        self._runner, self._ops, self._sparse = runner, ops, sparse
        self._samples = Samples(text_streams, end_ids, grammars, seed)
        self._requests: dict[int, Request | Reading] = {}
        self._pace, self._kept, self.drafting = pace, kept, drafting
        self._version = runner.version
        self.start_over()

    def start_over(self) -> None:
        """Forget all pages, the prefix cache included: requests under way run again from their tokens."""
        limits = self.limits
        pages = PageAllocator(
            limits.num_pages,
            limits.page_size,
            prefix_cache=limits.prefix_cache,
            salt=b"weights %d" % self._version,
        )
        sizes = {"max_rows": limits.max_rows, "max_sequences": limits.max_sequences}
        scheduler = Scheduler(pages, **sizes, pace=self._pace, plain=limits.stored)
        for request in self._requests.values():
            for sequence in request.sequences:
                sequence.unload()
                sequence.digests.clear()
                scheduler.add(sequence)
        if self._kept is not None:
            self._kept.start_over(pages, self._version)
        if self.drafting is not None:
            self.drafting.start_over()
        self.scheduler, self._state = scheduler, State.WHOLE

    @property
    def has_work(self) -> bool:
        kept = self._kept is not None and self._kept.has_work
        return self.scheduler.has_work or self._state is not State.WHOLE or kept

    @property
    def load(self) -> Load:
        """See EngineAPI."""
        scheduler, pages = self.scheduler, self.scheduler.pages
        return Load(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + (0 if self._kept is None else len(self._kept.coming)),
            pages_held=pages.num_pages - pages.num_available,
            pages=pages.num_pages,
        )

    def check(self, ids: Items[int], params: SamplingParams) -> None:
        """See EngineAPI."""
        check_request(self.limits, ids, params)
        self.scheduler.check(len(ids), self._length_limit(ids, params))
        if params.stop:
            self._samples.text_stream(params, ())
        if self._samples.grammars is not None:
            self._samples.grammars.check(params)
        elif params.calls is not None:
            names = list(params.calls.schemas)
            raise ToolSchemaError("tools: this engine cannot hold calls", "leave it out", tools=names)
        elif params.constraint is not None:
            raise RequestError(f"this engine cannot hold an answer to {params.constraint}", "leave it out")

    def add(self, request_id: int, ids: Items[int], params: SamplingParams) -> None:
        """See EngineAPI."""
        self.check(ids, params)
        self._mend()
        if request_id in self._requests:
            return
        attention, sparse = attention_of(params.attention, self._sparse)
        request = Request(request_id, params, sparse)
        sequence = Sequence(request_id, list(ids), self._length_limit(ids, params), attention=attention)
        sequence.hidden = () if self.drafting is None else self.drafting.drafter.hidden
        request.samples.append(self._samples.make(request, sequence))
        self._queue(request)
        found = self.scheduler.pages.cached(sequence)
        self.events.append(Prefilled(request_id, found, len(ids), found))

    def check_read(self, ids: Items[int], shown: Shown) -> None:
        """See EngineAPI."""
        if shown == "states" and not self.limits.num_layers:
            raise UnsupportedError("this engine shows no states", "load a model")
        check_text(ids, self.limits)
        self.scheduler.check(len(ids), len(ids))

    def read(self, request_id: int, ids: Items[int], shown: Shown, visit: Visit) -> None:
        """See EngineAPI; logits of at most 64 positions at a time. The text is found by later prompts."""
        self.check_read(ids, shown)
        self._mend()
        if request_id in self._requests:
            return
        sequence = Sequence(request_id, list(ids), len(ids), wanted="all" if shown == "logits" else "none")
        if shown == "states":
            sequence.hidden = (self.limits.num_layers,)
        self._queue(Reading(request_id, sequence, visit))

    def _queue(self, request: Request | Reading) -> None:
        self._state = State.CHANGING
        self._requests[request.request_id] = request
        for sequence in request.sequences:
            if sequence.is_read or self._kept is None or not self._kept.takes(sequence, self.scheduler.pages):
                self.scheduler.add(sequence)
        self._state = State.WHOLE

    def step(self) -> None:
        """Run one forward pass, if there is work. An interrupted pass is run again by the next step; other
        weights run what is under way again from its tokens. Raises CheckpointError while weights are half
        replaced."""
        self._mend()
        self._follow_weights()
        if self._kept is None:
            self._run()
            return
        self._state = State.CHANGING
        self._kept.bring(self.scheduler)
        self._state = State.WHOLE
        self._run()
        self._state = State.CHANGING
        self._kept.save(self.scheduler)
        self._state = State.WHOLE

    def _run(self) -> None:
        """One forward pass, if the scheduler has work."""
        if not self.scheduler.has_work:
            return
        self._state = State.CHANGING
        start = perf_counter()
        if self.drafting is not None:
            self.drafting.propose(self.scheduler.running)
        plan = self.scheduler.schedule()
        self._note_start(plan)
        try:
            self._state = State.RUNNING
            result = self._runner.execute(plan)
            logits = result.first_logits(sum(s.num_logits for s in plan.spans if not s.sequence.is_read))
            self._state = State.CHANGING
            judged = self._judge(plan, logits)
            paths = [found.path for found in judged]
            self._runner.settle(plan, paths)
            self.scheduler.commit(plan, paths)
            if self.drafting is not None:  # before any of them ends
                self.drafting.see(plan, paths, result.hidden)
            self._advance(plan, logits, judged)
            self._show(plan, result)
            self._note(plan, paths, perf_counter() - start)
            self._state = State.WHOLE
        except BaseException:
            if self._state is State.RUNNING:
                self.scheduler.rollback(plan)
                self._state = State.WHOLE
            raise

    def _note(self, plan: StepPlan, paths: Items[Items[int]], seconds: float) -> None:
        """What a step took teaches how the next ones are cut."""
        if self._pace is not None:
            self._pace.note(plan.decoding, plan.prompts, seconds)
        if self.drafting is not None:
            self.drafting.note(plan, paths, seconds)

    def abort(self, request_id: int, index: int | None = None) -> None:
        """See EngineAPI."""
        self._mend()
        request = self._requests.get(request_id)
        if request is None:
            return
        self._state, request.torn = State.CHANGING, True
        if self._kept is not None:
            self._kept.let_go(request.sequences, self.scheduler)
        if isinstance(request, Reading):
            self._end(request, Read(request_id, whole=False))
        else:
            self._abort(request, index)
        request.torn, self._state = False, State.WHOLE

    def _abort(self, request: Request, index: int | None) -> None:
        pieces = []
        for one in request.unfinished:
            if index is None or one.sequence.index == index:
                text, number = one.text.finish(), one.sequence.index
                self._finish(one.sequence, "abort")
                pieces.append(Piece(text=text, token_ids=[], index=number, finish_reason="abort"))
        if pieces and request.finished:
            pieces[-1] = replace(pieces[-1], metrics=request.metrics())
            del self._requests[request.request_id]
        self.events.extend(Sampled(request.request_id, piece) for piece in pieces)

    def _end(self, request: Request | Reading, event: Event) -> None:
        """Drop what is left of a request."""
        for sequence in request.sequences:
            self._finish(sequence, "abort")
        self.events.append(event)
        del self._requests[request.request_id]

    def close(self) -> None:
        """See EngineAPI. What is to be kept of pages is written first."""
        if self._kept is not None:
            self._kept.close(self.scheduler.pages if self._state is State.WHOLE else None)
        del self._runner

    def _mend(self) -> None:
        """Make whole what an exception in an earlier call has torn."""
        if self._state is State.WHOLE:
            return
        for request in list(self._requests.values()):
            if request.torn:
                error = EngineError("an exception elsewhere interrupted this request", "ask again")
                self.events.append(Failed(request.request_id, error))
                del self._requests[request.request_id]
        self.start_over()

    def _follow_weights(self) -> None:
        """Forget all pages if they are of weights that are no more."""
        version = self._runner.version
        if version != self._version:
            self._state, self._version = State.CHANGING, version
            self.start_over()

    def _length_limit(self, ids: Items[int], params: SamplingParams) -> int:
        room = self.limits.context - len(ids)
        return len(ids) + min(room, params.max_tokens or room)

    def _note_start(self, plan: StepPlan) -> None:
        now = perf_counter()
        for span in plan.spans:
            request = self._requests[span.sequence.request_id]
            if isinstance(request, Request):
                request.started = request.started or now

    def _judge(self, plan: StepPlan, logits: Array) -> list[Judged]:
        """Draw what follows the spans that have drafts: their texts go on, nothing else changes yet."""
        judged, stop = [], 0
        for span in plan.spans:
            start, stop = stop, stop + span.num_logits
            request = self._requests.get(span.sequence.request_id)
            if span.drafts is None or not isinstance(request, Request):
                judged.append(Judged())
                continue
            request.torn = True  # until what was drawn has been told
            member = request.samples[span.sequence.index]
            judged.append(judge(span, logits[start:stop], partial(self._next_token, request, member)))
        return judged

    def _advance(self, plan: StepPlan, logits: Array, judged: Items[Judged]) -> None:
        stop = 0
        for span, found in zip(plan.spans, judged, strict=True):
            sequence = span.sequence
            if sequence.is_read:
                continue
            start, stop = stop, stop + span.num_logits
            request = self._requests.get(sequence.request_id)
            if not isinstance(request, Request):  # another of its samples has failed just now
                continue
            request.ran(span, len(found.path))
            if not sequence.num_sampled:
                self.events.append(
                    Prefilled(request.request_id, span.stop, sequence.num_prompt, sequence.cached)
                )
            request.torn = True
            if start < stop and span.drafts is None:
                self._next_tokens(request, span, logits[start:stop])
            else:
                self._tell(request, request.samples[sequence.index], span, found)
            request.torn = False

    def _show(self, plan: StepPlan, result: StepResult) -> None:
        """Of texts that are read, show what came of their rows; it lies behind the others' in the result."""
        logits = states = 0
        for span in plan.spans:
            at = logits, states
            logits += span.num_logits
            states += span.count if self.limits.num_layers in span.hidden else 0
            reading = self._requests.get(span.sequence.request_id)
            if not isinstance(reading, Reading):
                continue
            reading.torn = True
            try:
                reading.show(span.start, result, *at, span.count)
            except Minicpm4Error as error:
                self._end(reading, Failed(reading.request_id, error))
                continue
            self.events.append(Prefilled(reading.request_id, span.stop, len(span.sequence.tokens)))
            if not span.sequence.pending:
                self._end(reading, Read(reading.request_id))
            reading.torn = False

    def _next_tokens(self, request: Request, span: Span, logits: Array) -> None:
        """Sample the next token of a sequence; right after the prompt, of every sample."""
        sequence = span.sequence
        members = [request.samples[sequence.index]]
        if not sequence.num_sampled and request.params.n > 1:
            for child in self.scheduler.fork(sequence, request.params.n - 1):
                request.samples.append(self._samples.make(request, child))
            members = request.samples
        for member in members:
            found = judge(span, logits, partial(self._next_token, request, member))
            self._tell(request, member, span, found)
            if found.error is not None:
                return

    def _next_token(self, request: Request, member: Sample, logits: Array) -> Piece:
        return request.draw(self._ops, member, logits)

    def _tell(self, request: Request, member: Sample, span: Span, found: Judged) -> None:
        """What was drawn behind a span becomes events."""
        request.passed(span, len(found.path), sum(len(piece.token_ids) for piece in found.pieces))
        for piece in found.pieces:
            if piece.finish_reason is not None:
                self._finish(member.sequence, piece.finish_reason)
                if request.finished:
                    piece = replace(piece, metrics=request.metrics())
            self.events.append(Sampled(request.request_id, piece))
        if found.error is not None:
            self._end(request, Failed(request.request_id, found.error))
        elif request.finished:
            del self._requests[request.request_id]

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """A sequence ends: nothing of it stays."""
        self.scheduler.finish(sequence, reason)
        if self.drafting is not None:
            self.drafting.drop(sequence)
