"""What a run writes about itself: a line of JSON for each step, a picture of the loss, TensorBoard if it is
there.

``flops_per_s`` counts the model's operations (train/estimate.py), not what is computed again; ``mfu`` is
their share of what all processes could do at the peak that peak.json tells (train/peak.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from minicpm4.plot import Curve, chart

__all__ = ["Metrics", "read_metrics"]

FILE, PICTURE = "metrics.jsonl", "loss.svg"
POINTS = 400  # of a curve in the picture


class Metrics:
    """The log of a run's folder, opened after ``step`` steps: later lines, of a run that was cut off, go."""

    def __init__(self, run: Path, step: int, tensorboard: bool = True) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._lines = [line for line in read_metrics(run) if line["step"] <= step]
        write_text(run / FILE, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._file = (run / FILE).open("a", encoding="utf-8")
        self._board = _board(run) if tensorboard else None

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a step's figures; ``line["step"]`` is the step's number, from 1."""
        self._lines.append(dict(line))
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
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
            write_text(self._run / PICTURE, picture)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's log; a last line that was cut off is left out."""
    file = run / FILE
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def thinned(curve: Curve, points: int = POINTS) -> list[tuple[float, float]]:
    """Means of at most ``points`` neighbouring parts of a curve."""
    size = -(-len(curve) // points) if curve else 1
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _board(run: Path) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))
