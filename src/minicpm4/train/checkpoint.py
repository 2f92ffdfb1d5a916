"""Checkpoints of a run: written whole or not at all, so that a whole one is always there.

A checkpoint is a folder ``step-000000120``. Its ``model/`` is an ordinary Hugging Face folder (float32), so
anything that runs models runs it; ``optimiser.safetensors`` holds the moments; ``state.json`` says what
made it. Of several processes each writes a file of either (``train/tensor_files.py``). Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import Part, json_text, lock, remove_folder, write_checksums, write_file
from minicpm4.train.saved import LOCK, STATE, VERSION, Saved, saved
from minicpm4.train.world import World

__all__ = ["alone", "keep", "save"]

TOKEN = "00000000"  # of the part that all processes of a run write together: ``alone`` keeps other runs out


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder, which is made where it is not there. Raises ConfigError
    where one is in it, or nothing can be written."""

    def busy() -> None:
        raise ConfigError(
            f"another training is writing to {run}", "wait for its end, or give another --output"
        )

    with ExitStack() as held:
        try:
            run.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(run / LOCK, busy))
        except OSError as error:
            raise ConfigError(f"cannot write to {run}: {error.strerror}", "give another --output") from error
        yield


def save(
    run: Path,
    step: int,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
    world: World | None = None,
) -> Saved:
    """Have ``write`` fill a folder, add ``state``, sync, and give it its name.

    All processes of ``world`` call it; each writes, the first does the rest. A checkpoint of the same step
    is replaced. Raises CheckpointError, in all processes, where the disk refuses.
    """
    world = world or World()
    target = run / f"step-{step:09d}"
    part = Part(target, TOKEN)
    text = json_text({"version": VERSION, "step": step, **state}, indent=1, sort_keys=True)
    try:
        world.first(lambda: _begin(part))
        write(part.new)
        world.first(lambda: _finish(part, text))
    except OSError as error:
        raise CheckpointError(
            f"cannot save the checkpoint of step {step} to {run}: {error}",
            "free space there; earlier checkpoints are whole",
        ) from error
    finally:
        if world.rank == 0:
            part.discard()
    return Saved(step=step, folder=target)


def _begin(part: Part) -> None:
    part.target.parent.mkdir(parents=True, exist_ok=True)
    part.begin(folder=True)


def _finish(part: Part, text: str) -> None:
    write_file(part.new / STATE, text + "\n")
    write_checksums(part.new, sorted(_own(part.new)))
    part.commit(durable=True)


def _own(folder: Path) -> Iterator[str]:
    """What its manifest is to tell of: all but the tensors of models in it, of which their own tell."""
    for file in folder.rglob("*"):
        if file.is_file() and (file.parent == folder or file.suffix != ".safetensors"):
            yield file.relative_to(folder).as_posix()


def keep(run: Path, last: int, always: Callable[[Saved], bool]) -> None:
    """Remove checkpoints but the ``last`` newest and those that ``always`` names."""
    everything = saved(run)
    for one in everything[: max(0, len(everything) - last)]:
        if not always(one):
            remove_folder(one.folder)
