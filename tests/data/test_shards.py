"""Shards hold what was written; what is damaged is refused; a rerun goes on where the last one was cut
off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.errors import CheckpointError, ConfigError

ABOUT = {"tokenizer": "abc"}


def documents(count: int = 20, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        tokens = rng.integers(0, 70000, int(rng.integers(1, 30)))
        made.append(Document(tokens=tokens, learn=rng.random(len(tokens)) < 0.5 if index % 2 else None))
    return made


def write(folder: Path, given: list[Document] | Iterator[Document]) -> ShardSet:
    return write_shards(folder, given, vocab_size=70000, about=ABOUT, shard_tokens=64)


def test_documents_come_back(tmp_path: Path) -> None:
    made = documents()
    found = write(tmp_path / "s", made)
    assert len(found) == len(made) and found.num_tokens == sum(len(d.tokens) for d in made)
    for index, document in enumerate(made):
        tokens, learn = found.read(index, 0, 1000)
        assert np.array_equal(tokens, document.tokens)
        wanted = np.ones(len(tokens), bool) if document.learn is None else document.learn
        assert learn is None or np.array_equal(learn, wanted)
    found.verify()


def test_a_rerun_goes_on_after_the_last_whole_shard(tmp_path: Path) -> None:
    made = documents()

    def cut() -> Iterator[Document]:
        yield from made[:13]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", cut())
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("*.tokens")}
    assert written
    again, whole = write(tmp_path / "cut", made), write(tmp_path / "whole", made)
    assert again.hash == whole.hash
    assert all(file.stat().st_mtime_ns == when for file, when in written.items())


def _shorter(folder: Path) -> None:
    file = folder / "00000.tokens"
    file.write_bytes(file.read_bytes()[:-4])


def _disorder(folder: Path) -> None:
    file = folder / "00001.ends"
    np.fromfile(file, "<i8")[::-1].tofile(file)


def _hostile(folder: Path) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["shards"][0]["tokens"] = 1 << 60
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(("damage", "said"), [(_shorter, "bytes"), (_disorder, "rise"), (_hostile, "bytes")])
def test_damage_is_refused(tmp_path: Path, damage: object, said: str) -> None:
    write(tmp_path, documents())
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=said):
        ShardSet(tmp_path)


def test_a_changed_byte_is_found_on_request(tmp_path: Path) -> None:
    found = write(tmp_path, documents())
    file = tmp_path / "00000.tokens"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        found.verify()


def test_another_tokenizer_another_recipe_and_odd_tokens_are_refused(tmp_path: Path) -> None:
    found = write(tmp_path, documents())
    with pytest.raises(ConfigError, match="tokenizer abc"):
        found.check_tokenizer("xyz")
    with pytest.raises(CheckpointError, match="made otherwise"):
        write_shards(tmp_path, documents(), vocab_size=70000, about={"tokenizer": "other"})
    with pytest.raises(ConfigError, match="vocabulary"):
        write_shards(tmp_path / "o", [Document(tokens=np.array([70000]))], vocab_size=70000, about=ABOUT)
