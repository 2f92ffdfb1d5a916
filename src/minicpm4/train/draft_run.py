"""The run that trains a head that drafts: steps, looks at held-out answers, checkpoints; interrupted at any
moment, it goes on from the last one.

Which texts a step reads and its rate are functions of the seed and the step, and moments are saved as they
are: on one machine a resumed run takes the very steps that an unbroken one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from minicpm4.config.strict import listed, require
from minicpm4.errors import CheckpointError, ConfigError, TrainingError
from minicpm4.files import finite, json_text, parse_json, write_file, write_json
from minicpm4.formats.hf_write import check_finite
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.plot import chart
from minicpm4.train import checkpoint
from minicpm4.train.draft_head import DraftHead, Shown, accept_length
from minicpm4.train.going_on import differences, guard_of
from minicpm4.train.guard import Guard
from minicpm4.train.loop import SKIPS, interrupts
from minicpm4.train.metrics import LENGTHS, MetricsLog, read_metrics, thinned
from minicpm4.train.optim import Optimiser, clip_gradients
from minicpm4.train.saved import MOMENTS, latest
from minicpm4.train.schedule import rate_within
from minicpm4.train.settings import Decay, OptimConfig
from minicpm4.train.tensor_files import Stored, fill, torch_source, write_tensors

__all__ = ["HEAD", "Answer", "HeadRun", "HeadSettings", "write_head"]

HEAD, CURVE = "head", "acceptance.svg"
KEPT = 2  # checkpoints


class Answer(Protocol):
    """A text whose answer the model wrote, as in ``Shown``; its states are read when they are needed."""

    @property
    def ids(self) -> NDArray[np.int32]: ...
    @property
    def start(self) -> int: ...
    @property
    def read(self) -> Callable[[], Mapping[int, Any]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSettings:
    """How a head is trained: ``steps`` of ``batch`` answers each, at ``rate`` after ``warmup`` steps, which
    falls in the last ``decay``; ``turns`` of EAGLE-3 on its own features; ``rounding``: the format that its
    matrices are rounded to; held-out answers are looked at each ``validate`` steps, a checkpoint is written
    each ``every``. Raises ConfigError."""

    form: str
    steps: int
    batch: int
    rate: float
    warmup: int
    decay: Decay
    turns: int
    seed: int
    validate: int
    every: int
    rounding: str = ""
    warmup_from: float = 0.0
    clip: float = 0.5

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "turns", "validate", "every"):
            require(0 < getattr(self, name) < 1 << 24, f"{name} = {getattr(self, name)} is out of range")
        require(0 < self.rate <= 1, f"rate = {self.rate} is not above 0 and at most 1")
        require(
            self.warmup >= 0 and self.warmup + self.decay.steps <= self.steps,
            f"a warm-up of {self.warmup} steps and a decay of {self.decay.steps} exceed {self.steps} steps",
        )


class HeadRun:
    """Trains ``head`` on ``answers`` in the folder ``run``; ``held``: answers that it is judged by.

    ``about``: what answers and model are, which a checkpoint is held to. Raises CheckpointError, ConfigError.
    """

    def __init__(
        self,
        settings: HeadSettings,
        run: Path,
        head: DraftHead,
        answers: Sequence[Answer],
        held: Sequence[Answer],
        *,
        about: Mapping[str, Any],
        report: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        require(
            len(answers) >= settings.batch, f"{len(answers)} answers are less than a step's {settings.batch}"
        )
        self.settings, self.run_folder, self.head = settings, run, head
        self._answers, self._held, self._report = answers, held, report
        free = {"validate": 0, "every": 0}
        self._about = parse_json(json_text({**about, **asdict(settings), **free}), "settings", ConfigError)
        named = [(f"{HEAD}.{name}", value) for name, value in head.named_parameters()]
        self._optimiser = Optimiser(named, OptimConfig(weight_decay=0.0, clip_norm=settings.clip))
        self._guard = Guard()
        self.stopped_by = 0  # the signal that ended it early
        self.step = self._resume()

    def run(self, until: int | None = None) -> bool:
        """Take steps up to ``until`` (default: all); whether all are done. SIGTERM and SIGINT save, and end
        it early."""
        settings = self.settings
        last = settings.steps if until is None else min(until, settings.steps)
        saved = True
        with interrupts(self._interrupt), MetricsLog(self.run_folder, self.step, tensorboard=False) as log:
            if self.step == 0 and not read_metrics(self.run_folder):
                self._tell(log, {"step": 0, **self._judge()})
            while self.step < last and not self.stopped_by:
                line = self._one()
                ends = self.step == settings.steps
                if ends or self.step % settings.validate == 0:
                    line |= self._judge()
                self._tell(log, line)
                saved = ends or self.step % settings.every == 0
                if saved:
                    self._save(log)
            if not saved:
                self._save(log)
            log.draw("a head that drafts")
        self._draw()
        return self.step >= settings.steps

    def _one(self) -> dict[str, Any]:
        began = time.perf_counter()
        texts = _shown([self._answers[i] for i in self._chosen(self.step)])
        found = self.head(texts)
        self._optimiser.zero_grad(set_to_none=True)
        found.loss.backward()
        norm = clip_gradients(self.head.parameters(), self.settings.clip)
        verdict = self._guard.judge(self.step + 1, float(found.loss.detach()), norm)
        rate = rate_within(self.settings, self.step)
        if not verdict.skip:
            self._optimiser.set_rate(rate)
            self._optimiser.step()
        elif self._guard.bad >= SKIPS:
            raise TrainingError(f"{verdict.text}, as were the {SKIPS - 1} before it", "lower --rate")
        self.step += 1
        tokens, seconds = sum(len(one.ids) - one.start for one in texts), time.perf_counter() - began
        line: dict[str, Any] = {
            "step": self.step,
            "loss": found.nll,
            "rate": rate,
            "gradient_norm": norm,
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(tokens / seconds, 1),
            "training_length": round(found.accept_length, 4),
        }
        return {**line, "warning": verdict.text} if verdict.text else line

    def _chosen(self, step: int) -> list[int]:
        """Which answers a step reads: all in an order of their own in each round."""
        count, batch = len(self._answers), self.settings.batch
        found: list[int] = []
        for place in range(step * batch, (step + 1) * batch):
            order = np.random.default_rng([self.settings.seed, place // count]).permutation(count)
            found.append(int(order[place % count]))
        return found

    @torch.no_grad()
    def _judge(self) -> dict[str, Any]:
        """How well it finds held-out answers. They were written greedily, so a draft that is the answer's
        token is one that would have been accepted."""
        right, nll, size = [], 0.0, self.settings.batch
        for start in range(0, len(self._held), size):
            found = self.head(_shown(self._held[start : start + size]))
            right.append(found.right)
            nll += found.nll * len(found.right)
        every = np.concatenate(right)
        by_place = [round(float(share), 4) for share in np.logical_and.accumulate(every, axis=1).mean(axis=0)]
        return {
            "validation": nll / max(len(every), 1),
            "accept_length": round(accept_length(every), 4),
            "accepted": by_place,
        }

    def _tell(self, log: MetricsLog, line: dict[str, Any]) -> None:
        log.add(line)
        self._report(finite(line))

    def _draw(self) -> None:
        """The picture of acceptance over steps."""
        lines = read_metrics(self.run_folder)
        own, held = (
            [(one["step"], one[name]) for one in lines if one.get(name) is not None] for name in LENGTHS
        )
        curves = {name: curve for name, curve in (("training", thinned(own)), ("held out", held)) if curve}
        if curves:
            label = "tokens a pass, if greedy"
            picture = chart("a head that drafts", curves, "step", label, log_x=False, log_y=False)
            write_file(self.run_folder / CURVE, picture)

    def _save(self, log: MetricsLog) -> None:
        log.sync()

        def write(folder: Path) -> None:
            write_head(folder / HEAD, self.head, "float32", masters=True)
            write_tensors(folder, MOMENTS, self._optimiser.tensors())

        checkpoint.save(
            self.run_folder, self.step, {"about": self._about, "guard": self._guard.table()}, write
        )
        checkpoint.keep(self.run_folder, KEPT, lambda one: False)

    def _resume(self) -> int:
        found = latest(self.run_folder)
        if found is None:
            return 0
        state = found.state()
        other = list(differences(state.get("about"), self._about))
        if other:
            raise ConfigError(
                f"{self.run_folder} holds a run with other settings ({listed(other, apart='; ')})",
                "give the same, or another --output",
            )
        tensors = Stored(found.folder / HEAD, "model")
        for name, parameter in self.head.named_parameters():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise CheckpointError(f"{found.folder} holds another head", "give another --output")
            fill(parameter, tensors[name])
        self._optimiser.load_tensors(Stored(found.folder, MOMENTS))
        self._guard = guard_of(found, state)
        return found.step

    def _interrupt(self, number: int) -> None:
        self.stopped_by = number


def _shown(answers: Sequence[Answer]) -> list[Shown]:
    return [Shown(ids=one.ids, start=one.start, states=one.read()) for one in answers]


def write_head(folder: Path, head: DraftHead, dtype: str, *, masters: bool = False) -> None:
    """Write a head in its released layout, as ``--draft eagle:FOLDER`` reads it, in ``dtype``; matrices that
    its forward sees rounded as it sees them, in float32, unless it is the ``masters`` that are wanted. Raises
    CheckpointError."""
    layout, tensors = head.layout, dict[str, TensorSource]()
    for name, value in head.named_parameters():
        final = value.detach() if masters else head.final(name)
        exact = head.is_rounded and value.ndim == 2  # 16 bits cannot hold code times scale
        tensors[name] = torch_source(final.to(torch.float32 if exact else getattr(torch, dtype)).contiguous())
    tensors |= {name: torch_source(torch.from_numpy(value)) for name, value in layout.maps().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", layout.json(dtype), indent=2, durable=True)
        write_safetensors(folder / "model.safetensors", tensors, check_finite)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror or error}", "check the place and its free space"
        ) from error
