"""Gathers the events of a batch into whole outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import (
    Event,
    Failed,
    Piece,
    Prefilled,
    RequestOutput,
    SampleOutput,
    TokenLogprobs,
)
from minicpm4.engine.params import SamplingParams


@dataclass(slots=True)
class _Pending:
    ids: list[int]
    params: SamplingParams
    read: int = 0
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    metrics: Metrics | None = None


class Collector:
    """Outputs of several requests; ``progress(done, total)`` counts their prompt tokens together."""

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        self._progress = progress
        self._requests: dict[int, _Pending] = {}

    def expect(self, request_id: int, ids: list[int], params: SamplingParams) -> None:
        """A request was added."""
        self._requests[request_id] = _Pending(ids, params)

    def unfinished(self) -> list[int]:
        """Requests with more to come."""
        return [number for number, pending in self._requests.items() if pending.metrics is None]

    @property
    def complete(self) -> bool:
        return not self.unfinished()

    def take(self, event: Event) -> None:
        """Note an event. Raises the error of a failed request."""
        if isinstance(event, Failed):
            raise event.error
        pending = self._requests[event.request_id]
        if isinstance(event, Prefilled):
            pending.read = max(pending.read, event.done)
            if self._progress is not None:
                every = self._requests.values()
                self._progress(sum(p.read for p in every), sum(len(p.ids) for p in every))
            return
        pending.pieces.setdefault(event.piece.index, []).append(event.piece)
        pending.metrics = event.piece.metrics or pending.metrics

    def output(self, request_id: int) -> RequestOutput:
        """The whole output of a finished request."""
        pending = self._requests[request_id]
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
        logprobs=None if params.logprobs is None else logprobs,
    )
