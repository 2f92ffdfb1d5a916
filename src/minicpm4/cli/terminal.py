"""What is safe and pleasant to print: model text, errors, progress, tables.

Model text is untrusted: on a terminal its control characters are dropped, so that it can neither move
the cursor nor change titles, colours or the clipboard; and Rich never reads it as markup.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# C0 but tab and newline, DEL, and C1, in which 0x9b starts an escape sequence by itself.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Progress = Callable[[int, int], None]


def sanitize(text: str) -> str:
    """Return ``text`` without the characters that steer a terminal."""
    return _CONTROL.sub("", text)


def one_line(text: str) -> str:
    """Return ``text`` on one line, without control characters."""
    return sanitize(" ".join(text.split()))


def write_text(text: str, stream: TextIO) -> None:
    """Print model text at once: as it is to a file or pipe, sanitised to a terminal."""
    stream.write(sanitize(text) if stream.isatty() else text)
    stream.flush()


def console(stream: TextIO) -> Console:
    """A Rich console that takes text literally and writes plainly unless to a terminal."""
    from rich.console import Console

    # Rich falls back to 80 columns in a pipe and would cut tables there.
    width = None if stream.isatty() else 200
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def table(*columns: str, title: str | None = None, numeric: tuple[str, ...] = ()) -> Table:
    """An empty table; ``numeric`` columns are flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    return made


@contextmanager
def prefill_progress(enabled: bool | None = None) -> Iterator[Progress | None]:
    """Yield a callback (tokens done, tokens in all) that draws a bar on standard error.

    Yields None when standard error is no terminal. The bar vanishes when the last token is read.
    """
    if enabled is None:
        enabled = sys.stderr.isatty()
    if not enabled:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens, {task.fields[speed]:,.0f} tokens/s"),
    )
    bar = Progress(*columns, console=console(sys.stderr), transient=True)
    task = bar.add_task("", total=None, speed=0.0)

    def update(done: int, total: int) -> None:
        seconds = bar.tasks[0].elapsed or 0.0
        bar.update(task, completed=done, total=total, speed=done / seconds if seconds > 0 else 0.0)
        if done >= total:
            bar.stop()
        elif not bar.live.is_started:
            bar.start()

    try:
        yield update
    finally:
        bar.stop()


def human_bytes(count: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
