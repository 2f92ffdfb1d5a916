"""A run from its recipe: stages one after another, checkpoints, metrics; interrupted at any moment, it goes
on from the last checkpoint.

Batches are a pure function of seed and step, rates of the step, and moments are saved as they are: on one
machine a resumed run takes the very steps that an unbroken one would.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minicpm4.errors import TrainingError
from minicpm4.files import finite
from minicpm4.train import checkpoint
from minicpm4.train.check import Given, Start, check
from minicpm4.train.estimate import flops_per_token
from minicpm4.train.going_on import going_on, guard_of, recipe_table, way_of
from minicpm4.train.guard import Guard
from minicpm4.train.lengthening import decay_starts, put_aside
from minicpm4.train.metrics import MetricsLog
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.saved import saved as all_saved
from minicpm4.train.schedule import rate_at
from minicpm4.train.session import Done, TrainingSession
from minicpm4.train.sources import Source
from minicpm4.train.stages import passes
from minicpm4.train.versions import versions

__all__ = ["Outcome", "TrainingRun", "interrupts"]

STOPPING = (signal.SIGTERM, signal.SIGINT)
SKIPS = 10  # steps in a row without a finite loss: something is broken, not unlucky


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How ``TrainingRun.run`` ended, after ``step`` steps of all; ``finished``: the recipe's last;
    ``stopped_by``: the signal that ended it before, 0: none."""

    step: int
    finished: bool
    loss: float | None
    stopped_by: int = 0


Report = Callable[[Mapping[str, Any]], None]  # of each step's figures


class TrainingRun:
    """Takes the steps of ``recipe`` in ``run``, a folder; ``sources``: by the stage's name.

    ``data``: what the data is (hashes), which a checkpoint is held to; ``peak``: operations a second that
    each process could reach, for ``mfu`` (train/peak.py). Raises CheckpointError, ConfigError.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        session: TrainingSession,
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
        self._guard = Guard()
        self._lengthened: list[Any] = []  # how stages were lengthened: state.json keeps it
        self._told_to_stop = self._stopped_by = 0  # by a signal: this process, and any of all
        start = Start(config=session.base)
        check(recipe, Given(start=start, run=run, processes=session.world.size))
        self.step = self._resume()

    def run(self, until: int | None = None) -> Outcome:
        """Take steps up to ``until`` (default: all). SIGTERM and SIGINT save, and end it early."""
        last = self.recipe.steps if until is None else min(until, self.recipe.steps)
        loss = None
        main = self.session.world.rank == 0
        entered, saved = "", True
        with (
            interrupts(self._interrupt),
            MetricsLog(self.run_folder, self.step, tensorboard=main) if main else _nothing() as log,
        ):
            while self.step < last and not self._stopping():
                number, within = self.recipe.at(self.step)
                stage = self.recipe.stages[number]
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
                # From here the stage can be lengthened.
                saved = saved or (0 < stage.decay.steps == stage.steps - within - 1)
                if saved:
                    self._save(stage, log)
                    if log is not None:
                        log.draw(self.recipe.name)
            if not saved:  # stopped, or at ``until``
                self._save(self._stage_of(self.step - 1), log)
            if log is not None:
                log.draw(self.recipe.name)
        finished = self.step >= self.recipe.steps
        return Outcome(step=self.step, finished=finished, loss=loss, stopped_by=self._stopped_by)

    def _one(self, stage: Stage, within: int) -> dict[str, Any]:
        began = time.perf_counter()
        source = self.sources[stage.name]
        parts = passes(stage, self.session.world.size).count
        batches = [source.training.batch(within * parts + i) for i in range(parts)]
        done = self.session.gradients(batches)
        verdict = self._guard.judge(self.step + 1, done.loss, done.gradient_norm)
        rate = rate_at(self.recipe, self.step)
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
        found: dict[str, Any] = finite(line)
        return found

    def _line(self, stage: Stage, done: Done, rate: float, seconds: float) -> dict[str, Any]:
        line: dict[str, Any] = {
            "step": self.step,
            "stage": stage.name,
            "loss": done.loss,
            "rate": rate,
            "gradient_norm": done.gradient_norm,
            "tokens": done.tokens,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(done.tokens / seconds, 1),
            "flops_per_s": flops_per_token(self.session.model.config, stage).model * done.tokens / seconds,
        }
        if self._peak:
            line["mfu"] = round(line["flops_per_s"] / (self._peak * self.session.world.size), 4)
        line |= {f"{name}_loss": loss for name, loss in done.head_losses.items()}
        return line

    def _stage_of(self, step: int) -> Stage:
        return self.recipe.stages[self.recipe.at(step)[0]]

    def _save(self, stage: Stage, log: MetricsLog | None) -> None:
        if log is not None:
            log.sync()
        state = {
            "stage": stage.name,
            "recipe": recipe_table(self.recipe),
            "data": self._data,
            "made_by": versions(),
            "guard": self._guard.table(),
            **({"lengthened": self._lengthened} if self._lengthened else {}),
        }
        world = self.session.world
        write = partial(self.session.save, tokenizer=self._tokenizer)
        checkpoint.save(self.run_folder, self.step, state, write, world)
        if world.rank == 0:
            steps = [one.step for one in all_saved(self.run_folder)]
            stay = {*self.recipe.ends, *decay_starts(self.recipe, steps)}
            stay |= {one["after"] for one in self._lengthened}
            checkpoint.keep(self.run_folder, self.recipe.checkpoints.last, lambda one: one.step in stay)
        world.wait()

    def _resume(self) -> int:
        found = going_on(self.recipe, self.run_folder, self._data)
        if found is None:
            return 0
        state = found.state()
        self._lengthened = list(state.get("lengthened", []))
        way = way_of(self.recipe, self.run_folder)
        assert way is not None
        if way.record is not None:
            self._lengthened.append(dict(way.record))
        self.session.world.wait()  # all have looked
        if self.session.world.rank == 0:
            put_aside(way, self.run_folder)
        self.session.world.wait()
        stage = self._stage_of(found.step - 1)
        self.session.load(found.folder, stage)
        # A run that has ended takes no step more, yet its model is exported as the stage rounds it.
        self.session.enter(stage, fresh=False)
        self._guard = guard_of(found, state)
        return found.step

    def _interrupt(self, number: int) -> None:
        self._told_to_stop = number

    def _stopping(self) -> bool:
        # All processes must stop at the same step: one that was told is enough.
        told = [float(self._told_to_stop == number) for number in STOPPING]
        told = self.session.world.sum(told, self.session.model.device)
        self._stopped_by = next((number for number, count in zip(STOPPING, told, strict=True) if count), 0)
        return self._stopped_by > 0


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextmanager
def interrupts(react: Callable[[int], None]) -> Iterator[None]:
    """Have SIGTERM and the first Ctrl-C call ``react`` with their number; a second Ctrl-C interrupts at
    once."""

    def handle(number: int, frame: Any) -> None:
        react(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {}
    for number in STOPPING:
        try:
            before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: whoever runs us there has its own ways
            break
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
