"""The folder in which a conversion keeps what is done: its own files alone, and one run at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from minicpm4.config.strict import counted, shown
from minicpm4.errors import CheckpointError
from minicpm4.files import lock, making, sweep
from minicpm4.formats.target import obstacle, require_new
from minicpm4.model.packed_file import PackedFile

__all__ = ["check_kept", "kept_in", "part_of", "place_for", "remove_work", "work_folder"]

_LOCK = "lock"
_NAMES = "ends|head|texts|formats|layer-[0-9]{5,}"
_OURS = re.compile(rf"lock|({_NAMES})\.(safetensors|json)|\..+\.[0-9a-f]{{8}}\.part")


def part_of(target: Path) -> Path:
    """Where the work on the model that will be ``target`` is kept."""
    return Path(f"{os.path.realpath(target)}.part")


def check_kept(folder: Path, key: Mapping[str, Any], without: Collection[str] = (), other: str = "") -> int:
    """How many layers ``folder`` keeps. Raises CheckpointError where they are of another conversion than that
    of ``key``, of which the fields ``without`` are not known yet: they would be lost. ``other``: what is
    known to differ, where ``key`` is empty. Layers that cannot be read are worth nothing."""
    wanted = {name: value for name, value in key.items() if name not in without}
    others, ours = [], 0
    for file in sorted(folder.glob("layer-*.safetensors")):
        with suppress(CheckpointError, OSError), file.open("rb") as data:
            kept = dict(PackedFile(data, file).key)
            found = {name: value for name, value in kept.items() if name not in without}
            if found != wanted:
                others.append(found)
            else:
                ours += 1
    if others:
        said = others[0].get("options")
        said = said if isinstance(said, dict) else {}
        how = " ".join(str(said[name]) for name in ("weights", "method", "layout") if name in said)
        differs = [other] if other else list(_differences(others[0], wanted))
        raise CheckpointError(
            f"{folder} holds {counted(len(others), 'layer')} of another conversion "
            f"({how or 'of another version'}){': ' if differs else ''}{'; '.join(differs)}",
            "go on with its model, options (with --bits its --to, too) and texts, or remove the folder",
        )
    return ours


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is not the same for layers that are kept and those that are to be made."""
    said, own = found.get("options"), wanted.get("options")
    if not isinstance(said, dict) or not isinstance(own, dict):
        return
    if found.get("files") != wanted.get("files"):
        yield "its model is another, or has been changed"
    for name in dict.fromkeys([*said, *own]):
        old, new = said.get(name), own.get(name)
        if old != new:
            yield f"it had {name.replace('_', ' ')} {_said(old)}, this has {_said(new)}"
    if found.get("config") != wanted.get("config") and said.get("overrides") == own.get("overrides"):
        yield "its config.json, or the order of its overrides, is another"
    if found.get("texts") != wanted.get("texts"):
        yield "its texts to calibrate on are others (--calibration, --samples, --length)"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        value = " ".join(f"{pattern}={one}" for pattern, one in value.items())
    return shown(value) if value not in (None, "") else "none"


def place_for(target: Path, *, file: bool = False) -> Path:
    """The work folder of the model that will be ``target``. Raises CheckpointError where that is no new
    folder (``file``: a .gguf file): what is written takes its place whole."""
    if file and target.is_dir():
        raise CheckpointError(f"{target} is a folder, a .gguf file is written", "name a file: model.gguf")
    if file and target.suffix.lower() != ".gguf":
        raise CheckpointError(f"{target} is not the name of a .gguf file", "name one: model.gguf")
    require_new(target)
    return part_of(target)


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this run; where nothing was kept it is gone afterwards. Raises CheckpointError
    where it is another's, or another run's."""
    other = "name another folder, or move this away"
    if folder.is_symlink():
        raise CheckpointError(f"{folder}, for what is done so far, is a link", other)
    if folder.is_dir():
        alien = sorted(file.name for file in folder.iterdir() if not _OURS.fullmatch(file.name))
        if alien:
            raise CheckpointError(f"{folder}, for what is done so far, holds another's {alien[0]}", other)
    found = obstacle(folder)
    if found:
        raise CheckpointError(f"cannot write to {folder}, for what is done so far: {found}", other)

    def busy() -> None:
        raise CheckpointError(f"another run is writing to {folder}", "wait for it, or name another folder")

    with making(folder.parent), ExitStack() as stack:
        while True:
            folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another run has removed its folder just now
                stack.enter_context(lock(folder / _LOCK, busy))
                held = (folder / _LOCK).stat()
                break
        try:
            yield
        finally:
            with suppress(FileNotFoundError):  # it has done its work
                # A folder that was removed may be another run's by now.
                ours = os.path.samestat(held, (folder / _LOCK).stat())
                if ours and not any(file.name != _LOCK for file in folder.iterdir()):
                    remove_work(folder)


def kept_in(folder: Path) -> str:
    """What to add to a remedy where ``folder`` keeps layers that are done; else nothing."""
    return f": what was rounded is kept in {folder}" if any(folder.glob("layer-*.safetensors")) else ""


def remove_work(folder: Path) -> None:
    """Remove what a conversion has put into ``folder``, and ``folder`` where that was all; never an error."""
    sweep(folder)
    with suppress(OSError):
        for file in folder.iterdir():
            if _OURS.fullmatch(file.name) and file.is_file():
                with suppress(OSError):
                    file.unlink()
        folder.rmdir()
