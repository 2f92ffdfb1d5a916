"""``minicpm4 pull``: download a model's files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from minicpm4 import zoo
from minicpm4.cli.terminal import console, one_line
from minicpm4.machine import human
from minicpm4.places import models_home


def command(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A known name (see models) or a hub repository.")
    ],
) -> None:
    """Download a model's files, continuing where an earlier download stopped, and check them.

    Prints the folder or file that now holds the model; on standard error, how much of the disk it takes.
    """
    with download_bar() as progress:
        path = zoo.pull(name, progress)
    typer.echo(str(path))
    if models_home() in path.parents:  # not one that a package brought
        files = zoo.files_of(path)
        what = f"these {len(files)} files" if path.is_file() and len(files) > 1 else f"this {_kind(path)}"
        size = human(sum(file.stat().st_size for file in files))
        typer.echo(f"{size} on disk; to remove the model, delete {what}", err=True)


def _kind(path: Path) -> str:
    return "file" if path.is_file() else "folder"


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a callback (file, bytes done, bytes in all) that draws a bar on standard error.

    Yields None when standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), Speed())
    with Progress(*columns, TimeRemainingColumn(), console=console(sys.stderr)) as bar:
        task = bar.add_task("", total=None)

        def update(file: str, done: int, total: int) -> None:
            bar.update(task, description=one_line(file), completed=done, total=total)

        yield update
