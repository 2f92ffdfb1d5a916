"""Damage of files that have a manifest is told where it is read, and nowhere is a bit taken for another."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.errors import CheckpointError
from minicpm4.files import checksums, read_checksums, write_checksums
from minicpm4.formats import open_checkpoint
from minicpm4.formats.hf_write import end_folder
from minicpm4.formats.mapping import MappedFile
from tests.fixtures.random_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Blocks of 1,024 bytes: files of tests have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "BLOCK", 1024)
        yield


@pytest.fixture(scope="module")
def exported(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(
        tmp_path_factory.mktemp("e") / "m", model_type="llama", vocab_size=300, sharded=True
    )
    end_folder(folder, json.loads((folder / "config.json").read_text()))
    return folder


def flip(file: Path, bit: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    file.write_bytes(raw)


def read_all(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for name, info in checkpoint.tensors.items():
        (checkpoint.load if len(info.shape) == 2 else checkpoint.load_vector)(name)


@settings(max_examples=60)
@given(bit=st.integers(0, 1 << 40), which=st.integers(0, 9))
def test_every_flipped_bit_of_an_exports_tensors_is_found(exported: Path, bit: int, which: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(exported, Path(name) / "m"))
        files = sorted(folder.glob("*.safetensors"))
        flip(files[which % len(files)], bit)
        with pytest.raises(CheckpointError):
            read_all(folder)


def test_what_is_whole_is_read_and_checked_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_all(exported)
    file = sorted(exported.glob("*.safetensors"))[0]
    sums = read_checksums(exported)[file.name]
    mapped = MappedFile(file, sums)
    before = set(sums.checked)
    mapped.view(2000, 100)
    assert sums.checked - before == {1, 2}  # and no block beside those that were asked for
    monkeypatch.setattr(checksums.hashlib, "sha256", None)
    mapped.view(2000, 100)


def test_a_manifest_that_is_gone_leaves_the_files_readable(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "m"))
    (folder / checksums.CHECKSUMS).unlink()
    flip(sorted(folder.glob("*.safetensors"))[-1], -1)
    read_all(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"version": 2}',
        '{"version": 1, "block": 1024, "files": []}',
        '{"version": 1, "block": 1024, "files": {"../a": {}}}',
        '{"version": 1, "block": 1024, "files": {"/etc/passwd": {"bytes": 0, "sha256": []}}}',
        '{"version": 1, "block": 1024, "files": {"a": {"bytes": true, "sha256": []}}}',
        '{"version": 1, "block": 1024, "files": {"a": {"bytes": -1, "sha256": []}}}',
        '{"version": 1, "block": 1024, "files": {"a": {"bytes": 1025, "sha256": ["x"]}}}',
        '{"version": 1, "block": 0, "files": {}}',
    ],
)
def test_a_manifest_of_strangers_is_refused(small: None, tmp_path: Path, content: str) -> None:
    (tmp_path / checksums.CHECKSUMS).write_text(content)
    with pytest.raises(CheckpointError, match=r"checksums\.json"):
        read_checksums(tmp_path)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=3))
def test_a_manifest_tells_sizes_and_blocks(small: None, lengths: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, length in enumerate(lengths):
            (folder / str(i)).write_bytes(bytes(length))
        write_checksums(folder, map(str, range(len(lengths))))
        for sums in read_checksums(folder).values():
            sums.check_file()
            with sums.path.open("ab") as stream:
                stream.write(b"\0")
            with pytest.raises(CheckpointError, match="were written"):
                sums.check_file()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s") / "set"
    rng = np.random.default_rng(0)
    documents = [
        Document(tokens=rng.integers(0, 96, length), learn=rng.integers(0, 2, length).astype(bool))
        for length in (5, 30, 7, 60)
    ]
    write_shards(folder, documents, vocab_size=96, about={"tokenizer": "t"}, shard_tokens=32)
    return folder


@settings(max_examples=80)
@given(bit=st.integers(0, 1 << 40), which=st.integers(0, 1 << 20))
def test_every_flipped_bit_of_a_packed_set_is_found(packed: Path, bit: int, which: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(packed, Path(name) / "s"))
        sides = (".tokens", ".ends", ".marks", ".learn")
        files = [file for file in sorted(folder.iterdir()) if file.suffix in sides]
        flip(files[which % len(files)], bit)
        with pytest.raises(CheckpointError):
            read_set(folder)


def read_set(folder: Path) -> None:
    data = ShardSet(folder)
    for document in range(len(data)):
        data.read(document, 0, int(data.lengths[document]))
