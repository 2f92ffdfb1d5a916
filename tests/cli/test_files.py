"""What the system refuses, of files that the user named, is one line and exit code 2; results are whole."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.files import write_file
from tests.cli.conftest import Result
from tests.fixtures.random_checkpoint import make_checkpoint

Run = Callable[..., Result]
UNREADABLE = Path("/proc/self/mem")
needs_unreadable = pytest.mark.skipif(not UNREADABLE.is_file(), reason="needs an unreadable file")


@needs_unreadable
@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
)
def test_a_model_file_that_cannot_be_read(tmp_path: Path, minicpm: Run, file: str) -> None:
    folder = make_checkpoint(tmp_path / "m")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(UNREADABLE)
    result = minicpm("generate", "-m", str(folder), "--prompt", "x", "--backend", "ref")
    assert result.code == 2 and file in result.err and "should not happen" not in result.err
    assert len(result.err.splitlines()) == 1


@needs_unreadable
@pytest.mark.parametrize("args", ["info FILE", "generate -m FILE --prompt x", "generate --prompt-file FILE",
                                  "train FILE", "train FILE --dry-run", "data inspect FILE"])  # fmt: skip
def test_a_file_that_cannot_be_read(minicpm: Run, args: str) -> None:
    result = minicpm(*args.replace("FILE", str(UNREADABLE)).split())
    assert result.code == 2 and str(UNREADABLE) in result.err and "should not happen" not in result.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), 2, "error: a/b: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device. check"),
        (OSError(errno.EFBIG, "File too large"), 2, "error: File too large. check"),
        (MemoryError(), 2, "error: memory ran out in minicpm4 models. end other programs"),
        (MemoryError("8 GiB of x"), 2, "error: memory ran out in minicpm4 models (8 GiB of x). end"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "error: memory ran out in minicpm4 models ("),
        (OSError(errno.EBADF, "Bad file descriptor"), 1, "This should not happen"),
    ],
)
def test_refusals_of_the_system(
    minicpm: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr("minicpm4.zoo.list_models", refuse)
    result = minicpm("models")
    assert result.code == code and said in result.err


MEASURED = [
    "--prefill",
    "0",
    "--decode",
    "1",
    "--depths",
    "0",
    "--repeats",
    "1",
    "--attention",
    "dense",
    "--threads",
    "1",
]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(make_checkpoint(tmp_path / "tiny"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_result_on_a_full_disk(minicpm: Run, tiny: str, tmp_path: Path, option: str) -> None:
    (tmp_path / "full.svg").symlink_to("/dev/full")
    result = minicpm("bench", tiny, *MEASURED, option, str(tmp_path / "full.svg"))
    assert "GB/s read" in result.out, "it was refused before anything was measured"
    assert result.code == 2 and "full.svg: No space left on device" in result.err
    if option == "--json":
        assert json.loads(result.out.splitlines()[-1])["points"], "the figures are lost"


# Ends the process in the middle of the first write to the file that is to become the result.
KILLED = """
import os, sys
from minicpm4 import cli
from minicpm4.files import whole

def half(path, data, **kwargs):
    with whole.writing(path, **kwargs) as out:
        out.write(data.encode()[: len(data) // 2])
        out.flush()
        os._exit(9)

whole.write_file = half
cli.run(sys.argv[1:])
"""


def test_a_killed_measurement_leaves_no_half_result(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "b.json").write_text("the one before")
    command = [sys.executable, "-c", KILLED, "bench", tiny, *MEASURED, f"--json={folder / 'b.json'}"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 9
    assert (folder / "b.json").read_text() == "the one before"
    assert len(list(folder.iterdir())) == 2, "nothing was being written"
    write_file(folder / "c.json", "{}")
    assert sorted(path.name for path in folder.iterdir()) == ["b.json", "c.json"]
