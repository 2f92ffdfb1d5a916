"""``minicpm4 models``: the models known by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from minicpm4 import zoo
from minicpm4.cli.terminal import cut_cell, one_line, show, table
from minicpm4.machine import human


def command(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    clear_kept: Annotated[
        bool, typer.Option("--clear-kept", help="Remove converted weights that are kept on disk, and leave.")
    ] = False,
) -> None:
    """List the models known by name and those downloaded: present or not, size, source (cut where the
    terminal is narrow; whole with --json).

    Below them, how much is kept on disk of weights that took long to convert (see the guide).
    """
    if clear_kept:
        from minicpm4.model import packed_cache

        count, nbytes = packed_cache.clear()
        print(f"removed {count} files of kept weights, {human(nbytes)}")
        return
    models = zoo.list_models()
    if json_output:
        print(json.dumps([dataclasses.asdict(model) for model in models], default=str))
        return
    shown = table("name", "present", "size", "source")
    shown.columns[0].no_wrap = True
    for model in models:
        size = "" if model.size is None else human(model.size)
        shown.add_row(model.name, "yes" if model.present else "no", size, cut_cell(model.source))
    show(shown)
    print(f"\nweights kept: {one_line(kept_summary())}")


def kept_summary() -> str:
    """How many files of converted weights there are, their size, its limit and their folder. Raises
    ConfigError."""
    from minicpm4.model import packed_cache

    place = packed_cache.folder()
    if place is None:
        return f"{packed_cache.VARIABLE}=off"
    kept = packed_cache.kept_files()
    size = sum(one.nbytes for one in kept)
    removed = f" ({packed_cache.REMOVED})" if kept else ""
    return f"{len(kept)} files, {human(size)} of at most {human(packed_cache.limit())}, in {place}{removed}"
