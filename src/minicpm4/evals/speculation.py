"""What drafting gains: answers to prompts of several kinds, with each drafter and without, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minicpm4.engine.drafting import Drafting
from minicpm4.engine.llm import LLM
from minicpm4.engine.outputs import RequestOutput
from minicpm4.engine.params import SamplingParams
from minicpm4.evals.draft_prompts import PROMPTS, repeating
from minicpm4.progress import Progress

PLAIN = "off"
Drafters = Mapping[str, Drafting | None]
"""By name; PLAIN has none."""


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts of a kind (token ids), answered at a temperature."""

    kind: str
    temperature: float
    prompts: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Measured:
    """What a drafter did for a case. ``rates``: tokens a second of decoding, of each round; ``differing``:
    tokens that are others than without drafts, over all rounds; ``positions``: of its passes, how many had
    their first, second, … draft accepted."""

    case: Case
    drafter: str
    rates: list[float] = field(default_factory=list)
    speed_ups: list[float] = field(default_factory=list)
    tokens: int = 0
    differing: int = 0
    passes: float = 0.0
    seconds: float = 0.0
    drafts: int = 0
    accepted: int = 0
    positions: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, the median over rounds."""
        return statistics.median(self.rates)

    @property
    def right(self) -> float | None:
        """The part of the drafts that became text."""
        return self.accepted / self.drafts if self.drafts else None

    @property
    def accept_length(self) -> float:
        """Tokens written in decoding a pass of the target."""
        return self.tokens / self.passes if self.passes else 1.0

    @property
    def speed_up(self) -> float:
        """The median over rounds, each beside its own round without drafts."""
        return statistics.median(self.speed_ups) if self.speed_ups else 1.0

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.case.kind,
            "temperature": self.case.temperature,
            "drafter": self.drafter,
            "tokens_per_second": [round(rate, 2) for rate in self.rates],
            "speed_up": round(self.speed_up, 3),
            "speed_ups": [round(one, 3) for one in self.speed_ups],
            "accept_length": round(self.accept_length, 3),
            "seconds_per_pass": self.seconds / self.passes if self.passes else None,
            "drafts": self.drafts,
            "accepted": self.accepted,
            "accepted_by_position": [round(count / self.passes, 3) for count in self.positions],
            "tokens": self.tokens,
            "differing_tokens": self.differing,
        }


def cases(llm: LLM, kinds: Sequence[str], temperatures: Sequence[float], long: str = "") -> list[Case]:
    """Cases of the kinds asked for: those of PROMPTS, "repeating" and, of a ``long`` text, "long"."""
    prompts = {kind: [_chat(llm, text) for text in texts] for kind, texts in PROMPTS.items()}
    prompts["repeating"] = [tuple(repeating(llm.tokenizer))]
    if long:
        prompts["long"] = [_chat(llm, f"{long}\n\nQuote the first three sentences of this text.")]
    return [Case(kind, t, tuple(prompts[kind])) for t in temperatures for kind in kinds if kind in prompts]


def measure(
    llm: LLM,
    drafters: Drafters,
    every: Sequence[Case],
    *,
    tokens: int,
    rounds: int,
    goes_on: Callable[[int], bool] = lambda _: True,
    progress: Progress | None = None,
) -> list[Measured]:
    """Answer all cases with every drafter in turn, ``tokens`` tokens each, in ``rounds`` rounds, or fewer
    where ``goes_on(rounds done)`` says so."""
    found = {(i, name): Measured(case, name) for i, case in enumerate(every) for name in drafters}
    done = 0
    while done < rounds and goes_on(done):
        for i, case in enumerate(every):
            plain: list[RequestOutput] = []
            # Who is first in a round is last in the next: what a noisy minute costs meets all alike.
            names = [name for name in drafters if name != PLAIN]
            for name in [PLAIN, *(names if done % 2 else reversed(names))]:
                outputs = answers(llm, drafters[name], case, tokens)
                plain = plain or outputs
                _add(found[i, name], outputs, plain, found[i, PLAIN])
            if progress is not None:
                progress(done * len(every) + i + 1, rounds * len(every))
        done += 1
    return list(found.values())


def answers(llm: LLM, drafting: Drafting | None, case: Case, tokens: int) -> list[RequestOutput]:
    """The answers to a case, one prompt after another; the prompt was read before."""

    def use(engine: Any) -> None:
        engine.drafting = drafting

    llm.driver.call(use)
    params = SamplingParams(max_tokens=tokens, temperature=case.temperature, seed=1, ignore_eos=True)
    for ids in case.prompts:
        llm.generate(list(ids), params.changed(max_tokens=1))
    return [llm.generate(list(ids), params) for ids in case.prompts]


def _add(
    one: Measured, outputs: Sequence[RequestOutput], plain: Sequence[RequestOutput], base: Measured
) -> None:
    seconds, new = 0.0, 0
    for output, other in zip(outputs, plain, strict=True):
        metrics = output.metrics
        seconds += metrics.decode_s
        new += metrics.new_tokens - 1
        one.passes += (metrics.new_tokens - 1) / (metrics.accept_length or 1.0)
        one.drafts += metrics.draft_tokens
        one.accepted += metrics.accepted_tokens
        one.differing += sum(a != b for a, b in zip(output.token_ids, other.token_ids, strict=True))
        positions = metrics.accepted_by_position
        one.positions += [0] * (len(positions) - len(one.positions))
        for i, count in enumerate(positions):
            one.positions[i] += count
    one.tokens += new
    one.seconds += seconds
    one.rates.append(new / seconds)
    one.speed_ups.append(one.rates[-1] / base.rates[-1])


def _chat(llm: LLM, text: str) -> tuple[int, ...]:
    return tuple(llm.chat_ids([{"role": "user", "content": text}]))
