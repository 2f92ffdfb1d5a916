"""What is safe and pleasant to print: model text, errors, progress, tables.

Model text is untrusted: on a terminal its control characters are dropped, so that it can neither move
the cursor nor change titles, colours or the clipboard; and Rich never reads it as markup.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from minicpm4.cli.wrapping import Wrapped
from minicpm4.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_DAY = 86400.0  # seconds
_LINE_SECONDS = 10.0  # between lines of progress where there is no terminal
# C0 but tab and newline, DEL, and C1, in which 0x9b starts an escape sequence by itself.
# And halves of a pair of UTF-16, which JSON may spell and nothing can be written with.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def sanitize(text: str) -> str:
    """Return ``text`` without the characters that steer a terminal, or cannot be written."""
    return _CONTROL.sub("", text)


def one_line(text: str) -> str:
    """Return ``text`` on one line, without control characters."""
    return sanitize(" ".join(text.split()))


class SafeLog(logging.Formatter):
    """Lines of a log, each on its own: names of files, and in them, are strangers'."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return sanitize(super().formatException(ei))


class Notice(SafeLog):
    """As SafeLog; where standard error is a terminal, it breaks between words."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return between_words(super().formatMessage(record), sys.stderr)


def _columns(stream: TextIO) -> int:
    """Columns of the terminal behind ``stream``; 0 where it does not tell."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 0


def between_words(text: str, stream: TextIO) -> str:
    """``text`` with lines that end between words, if ``stream`` is a terminal."""
    if not stream.isatty():
        return text
    wrapped = Wrapped(partial(_columns, stream))
    return wrapped.add(text) + wrapped.flush()


def tell(text: str) -> None:
    """Print a note on one line of standard error, on a terminal broken between words."""
    print(between_words(one_line(text), sys.stderr), file=sys.stderr)


@contextmanager
def writing(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Yield what prints model text as it comes, like ``write_text``; on a terminal its lines end between
    words, and what is held for that is printed at the end, whatever ended it.

    To be entered before a bar of progress, which puts itself in the place of standard output.
    """
    if not stream.isatty():
        yield partial(write_text, stream=stream)
        return
    wrapped = Wrapped(partial(_columns, stream))
    try:
        yield lambda text: write_text(wrapped.add(sanitize(text)), stream)
    finally:
        write_text(wrapped.flush(), stream)


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


def table(*columns: str, left: int = 99) -> Table:
    """An empty table; columns after the first ``left`` are flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    class Safe(Table):
        """Of cells that may be what strangers wrote: Rich lets escape sequences through."""

        def add_row(self, *cells: Any, **more: Any) -> None:
            super().add_row(*(sanitize(one) if isinstance(one, str) else one for one in cells), **more)

    made = Safe(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, name in enumerate(columns):
        made.add_column(name, justify="left" if position < left else "right", overflow="fold")
    return made


def cut_cell(text: str) -> Text:
    """A cell of a table that is cut, not folded, where the terminal is too narrow for it."""
    from rich.text import Text

    return Text(one_line(text), no_wrap=True, overflow="ellipsis")


def show(made: Table, stream: TextIO | None = None) -> None:
    """Print a table to standard output, without trailing spaces in a pipe."""
    stream = stream or sys.stdout
    if stream.isatty():
        console(stream).print(made)
        return
    buffer = io.StringIO()
    console(buffer).print(made)
    stream.write("".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines()))


def print_facts(title: str, facts: list[tuple[str, str]]) -> None:
    """Print one section. Names and values come from files, hence ``sanitize``."""
    print(title)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"  {name:<{width}}  {sanitize(value)}")
    print()


def pace(done: int, seconds: float, unit: str) -> str:
    """A speed: "512 tokens/s", of what is slow "14 s each"."""
    if not done or seconds <= 0:
        return ""
    if done < seconds:
        return f"{seconds / done:,.0f} s each"
    return f"{done / seconds:,.{0 if done >= 10 * seconds else 1}f} {unit}/s"


def duration(seconds: float) -> str:
    """Seconds in the unit in which they are easiest to grasp."""
    for unit, size in (("years", 365.25 * _DAY), ("days", _DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.2g} s"


@contextmanager
def progress_bar(
    what: str, unit: str, enabled: bool | None = None, *, before: int | None = 0
) -> Iterator[Progress | None]:
    """Yield a callback (done, total) that draws a bar on standard error, with its speed in ``unit`` and the
    time left, for which those that were done ``before`` (None: at the first call) do not count.

    Yields None when standard error is no terminal. The bar vanishes when everything is done.
    """
    if enabled is None:
        enabled = sys.stderr.isatty()
    if not enabled:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, {{task.fields[speed]}}"),
        TimeRemainingColumn(),
    )
    # Of layers that take minutes, too, the time left is known.
    bar = Progress(*columns, console=console(sys.stderr), transient=True, speed_estimate_period=3600)
    task = bar.add_task("", total=None, completed=before or 0, speed="")

    def update(done: int, total: int) -> None:
        nonlocal before
        before = done if before is None else before
        seconds = bar.tasks[0].elapsed or 0.0
        bar.update(task, completed=done, total=total, speed=pace(done - before, seconds, unit))
        if done >= total:
            bar.stop()

    bar.start()
    try:
        yield update
    finally:
        bar.stop()


@contextmanager
def progress_or_lines(what: str, unit: str, *, before: int = 0) -> Iterator[Progress | None]:
    """As ``progress_bar``; where standard error is no terminal a plain line now and then."""
    if sys.stderr.isatty():
        with progress_bar(what, unit, before=before) as progress:
            yield progress
        return
    begun = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            line = [f"{what}: {done} of {total} {unit}"]
            if done > before:
                line.append(pace(done - before, now - begun, unit))
                if done < total:
                    line.append(f"{duration((total - done) * (now - begun) / (done - before))} left")
            print(", ".join(line), file=sys.stderr, flush=True)

    yield update
