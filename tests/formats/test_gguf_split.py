"""Models that are split over several .gguf files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.files.gguf_parts import models_of, parts_of
from minicpm4.formats import open_checkpoint
from minicpm4.formats.gguf_write import write_gguf
from minicpm4.formats.packing import unpack
from minicpm4.model.source import open_model
from tests.formats.gguf_files import f32, hf_weights, metadata, to_gguf, write_model

COUNT = 3


def part(folder: Path, number: int, name: str = "m") -> Path:
    return folder / f"{name}-{number + 1:05d}-of-{COUNT:05d}.gguf"


def split(folder: Path, number: int | None = None, **changes: Any) -> Path:
    """The small model in three files, the first without tensors; ``changes`` of the keys of part ``number``.
    Returns the path of the first."""
    folder.mkdir(exist_ok=True)
    tensors = to_gguf(hf_weights(), "llama")
    shares = [[], tensors[:7], tensors[7:]]
    for i, share in enumerate(shares):
        keys = {"split.no": i, "split.count": COUNT, "split.tensors.count": len(tensors)}
        keys |= {f"split.{k.replace('__', '.')}": v for k, v in changes.items()} if i == number else {}
        keys = {key: value for key, value in keys.items() if value is not None}
        write_gguf(part(folder, i), (metadata() if not i else {}) | keys, share)
    return part(folder, 0)


def test_parts_are_one_model(tmp_path: Path) -> None:
    first, whole = split(tmp_path / "s"), open_checkpoint(write_model(tmp_path / "m.gguf"))
    for path in (first, part(tmp_path / "s", 2), tmp_path / "s"):
        found = open_model(path).checkpoint
        assert found.path == first and found.files == tuple(part(tmp_path / "s", i) for i in range(COUNT))
        assert found.tensors == whole.tensors
        assert found.metadata()["general.architecture"] == "llama"
        for name, info in whole.tensors.items():
            if len(info.shape) == 2:
                np.testing.assert_array_equal(unpack(found.load(name)), unpack(whole.load(name)))
            else:
                np.testing.assert_array_equal(found.load_vector(name), whole.load_vector(name))
            found.release(name)


@pytest.mark.parametrize("gone", range(COUNT))
def test_a_part_that_is_missing_is_named(gone: int, tmp_path: Path) -> None:
    split(tmp_path)
    part(tmp_path, gone).unlink()
    asked = part(tmp_path, 1 if gone == 0 else 0)
    with pytest.raises(
        CheckpointError, match=f"one of 3 parts, 1 of them missing.*{part(tmp_path, gone).name}"
    ):
        open_checkpoint(asked)


def test_a_folder_that_lacks_the_first_part_says_so(tmp_path: Path) -> None:
    split(tmp_path)
    part(tmp_path, 0).unlink()
    with pytest.raises(CheckpointError, match=f"{part(tmp_path, 0).name}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (1, {"no": 2}, r"m-00002-of-00003.gguf says that it is part 2 \(from 0\) of 3.*part 1 of 3"),
        (2, {"count": 4}, r"m-00003-of-00003.gguf says .* of 4"),
        (2, {"count": None}, r"m-00003-of-00003.gguf says .* of None"),
        (0, {"tensors__count": 5}, r"hold 20 tensors, split.tensors.count is 5"),
        (0, {"count": 4}, r"is one of 4 parts of a split model, but is not called so"),
        (0, {"count": "three"}, r"is one of 'three' parts"),
        (0, {"count": [3]}, r"is one of \[3\] parts"),
    ],
)
def test_parts_that_contradict_each_other(
    number: int, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(split(tmp_path, number, **changes))


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first = split(tmp_path, 0, tensors__count=None)
    keys = {"split.no": 2, "split.count": COUNT}
    again = f32("token_embd.weight", hf_weights()["model.embed_tokens.weight"])
    write_gguf(part(tmp_path, 2), keys, [again])
    with pytest.raises(CheckpointError, match=r"m-00003-of.*are the same weight, the other in m-00002-of"):
        open_checkpoint(first)


def test_a_file_that_is_whole_may_be_called_a_part(tmp_path: Path) -> None:
    path = write_model(part(tmp_path, 0))
    assert open_checkpoint(path).files == (path,)


def test_names() -> None:
    assert parts_of("a-00002-of-00003.gguf") == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in ("a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "x\n.gguf"):
        assert parts_of(name) == [name]
    names = ["b.gguf", "a-00002-of-00002.gguf", "a-00001-of-00002.gguf"]
    assert models_of(names) == ["a-00001-of-00002.gguf", "b.gguf"]
