"""Checkpoints of a run, found and read. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.files import read_checksums, read_json, sweep
from minicpm4.formats.safetensors import StoredTensor, open_tensors, read_index

__all__ = [
    "LOCK",
    "LOG",
    "MOMENTS",
    "PAIRS",
    "PEAK",
    "PICTURE",
    "REMEDY",
    "STATE",
    "VERSION",
    "Saved",
    "latest",
    "saved",
    "stored",
]

NAME = re.compile(r"step-(\d{9})")
STATE = "state.json"
LOCK, LOG, PEAK, PICTURE = ".lock", "metrics.jsonl", "peak.json", "loss.svg"  # files beside the checkpoints
MOMENTS, PAIRS = "optimiser", "lora"  # files begin with it
REMEDY = "remove this checkpoint to go on from an earlier one"
MAX_STATE = 1 << 24
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A whole checkpoint on disk, after ``step`` optimiser steps."""

    step: int
    folder: Path

    def state(self) -> dict[str, Any]:
        """What its state.json says. Raises CheckpointError where a file of it, tensors apart, is damaged."""
        file = self.folder / STATE
        try:
            for sums in read_checksums(self.folder).values():
                if sums.path.suffix != ".safetensors":
                    sums.check_file()
        except CheckpointError as error:
            raise CheckpointError(f"a checkpoint is damaged: {error.condition}", REMEDY) from error
        state = read_json(file, MAX_STATE, CheckpointError, REMEDY)
        if state.get("version") != VERSION or state.get("step") != self.step:
            raise CheckpointError(f"{file} is not the state of step {self.step} in version {VERSION}", REMEDY)
        return state


def saved(run: Path) -> list[Saved]:
    """All whole checkpoints of a run, oldest first; what an interrupted save left does not count."""
    if not run.is_dir():
        return []
    sweep(run)
    found = []
    for folder in run.iterdir():
        match = NAME.fullmatch(folder.name)
        if match and (folder / STATE).is_file():
            found.append(Saved(step=int(match[1]), folder=folder))
    return sorted(found, key=lambda one: one.step)


def latest(run: Path) -> Saved | None:
    """The newest whole checkpoint of a run."""
    return (saved(run) or [None])[-1]  # type: ignore[list-item]


def stored(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """The tensors that a save left in ``folder`` under ``stem``, in one file or several; none is read. Raises
    CheckpointError where a file is missing, or cut off."""
    one, index = folder / f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    found: dict[str, StoredTensor] = {}
    try:
        files = [one] if one.is_file() or not (folder / index).is_file() else read_index(folder, index)
        for file in files:
            found |= open_tensors(file)
    except CheckpointError as error:
        raise CheckpointError(f"a checkpoint is damaged: {error.condition}", REMEDY) from error
    return found
