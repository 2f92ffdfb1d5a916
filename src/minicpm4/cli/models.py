"""``minicpm4 models``: the models known by name."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """List the models known by name, whether they are on this machine, their size and source."""
    from minicpm4 import zoo
    from minicpm4.cli.terminal import console, human_bytes, table

    models = zoo.list_models()
