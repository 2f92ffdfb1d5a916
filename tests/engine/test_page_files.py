"""Pages kept in files: what is read is what was written, and nothing that was tampered with is read."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.page_files import PageFiles, check_folder
from minicpm4.engine.pages import PageAllocator, PageKey
from minicpm4.engine.sequence import Sequence
from minicpm4.errors import ConfigError
from minicpm4.model.cache import KVPool
from tests.engine.test_plan import config

SIZE = 16
SPARSE = SparseConfig(kernel_size=8, kernel_stride=4, block_size=SIZE, window_size=32, topk=2)
Open = Callable[..., PageFiles]


def pool(kv: Any = "bf16", sparse: SparseConfig | None = SPARSE) -> KVPool:
    """Pages of random bytes."""
    made, rng = KVPool(config(), num_pages=6, page_size=SIZE, kv=kv, sparse=sparse), np.random.default_rng(0)
    for page in range(6):
        made.write_page(page, rng.integers(0, 256, made.page_nbytes).astype(np.uint8))
    return made


def bytes_of(one: KVPool, page: int) -> bytes:
    out = np.empty(one.page_nbytes, np.uint8)
    one.read_page(page, out)
    return out.tobytes()


def keys(*tokens: int, count: int = 1) -> list[PageKey]:
    """Of a chain of pages that begins with ``tokens``."""
    text = [*tokens, *[7] * (count * SIZE + 1 - len(tokens))]
    pages, found = PageAllocator(count + 1, SIZE), []
    for length in range(SIZE + 1, count * SIZE + 2, SIZE):
        one = Sequence(0, text[:length], limit=1000)
        key = pages.missing(one)
        assert key is not None
        found.append(key)
        pages.bring(one, lambda page, key: True, 9)
    return found


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    made: list[PageFiles] = []

    def start(one: KVPool, key: bytes = b"model", most: int = 10**9) -> PageFiles:
        made.append(PageFiles(tmp_path / "cache", key, one, most))
        return made[-1]

    yield start
    for one in made:
        one.close()


def saved(opened: Open, *args: Any, **more: Any) -> None:
    """Pages 0, 1, … of a pool under some keys, one after another."""
    one, which = args
    files = opened(one, **more)
    for page, key in enumerate(which):
        assert files.save(page % 6, key, 5.0)
    files.close()


def paths(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.page"))


@pytest.mark.parametrize("kv", ["bf16", "int8", "float32"])
@pytest.mark.parametrize("sparse", [None, SPARSE])
def test_a_page_comes_back_bit_for_bit(opened: Open, kv: str, sparse: SparseConfig | None) -> None:
    one, other = pool(kv, sparse), pool(kv, sparse)
    wanted = bytes_of(one, 0)
    (key,) = keys(1, 2, 3)
    saved(opened, one, [key])
    files = opened(other)
    assert files.has(key) and files.fill(4, key)
    assert bytes_of(other, 4) == wanted
    assert bytes_of(other, 3) == bytes_of(one, 3) and bytes_of(other, 5) == bytes_of(one, 5)


def test_files_are_the_users_alone(opened: Open, tmp_path: Path) -> None:
    saved(opened, pool(), keys(1))
    (file,) = paths(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_another_model_or_text_finds_nothing(opened: Open) -> None:
    saved(opened, pool(), keys(1))
    other = opened(pool(), key=b"other")
    assert not other.has(*keys(1)) and not other.fill(0, *keys(1))
    assert not opened(pool()).fill(0, *keys(2))


@pytest.mark.parametrize("place", [0, 20, 90, 110, 200, 1000, -40, -1])
def test_a_changed_byte_is_found(
    opened: Open, tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    one = pool()
    saved(opened, one, keys(1))
    (file,) = paths(tmp_path)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    before = bytes_of(one, 5)
    files = opened(one)
    with caplog.at_level(logging.WARNING, "minicpm4"):
        assert not files.fill(5, *keys(1)) and not files.has(*keys(1))
        assert not files.fill(5, *keys(1))
    assert bytes_of(one, 5) == before
    assert len(caplog.records) == 1 and str(file) in caplog.text


def test_what_is_damaged_is_written_anew(opened: Open, tmp_path: Path) -> None:
    one = pool()
    saved(opened, one, keys(1))
    (file,) = paths(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    files = opened(one)
    assert not files.fill(5, *keys(1))
    assert files.save(0, *keys(1), patience=5.0)
    files.close()
    assert file.read_bytes() == whole


@pytest.mark.parametrize("kind", ["empty", "long", "folder", "pipe", "link", "other name"])
def test_what_is_no_such_file_is_ignored(opened: Open, tmp_path: Path, kind: str) -> None:
    one = pool()
    saved(opened, one, keys(1))
    (file,) = paths(tmp_path)
    whole = file.read_bytes()
    file.unlink()
    elsewhere = tmp_path / "elsewhere"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        elsewhere.write_bytes(b"another's")
        file.symlink_to(elsewhere)
    elif kind == "other name":  # the file of other tokens, under this name
        saved(opened, one, keys(2))
        paths(tmp_path)[0].rename(file)
    else:
        file.write_bytes(b"" if kind == "empty" else whole + b"x")
    again = opened(one)
    assert not again.fill(5, *keys(1))
    # The page takes its place: no writing waits for a pipe's reader, or follows a link.
    assert again.save(0, *keys(1), patience=5.0)
    again.close()
    assert kind == "folder" or (file.read_bytes() == whole and not file.is_symlink())
    assert kind != "link" or elsewhere.read_bytes() == b"another's"


def test_the_longest_unused_leaves_first_and_no_page_before_what_follows_it(
    opened: Open, tmp_path: Path
) -> None:
    one = pool()
    chains = [keys(start, count=3) for start in (1, 2, 3)]
    saved(opened, one, [key for chain in chains for key in chain])
    size = paths(tmp_path)[0].stat().st_size
    files = opened(one)
    old = time.time() - 1000
    for age, chain in enumerate(chains):
        for key in chain:
            os.utime(files._path(key), (old + age, old + age))
    assert files.fill(5, chains[0][0])  # used just now: its followers are old all the same
    full = opened(one, most=8 * size)
    (more,) = keys(4)
    assert full.save(0, more, 5.0)
    full.close()
    left = [[full.has(key) for key in chain] for chain in chains]
    assert full.has(more) and sum(file.stat().st_size for file in paths(tmp_path)) <= 8 * size
    assert left[0] == [True, False, False] and left[2] == [True, True, True]
    assert left[1] == sorted(left[1], reverse=True)


def test_names_that_follow_each_other_in_a_circle_are_removed_too(opened: Open, tmp_path: Path) -> None:
    one = pool()
    saved(opened, one, keys(1))
    (file,) = paths(tmp_path)
    size, (first, other) = file.stat().st_size, ("aa" * 16, "bb" * 16)
    for name in (f"{first}-{other}", f"{other}-{first}", f"{'cc' * 16}-{'cc' * 16}"):
        file.with_name(f"{name}.page").write_bytes(file.read_bytes())
    saved(opened, one, keys(2), most=2 * size)
    assert len(paths(tmp_path)) <= 2


def test_all_files_together_stay_within_the_bound(opened: Open, tmp_path: Path) -> None:
    one = pool()
    saved(opened, one, keys(9))
    size = paths(tmp_path)[0].stat().st_size
    saved(opened, one, [key for start in range(12) for key in keys(start, count=2)], most=10 * size)
    assert 6 <= len(paths(tmp_path)) <= 10
    # Another model's files count as well, and are removed as well.
    saved(opened, one, [key for start in range(6) for key in keys(start, count=2)], most=10 * size, key=b"b")
    assert 6 <= len(paths(tmp_path)) <= 10


def test_a_page_that_never_fits_is_said_and_not_written(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(opened, pool(), keys(1, count=3), most=100)
    assert paths(tmp_path) == [] and caplog.text.count("no more pages are kept") == 1


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot keep pages"):
        check_folder(tmp_path / "file" / "cache")


def test_a_disk_that_fails_costs_no_answer(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = opened(pool())
    for first in "0123456789abcdef":
        for second in "0123456789abcdef":
            (files._own / (first + second)).write_text("", encoding="utf-8")  # where folders should be
    for key in keys(1, count=3):
        assert files.save(0, key, 5.0)
    files.close()
    assert caplog.text.count("no more pages are kept") == 1
    assert files.save(0, *keys(2))


def test_an_interrupted_copy_costs_no_room(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for few copies: as many interrupts would have ended the keeping for good."""
    one = pool()
    files = opened(one)

    def interrupted(page: int, into: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one, "read_page", interrupted)
        for key in keys(*range(64), count=1) * 20:
            with pytest.raises(KeyboardInterrupt):
                files.save(0, key)
    (key,) = keys(*range(64))
    assert files.save(0, key, 5.0)
    files.close()
    assert files.has(key)
