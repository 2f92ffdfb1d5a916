"""Checkpoints of a run: written to a temporary folder, then renamed, so that a whole one is always there.

A checkpoint is a folder ``step-000000120``. Its ``model/`` is an ordinary Hugging Face folder (float32), so
anything that runs models runs it; ``optimiser.safetensors`` holds the moments; ``state.json`` says what
made it. Of several processes each writes a file of either (``train/tensor_files.py``). Nothing is pickled.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.train.tensor_files import sync
from minicpm4.train.world import World

__all__ = ["Saved", "keep", "latest", "read_state", "save", "saved"]

NAME = re.compile(r"step-(\d{9})")
STATE = "state.json"
MAX_STATE = 1 << 24
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A whole checkpoint on disk, after ``step`` optimiser steps."""

    step: int
    folder: Path


def saved(run: Path) -> list[Saved]:
    """All whole checkpoints of a run, oldest first; what an interrupted save left does not count."""
    if not run.is_dir():
        return []
    found = []
    for folder in run.iterdir():
        match = NAME.fullmatch(folder.name)
        if match and (folder / STATE).is_file():
            found.append(Saved(step=int(match[1]), folder=folder))
    return sorted(found, key=lambda one: one.step)


def latest(run: Path) -> Saved | None:
    """The newest whole checkpoint of a run."""
    return (saved(run) or [None])[-1]  # type: ignore[list-item]


def save(
    run: Path,
    step: int,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
    world: World | None = None,
) -> Saved:
    """Have ``write`` fill a temporary folder, add ``state``, sync, and rename it to its place.

    All processes of ``world`` call it; each writes, the first does the rest. A checkpoint of the same step
    is replaced. Raises CheckpointError, in all processes, where the disk refuses.
    """
    world = world or World()
    target = run / f"step-{step:09d}"
    part = run / f".part-{target.name}"
    text = json.dumps({"version": VERSION, "step": step, **state}, indent=1, sort_keys=True)
    try:
        world.first(lambda: _begin(run, part))
        write(part)
        world.first(lambda: _finish(part, text, target))
    except OSError as error:
        raise CheckpointError(
            f"cannot save the checkpoint of step {step} to {run}: {error}",
            "free space there; earlier checkpoints are whole",
        ) from error
    finally:
        if world.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
    return Saved(step=step, folder=target)


def _begin(run: Path, part: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    sweep(run)
    part.mkdir()


def _finish(part: Path, text: str, target: Path) -> None:
    """Add the state to a folder that is written, and give it its name."""
    (part / STATE).write_text(text + "\n", encoding="utf-8")
    for path in sorted(part.rglob("*")):
        sync(path)
    sync(part)
    if target.exists():
        old = target.with_name(f".old-{target.name}")
        target.rename(old)
        part.rename(target)
        shutil.rmtree(old)
    else:
        part.rename(target)
    sync(target.parent)


def read_state(one: Saved) -> dict[str, Any]:
    """What state.json of a checkpoint says. Raises CheckpointError."""
    file = one.folder / STATE
    try:
        if file.stat().st_size > MAX_STATE:
            raise CheckpointError(f"{file} is larger than {MAX_STATE >> 20} MiB")
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read {file}: {error}", "remove this checkpoint to go on from an earlier one"
        ) from error
    if not isinstance(state, dict) or state.get("version") != VERSION or state.get("step") != one.step:
        raise CheckpointError(
            f"{file} is not the state of step {one.step} in version {VERSION}",
            "remove this checkpoint to go on from an earlier one",
        )
    return state


def keep(run: Path, last: int, always: Callable[[Saved], bool]) -> None:
    """Remove checkpoints but the ``last`` newest and those that ``always`` names."""
    everything = saved(run)
    for one in everything[: max(0, len(everything) - last)]:
        if not always(one):
            # A name that no reader takes, first: a removal that is cut short leaves no half checkpoint.
            gone = run / f".old-{one.folder.name}"
            one.folder.rename(gone)
            shutil.rmtree(gone)


def sweep(run: Path) -> None:
    """Remove what interrupted saves and removals have left."""
    for leftover in [*run.glob(".part-step-*"), *run.glob(".old-step-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
