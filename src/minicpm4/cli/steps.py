"""How commands that train show their steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


class Progress:
    """A bar with the last step's figures; warnings above it. It is shown lines with "step" and "text"; where
    nobody watches, "more" stands behind it, and lines that are "marked" are shown too."""

    def __init__(self, steps: int, off: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        # Where nobody watches a bar, a line now and then.
        self._plain = not sys.stderr.isatty()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=off or self._plain,
        )
        self._off, self._steps = off, steps
        self._task = self._bar.add_task("starting", total=steps)

    def start(self, step: int) -> None:
        if step and not self._off:
            print(f"going on after step {step:,}", file=sys.stderr)
        self._bar.update(self._task, completed=step)

    def __call__(self, line: Mapping[str, Any]) -> None:
        if self._off:
            return
        step, text = line["step"], line["text"]
        self._bar.update(self._task, completed=step, description=text)
        due = step == 1 or (step and step % max(1, self._steps // 20) == 0)
        if self._plain and (due or line.get("marked")):
            print(f"step {step:,}/{self._steps:,} {text}{line.get('more', '')}", file=sys.stderr)
        if "warning" in line:
            self._bar.console.print(f"warning: {line['warning']}", markup=False)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def tell(text: str) -> None:
    """Tell something on standard error."""
    print(text, file=sys.stderr)
