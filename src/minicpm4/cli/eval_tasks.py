"""``minicpm4 eval tasks``: tasks for lm-evaluation-harness, of files that lie here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from minicpm4.cli.options import number
from minicpm4.cli.terminal import show, table
from minicpm4.config.strict import require
from minicpm4.files import making


def tasks(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="JSON lines, or .gz, with question, options and answer, and maybe passage.",
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", metavar="FOLDER", help="Write there: lm_eval's --include_path.")
    ],
    first: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N questions of each file.")
    ] = None,
) -> None:
    """Make tasks for lm-evaluation-harness of files that lie here, so that it downloads nothing.

    A task is called local_ and its file's name, or its folder's where that is test, validation, dev or train.
    Questions whose answer is not among their options are left out, and counted.
    """
    from minicpm4.evals.harness.tasks import read_choices, task_name, write_task

    if first is not None:
        number("--first", first, 1_000_000, least=1)
    names = [task_name(file) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two files would be the task {twice}", "rename one of the two")
    read = [read_choices(file) for file in files]
    shown = table("task", "questions", "left out", left=1)
    with making(to):
        for name, (questions, wrong) in zip(names, read, strict=True):
            write_task(to, name, questions[:first])
            shown.add_row(name, f"{len(questions[:first]):,}", f"{wrong:,}")
    show(shown)
    asked = f"--include_path {shlex.quote(str(to))} --tasks {','.join(names)}"
    print(f"python -m minicpm4.evals.harness run --model minicpm4 --model_args model=NAME {asked}")
