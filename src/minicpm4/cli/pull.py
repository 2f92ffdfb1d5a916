"""``minicpm4 pull``: download a model's files."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A known name (see models) or a hub repository.")
    ],
) -> None:
    """Download a model's files, continuing where an earlier download stopped, and check them.

    Prints the folder or file that now holds the model.
    """
    from minicpm4 import zoo

    typer.echo(str(zoo.pull(name)))
