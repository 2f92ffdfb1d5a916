"""A checkpoint with one bit turned is not gone on from, whichever file it is in."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from minicpm4.data.shards import ShardSet
from minicpm4.errors import CheckpointError
from minicpm4.files import CHECKSUMS
from minicpm4.train.saved import saved
from tests.train.runs import corpus, recipe, runner, stage

STAGE = stage(steps=4)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardSet]:
    folder = tmp_path_factory.mktemp("run")
    data = corpus(folder / "data")
    runner(recipe(STAGE), folder / "run", data).run(until=2)
    return folder / "run", data


def files_of(run: Path) -> list[Path]:
    """Of its checkpoint, relative to the run."""
    (one,) = saved(run)
    return sorted(file.relative_to(run) for file in one.folder.rglob("*") if file.is_file())


def test_a_checkpoint_tells_of_all_its_files(begun: tuple[Path, ShardSet]) -> None:
    names = [file.name for file in files_of(begun[0])]
    assert names.count(CHECKSUMS) == 2  # of the checkpoint, and of the model in it


@pytest.mark.parametrize("seed", range(18))
def test_one_bit_ends_it(begun: tuple[Path, ShardSet], seed: int, tmp_path: Path) -> None:
    run, rng = Path(shutil.copytree(begun[0], tmp_path / "run")), Random(seed)
    # Each in turn; of a manifest a bit may be one that nobody reads, such as a letter of a file's name.
    files = [file for file in files_of(run) if file.name != CHECKSUMS]
    file = run / files[seed % len(files)]
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        runner(recipe(STAGE), run, begun[1])
    assert "remove this checkpoint" in str(caught.value)


def test_one_that_is_whole_goes_on_and_so_does_one_of_before(
    begun: tuple[Path, ShardSet], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(begun[0], tmp_path / "run"))
    assert runner(recipe(STAGE), run, begun[1]).step == 2
    for file in run.rglob(CHECKSUMS):
        file.unlink()
    assert runner(recipe(STAGE), run, begun[1]).run().step == 4
