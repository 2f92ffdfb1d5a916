"""A run from its recipe: stages one after another, checkpoints, metrics; interrupted at any moment, it goes
on from the last checkpoint.

Batches are a pure function of seed and step, rates of the step, and moments are saved as they are: on one
machine a resumed run takes the very steps that an unbroken one would.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from minicpm4.data.batch import Batch
from minicpm4.errors import CheckpointError, ConfigError, TrainingError
from minicpm4.train import checkpoint
from minicpm4.train.estimate import flops_per_token
from minicpm4.train.guard import Guard
from minicpm4.train.layout import accumulation
from minicpm4.train.metrics import Metrics
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.schedule import Chain, Wsd
from minicpm4.train.session import Done, Session
from minicpm4.train.versions import versions

__all__ = ["Batches", "Outcome", "Runner", "schedule"]

SKIPS = 10  # steps in a row without a finite loss: something is broken, not unlucky


class Batches(Protocol):
    """Where a stage's batches come from: a pure function of the step (of all micro-batches, of this
    process)."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Of one stage: training and held-out batches."""

    training: Batches
    held_out: Sequence[Batch] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call of ``Runner.run`` ended, after ``step`` steps of all; ``finished``: the recipe's last."""

    step: int
    finished: bool
    loss: float | None


Report = Callable[[Mapping[str, Any]], None]  # of each step's figures


class Runner:
    """Takes the steps of ``recipe`` in ``run``, a folder; ``sources``: by the stage's name.

    ``data``: what the data is (hashes), which a checkpoint is held to; ``peak``: operations a second that
    each process could reach, for ``mfu`` (train/peak.py). Raises CheckpointError, ConfigError.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        session: Session,
        sources: Mapping[str, Source],
        *,
        tokenizer: Path | None = None,
        data: Mapping[str, Any] | None = None,
        report: Report | None = None,
        peak: float | None = None,
    ) -> None:
        self.recipe, self.run_folder, self.session, self.sources = recipe, run, session, sources
        self._tokenizer, self._data, self._report = tokenizer, dict(data or {}), report or (lambda line: None)
        self._peak = peak
        self._chain = schedule(recipe)
        self._guard = Guard()
        self._stop = False
        self.step = self._resume()

    def run(self, until: int | None = None) -> Outcome:
        """Take steps up to ``until`` (default: all). SIGTERM and SIGINT save, and end it early."""
        last = self.recipe.steps if until is None else min(until, self.recipe.steps)
        loss = None
        main = self.session.world.rank == 0
        entered, saved = "", True
        with (
            _interrupts(self._interrupt),
            Metrics(self.run_folder, self.step, tensorboard=main) if main else _nothing() as log,
        ):
            while self.step < last and not self._stopping():
                stage, within = self._position(self.step)
                if stage.name != entered:
                    self.session.enter(stage, fresh=within == 0)
                    entered = stage.name
                line = self._one(stage, within)
                loss = line["loss"]
                if log is not None:
                    log.add(line)
                self._report(line)
                ends = within + 1 == stage.steps
                if ends:
                    self.session.leave()
                saved = ends or self.step % self.recipe.checkpoints.every == 0
                if saved:
                    self._save(stage)
                    if log is not None:
                        log.draw(self.recipe.name)
            if not saved:  # stopped, or at ``until``
                self._save(self._position(self.step - 1)[0])
            if log is not None:
                log.draw(self.recipe.name)
        return Outcome(step=self.step, finished=self.step >= self.recipe.steps, loss=loss)

    def _one(self, stage: Stage, within: int) -> dict[str, Any]:
        began = time.perf_counter()
        source = self.sources[stage.name]
        parts = accumulation(stage, self.session.world.size)
        batches = [source.training.batch(within * parts + i) for i in range(parts)]
        done = self.session.gradients(batches)
        verdict = self._guard.judge(self.step + 1, done.loss, done.gradient_norm)
        rate = self._chain.at(self.step)
        if not verdict.skip:
            self.session.step(rate)
        elif self._guard.bad >= SKIPS:
            raise TrainingError(
                f"{verdict.text}, as were the {SKIPS - 1} before it",
                "lower the rate, or look at the batches named in metrics.jsonl; the last checkpoint is whole",
            )
        self.step += 1
        line = self._line(stage, done, rate, time.perf_counter() - began)
        if verdict.text:
            line["warning"] = (
                f"{verdict.text} (stage {stage.name}, "
                f"batches {within * parts} to {within * parts + parts - 1})"
            )
        if (
            self.recipe.validate
            and source.held_out
            and (self.step % self.recipe.validate == 0 or within + 1 == stage.steps)
        ):
            line["validation"] = self.session.evaluate(source.held_out)
        return line

    def _line(self, stage: Stage, done: Done, rate: float, seconds: float) -> dict[str, Any]:
        line: dict[str, Any] = {
            "step": self.step,
            "stage": stage.name,
            "loss": done.loss if done.loss == done.loss else None,  # NaN is no JSON
            "rate": rate,
            "gradient_norm": done.gradient_norm if done.gradient_norm == done.gradient_norm else None,
            "tokens": done.tokens,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(done.tokens / seconds, 1),
            "flops_per_s": flops_per_token(self.session.model.config, stage).model * done.tokens / seconds,
        }
        if self._peak:
            line["mfu"] = round(line["flops_per_s"] / (self._peak * self.session.world.size), 4)
        if done.mtp_loss is not None:
            line["mtp_loss"] = done.mtp_loss
        return line

    def _position(self, step: int) -> tuple[Stage, int]:
        """The stage that step ``step`` (from 0) is in, and which of its steps it is."""
        for stage in self.recipe.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.recipe.stages[-1], self.recipe.stages[-1].steps - 1

    def _save(self, stage: Stage) -> None:
        state = {
            "stage": stage.name,
            "recipe": recipe_table(self.recipe),
            "data": self._data,
            "made_by": versions(),
            "guard": {"recent": list(self._guard.recent), "bad": self._guard.bad},
        }
        world = self.session.world
        write = partial(self.session.save, tokenizer=self._tokenizer)
        checkpoint.save(self.run_folder, self.step, state, write, world)
        if world.rank == 0:
            ends = set(stage_ends(self.recipe))
            checkpoint.keep(self.run_folder, self.recipe.checkpoints.last, lambda one: one.step in ends)
        world.wait()

    def _resume(self) -> int:
        found = checkpoint.latest(self.run_folder)
        if found is None:
            return 0
        state = checkpoint.read_state(found)
        wanted = recipe_table(self.recipe)
        if state.get("recipe") != wanted:
            raise ConfigError(
                f"{self.run_folder} holds a run of another recipe "
                f"({_difference(state.get('recipe'), wanted)})",
                "give another output folder, or the recipe that it was started with",
            )
        if state.get("data") != self._data:
            raise CheckpointError(
                f"{self.run_folder} was trained on other data ({_difference(state.get('data'), self._data)})",
                "give another output folder, or the data that it was started with",
            )
        self.session.load(found.folder, self._position(found.step - 1)[0])
        guard = state.get("guard", {})
        self._guard.recent.extend(float(x) for x in guard.get("recent", ()))
        self._guard.bad = int(guard.get("bad", 0))
        return found.step

    def _interrupt(self) -> None:
        self._stop = True

    def _stopping(self) -> bool:
        # All processes must stop at the same step: one that was told is enough.
        return bool(self.session.world.sum([float(self._stop)], self.session.model.device)[0])


def schedule(recipe: Recipe) -> Chain:
    """The learning rate of every step."""
    return Chain(
        [
            Wsd(
                rate=stage.rate,
                steps=stage.steps,
                warmup=stage.warmup,
                decay=stage.decay.kind,
                decay_steps=stage.decay.steps,
                final=stage.decay.final,
                start=None if stage.warmup_from < 0 else stage.warmup_from * stage.rate,
            )
            for stage in recipe.stages
        ]
    )


def stage_ends(recipe: Recipe) -> Iterator[int]:
    """Numbers of the steps after which a stage is done."""
    total = 0
    for stage in recipe.stages:
        total += stage.steps
        yield total


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a checkpoint is held to: all but where and how often it saves, as JSON has it."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    for name in ("output", "checkpoints", "name", "validate", "checkpoint_activations"):
        del table[name]
    return table


def fingerprint(table: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]


def _difference(one: Any, other: Any, where: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                return _difference(one.get(key), other.get(key), f"{where}.{key}" if where else key)
    return f"{where}: {str(one)[:60]} there, {str(other)[:60]} here"


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextmanager
def _interrupts(react: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and the first Ctrl-C call ``react``; a second Ctrl-C interrupts at once."""

    def handle(number: int, frame: Any) -> None:
        react()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: whoever runs us there has its own ways
            break
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
