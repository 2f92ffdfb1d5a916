"""Shards hold what was written; what is damaged is refused; a rerun goes on where the last one was cut
off."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from minicpm4.data.shards import Document, ShardSet, is_set, owns, write_shards
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
    _forge(file, np.fromfile(file, "<i8")[::-1])


def _forge(file: Path, values: NDArray) -> None:
    """Write what a hostile set may hold, and its hash."""
    values.tofile(file)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    hashes = manifest["shards"][int(file.stem)]["sha256"]
    hashes[file.suffix[1:]] = hashlib.sha256(file.read_bytes()).hexdigest()
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


def _wrapping(folder: Path) -> None:
    file = folder / "00000.ends"
    ends = np.fromfile(file, "<i8")
    ends[1:3] = [(1 << 63) - 1, -3]  # each less the one before it, in int64, is above 0
    _forge(file, ends)


def _renamed(folder: Path) -> None:
    (folder / "00001.learn").rename(folder / "00009.learn")


def _changed(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def _cut(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text()[:-9])


def _hostile(folder: Path) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["shards"][0]["tokens"] = 1 << 60
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_shorter, "bytes"),
        (_disorder, "rise"),
        (_wrapping, "rise"),
        (_hostile, "bytes"),
        (_renamed, r"00001.learn has -1 bytes"),
        (_cut, "is not JSON"),
        (_changed(version=9), "no manifest of version 1"),
        (_changed(vocab_size="70000"), "no manifest"),
        (_changed(vocab_size=True), "no manifest"),
        (_changed(vocab_size=1 << 60), "no manifest"),
        (_changed(shards={}), "no manifest"),
        (_changed(bytes=3), "no manifest"),
        (_changed(shards=[7]), "shard 0 of .* is not described"),
        (_changed(shards=[{"tokens": 1, "documents": 1}]), "shard 0 of .* is not described"),
        (_changed(shards=[{"tokens": float("inf"), "documents": 1, "sha256": {}}]), "Infinity is no"),
        (_changed(shards=[{"tokens": -4, "documents": -1, "sha256": {}}]), "bytes"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    write(tmp_path, documents())
    damage(tmp_path)
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


def test_a_token_outside_the_vocabulary_is_found_as_it_is_read(tmp_path: Path) -> None:
    found = write(tmp_path, documents())
    _forge(tmp_path / "00000.tokens", np.full(found.manifest["shards"][0]["tokens"], 70000, "<u4"))
    found = ShardSet(tmp_path)
    with pytest.raises(CheckpointError, match=r"00000.tokens holds token 70000, its vocabulary has 70000"):
        found.read(0, 0, 5)


@pytest.mark.parametrize("after", range(0, 21, 3))
def test_wherever_it_was_cut_off_a_rerun_gives_the_same_set(tmp_path: Path, after: int) -> None:
    made = documents()

    def cut() -> Iterator[Document]:
        yield from made[:after]
        raise OSError("no space left")

    with pytest.raises(CheckpointError, match=r"no space left. free space there and run it again"):
        write(tmp_path / "cut", cut())
    killed = tmp_path / "cut" / ".00009.tokens.0a1b2c3d.part"  # of a write that was cut off
    killed.mkdir()
    for name in ("lock", "new"):
        (killed / name).touch()
    found = write(tmp_path / "cut", made)
    assert found.hash == write(tmp_path / "whole", made).hash
    left = {file.name for file in (tmp_path / "cut").iterdir()}
    assert left == {file.name for file in (tmp_path / "whole").iterdir()}
    found.verify()


def test_a_beginning_made_otherwise_is_not_gone_on_from(tmp_path: Path) -> None:
    def cut() -> Iterator[Document]:
        yield from documents()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, cut())
    with pytest.raises(CheckpointError, match="the beginning of a set made otherwise"):
        write_shards(tmp_path, documents(), vocab_size=70000, about={"tokenizer": "x"}, shard_tokens=64)


@pytest.mark.parametrize(("vocab_size", "nbytes"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_tokens_take_two_bytes_where_they_can(tmp_path: Path, vocab_size: int, nbytes: int) -> None:
    made = [Document(tokens=np.array([0, vocab_size - 1]))]
    found = write_shards(tmp_path, made, vocab_size=vocab_size, about=ABOUT)
    assert (tmp_path / "00000.tokens").stat().st_size == 2 * nbytes
    assert found.read(0, 0, 2)[0].tolist() == [0, vocab_size - 1]


def test_empty_documents_and_empty_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a document has no tokens"):
        write(tmp_path / "a", [Document(tokens=np.zeros(0, np.int64))])
    found = write(tmp_path / "b", [])
    assert len(found) == found.num_tokens == 0 and len(ShardSet(tmp_path / "b")) == 0


def test_what_a_set_is_made_of_may_hold_tuples(tmp_path: Path) -> None:
    about = {**ABOUT, "lengths": (1, 2), "deep": {"names": ("a",)}}
    for _ in range(2):
        write_shards(tmp_path, documents(), vocab_size=70000, about=about, shard_tokens=64)


def test_a_second_call_waits_for_the_first_and_takes_its_set(tmp_path: Path) -> None:
    made, inside, go_on, found = documents(), threading.Event(), threading.Event(), []

    def slow() -> Iterator[Document]:
        yield from made[:13]
        inside.set()
        assert go_on.wait(60)
        yield from made[13:]

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.set()

    first = threading.Thread(target=lambda: found.append(write(tmp_path, slow())))
    first.start()
    assert inside.wait(60)
    told = Told()
    logging.getLogger("minicpm4").addHandler(told)
    rest = iter(made)
    second = write(tmp_path, rest)
    logging.getLogger("minicpm4").removeHandler(told)
    go_on.set()
    first.join()
    assert second.hash == found[0].hash and len(list(rest)) == len(made)  # it has made nothing
    second.verify()


def test_a_set_knows_its_own_files(tmp_path: Path) -> None:
    assert not is_set(tmp_path)
    documents = [Document(tokens=np.arange(3)), Document(tokens=np.arange(2), learn=np.array([True, False]))]
    write_shards(tmp_path, documents, vocab_size=9, about={}, shard_tokens=1)
    assert is_set(tmp_path) and all(owns(file.name) for file in tmp_path.iterdir())
    assert owns(".00001.learn.0123abcd.part") and owns("00001.json")
    assert not any(map(owns, ("notes.txt", "0.tokens", "00001.tokens.bak", "manifest")))
