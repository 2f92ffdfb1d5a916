"""``minicpm4 models``: the models known by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from minicpm4 import zoo
from minicpm4.cli.terminal import show, table
from minicpm4.engine.plan import human


def command(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the models known by name and those downloaded: present or not, size, source."""
    models = zoo.list_models()
    if json_output:
        print(json.dumps([dataclasses.asdict(model) for model in models], default=str))
        return
    shown = table("name", "present", "size", "source")
    for model in models:
        size = "" if model.size is None else human(model.size)
        shown.add_row(model.name, "yes" if model.present else "no", size, model.source)
    show(shown)
