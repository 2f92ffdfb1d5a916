"""What a run writes about itself: a line of JSON for each step, a picture of the loss, TensorBoard if it is
there.

``flops_per_s`` counts the model's operations (train/estimate.py), not what is computed again; ``mfu`` is
their share of what all processes could do at the peak that peak.json tells (train/peak.py)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from minicpm4.errors import TrainingError
from minicpm4.files import finite, json_text, lines_of, parse_json, sync, write_file
from minicpm4.plot import Curve, chart
from minicpm4.train.saved import LOG, PICTURE

__all__ = ["LENGTHS", "MetricsLog", "read_metrics"]

LENGTHS = ("training_length", "accept_length")  # of drafts, in the log of a head that drafts
POINTS = 400  # of a curve in the picture


class MetricsLog:
    """The log of a run's folder, opened after ``step`` steps: later lines, of a run that was cut off, go."""

    def __init__(self, run: Path, step: int, tensorboard: bool = True) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._lines = [line for line in read_metrics(run) if line["step"] <= step]
        write_file(run / LOG, "".join(json_text(line) + "\n" for line in self._lines), durable=True)
        self._file = (run / LOG).open("a", encoding="utf-8")
        self._board = _board(run) if tensorboard else None

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a step's figures; ``line["step"]`` is the step's number, from 1. What is not finite is
        written as null. Raises TrainingError where the disk refuses."""
        line = finite(dict(line))
        self._lines.append(dict(line))
        try:
            self._file.write(json_text(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(
                f"cannot write to {self._run / LOG}: {error.strerror or error}",
                "free space there, then do the same again: it goes on from the last checkpoint",
            ) from error
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def draw(self, title: str) -> None:
        """Write the picture of training and validation loss over steps."""
        curves = {
            "training": thinned(
                [(line["step"], line["loss"]) for line in self._lines if line.get("loss") is not None]
            ),
            "validation": [
                (line["step"], line["validation"])
                for line in self._lines
                if line.get("validation") is not None
            ],
        }
        shown = {name: curve for name, curve in curves.items() if curve}
        if shown:
            picture = chart(title, shown, "optimiser step", "loss, nats a token", log_x=False, log_y=False)
            write_file(self._run / PICTURE, picture)

    def sync(self) -> None:
        """Have all lines reach the disk, before a checkpoint does: a run that goes on from it writes none of
        them again. Raises OSError."""
        sync(self._run / LOG)

    def close(self) -> None:
        """Close the files."""
        with suppress(OSError):  # of a line that could not be written, and was told
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's log; what is none (a last line that was cut off, another's) is left out."""
    file = run / LOG
    if not file.is_file():
        return []
    lines = []
    for text in lines_of(file.read_text(encoding="utf-8", errors="replace")):
        try:
            line = finite(parse_json(text, LOG, TrainingError, constants=True))
        except TrainingError:
            continue
        if isinstance(line, dict) and _is_line(line):
            lines.append(line)
    return lines


def _is_line(line: Mapping[str, Any]) -> bool:
    """Whether a run wrote it: a step, and what curves are drawn of, numbers where there are any."""
    drawn = (line.get(name) for name in ("loss", "validation", *LENGTHS))
    return type(line.get("step")) is int and all(x is None or type(x) in (int, float) for x in drawn)


def thinned(curve: Curve, points: int = POINTS) -> list[tuple[float, float]]:
    """Means of at most ``points`` neighbouring parts of a curve."""
    size = -(-len(curve) // points) if curve else 1
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _board(run: Path) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))
