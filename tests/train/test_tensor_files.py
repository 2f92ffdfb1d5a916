"""Sets of files: who owns what, what is read back, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minicpm4.errors import CheckpointError

torch = pytest.importorskip("torch")

from minicpm4.formats import safetensors_write  # noqa: E402
from minicpm4.formats.safetensors_write import planned  # noqa: E402
from minicpm4.train.tensor_files import Stored, write_tensors  # noqa: E402


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_tensor_has_one_owner_and_owners_bytes_are_near(processes: int) -> None:
    sizes = {f"t{i}": 10 + i % 7 for i in range(200)}
    files = planned("model", sizes, processes, 1 << 30)
    assert [name for file in files for name in file.tensors] == list(sizes)
    assert [file.owner for file in files] == list(range(processes))
    shares = [sum(sizes[name] for name in file.tensors) for file in files]
    assert max(shares) - min(shares) <= 2 * max(sizes.values())


def test_files_are_bounded_and_an_empty_set_is_one_file() -> None:
    files = planned("model", {"a": 5, "b": 5, "c": 20, "d": 1}, 1, 10)
    assert [file.tensors for file in files] == [("a", "b"), ("c",), ("d",)]
    assert files[0].name == "model-00001-of-00003.safetensors"
    assert [file.name for file in planned("model", {}, 4, 10)] == ["model.safetensors"]
    assert {file.owner for file in planned("model", {"a": 1}, 4, 10)} <= set(range(4))


def test_what_is_written_is_read_whole_or_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_write, "MAX_FILE", 100)
    given = {"a": torch.arange(24.0).reshape(6, 4), "b": torch.arange(5.0), "n": torch.tensor(7)}
    write_tensors(tmp_path, "optimiser", given)
    assert len(list(tmp_path.glob("optimiser-*.safetensors"))) == 2
    found = Stored(tmp_path, "optimiser")
    assert found.keys() == given.keys() and int(found["n"].read()) == 7
    assert torch.equal(found["a"].read(slice(2, 4)), given["a"][2:4])
    assert torch.equal(found["b"].read(), given["b"])


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_files_may_be_read_by_whoever_may_read_new_files(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", {"a": torch.zeros(3)})
    (tmp_path / "plain").touch()
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["plain"]


def test_a_cut_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint is damaged"):
        Stored(tmp_path, "optimiser")
    write_tensors(tmp_path, "optimiser", {"a": torch.zeros(100)})
    file = tmp_path / "optimiser.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="a checkpoint is damaged"):
        Stored(tmp_path, "optimiser")


def test_a_full_disk_is_an_error_not_a_half_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write_tensors(tmp_path / "nowhere", "model", {"a": torch.zeros(3)})
