"""From events to what callers get: pieces, and the whole outputs of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import (
    Event,
    Failed,
    Piece,
    Prefilled,
    Read,
    RequestOutput,
    SampleOutput,
    TokenLogprobs,
)
from minicpm4.engine.params import SamplingParams
from minicpm4.progress import Progress


@dataclass(slots=True)
class _Pending:
    ids: list[int]
    params: SamplingParams
    read: int = 0
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    metrics: Metrics | None = None


class Collector:
    """Outputs of several requests; ``progress(done, total)`` counts their prompt tokens together."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._requests: dict[int, _Pending] = {}

    def expect(self, request_id: int, ids: list[int], params: SamplingParams) -> None:
        """A request was added."""
        self._requests[request_id] = _Pending(ids, params)

    @property
    def complete(self) -> bool:
        """Whether no request has more to come."""
        return all(pending.metrics is not None for pending in self._requests.values())

    def take(self, event: Event) -> None:
        """Note an event. Raises the error of a failed request."""
        pending = self._requests[event.request_id]

        def count(done: int, _: int) -> None:
            pending.read = max(pending.read, done)
            if self._progress is not None:
                every = self._requests.values()
                self._progress(sum(p.read for p in every), sum(len(p.ids) for p in every))

        piece = piece_of(event, count)
        if piece is not None:
            pending.pieces.setdefault(piece.index, []).append(piece)
            pending.metrics = piece.metrics or pending.metrics

    def outputs(self) -> list[RequestOutput]:
        """The whole outputs of all requests, in the order in which they were expected."""
        return [_output(pending) for pending in self._requests.values()]


def piece_of(event: Event, progress: Progress | None) -> Piece | None:
    """The piece that an event brings, if any; ``progress`` is told of the others. Raises the error of a
    failed request."""
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, Prefilled):
        if progress is not None:
            progress(event.done, event.total)
        return None
    assert not isinstance(event, Read), "an answer was asked for"
    return event.piece


def _output(pending: _Pending) -> RequestOutput:
    assert pending.metrics is not None
    samples = [_join(index, pending.pieces[index], pending.params) for index in sorted(pending.pieces)]
    return RequestOutput(prompt_token_ids=pending.ids, outputs=samples, metrics=pending.metrics)


def _join(index: int, pieces: list[Piece], params: SamplingParams) -> SampleOutput:
    reason = pieces[-1].finish_reason
    assert reason is not None
    logprobs: list[TokenLogprobs] = [entry for piece in pieces for entry in piece.logprobs or ()]
    return SampleOutput(
        index=index,
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        finish_reason=reason,
        stop=pieces[-1].stop,
        logprobs=None if params.logprobs is None else logprobs,
    )
