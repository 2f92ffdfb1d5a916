"""Whole or not at all: at every kill, beside other writers, on a full disk; and nothing is left behind."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from minicpm4.files import (
    Part,
    check_writing,
    finite,
    json_text,
    sweep,
    whole,
    write_file,
    write_json,
    writing,
    writing_folder,
    writing_path,
)

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX")

# Writes "new" over "old" in a child for each call of the system that writing makes, and ends it there.
KILLED = """
import os, sys
from pathlib import Path
from minicpm4.files import sweep, whole, write_file, writing_folder

top, kind, swap = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "swap"
if not swap:
    whole._swapped = lambda one, other: False
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
left = None

def hook(event, args):
    global left
    if left is not None and (event in EVENTS):
        left -= 1
        if left < 0:
            os._exit(9)

def write(place, text):
    if kind == "file":
        write_file(place / "it", text, durable=True)
    else:
        with writing_folder(place / "it", durable=True) as folder:
            for name in "ab":
                (folder / name).write_text(text)

def read(place):
    files = [place / "it"] if kind == "file" else sorted((place / "it").iterdir())
    return [file.read_text() for file in files]

sys.addaudithook(hook)
for number in range(1000):
    place = top / str(number)
    place.mkdir()
    write(place, "old")
    child = os.fork()
    if not child:
        left = number
        write(place, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sweep(place)
    found = read(place)
    assert len(found) == (1 if kind == "file" else 2) and len(set(found)) == 1, (number, found)
    assert [path.name for path in place.iterdir()] == ["it"], (number, sorted(place.iterdir()))
    if code == 0:
        assert found[0] == "new"
        break
print(number)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@POSIX
@pytest.mark.parametrize(("kind", "way"), [("file", "swap"), ("folder", "swap"), ("folder", "two renames")])
def test_killed_at_every_step_the_old_or_the_new_is_there(kind: str, way: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), kind, way], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6  # so many steps there are at least


def test_a_failure_keeps_the_old_and_leaves_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "old")
    with suppress(KeyError), writing(tmp_path / "a") as out:
        out.write(b"half")
        raise KeyError
    with suppress(KeyError), writing_folder(tmp_path / "f") as folder:
        (folder / "x").touch()
        raise KeyError
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("call", ["rename", "fsync", "mkdir", "open"])
def test_a_refusal_of_the_system_keeps_the_old(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "_swapped", lambda one, other: False)
    for folder in ("f", "g"):
        (tmp_path / folder).mkdir()
        write_file(tmp_path / folder / "x", "old")

    def refuse(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("rename", "replace") if call == "rename" else (call,):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(OSError, match="No space"), writing_folder(tmp_path / "f", durable=True) as new:
        (new / "x").touch()
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "g" / "x", "new", durable=True)
    monkeypatch.undo()
    assert (tmp_path / "f" / "x").read_text() == (tmp_path / "g" / "x").read_text() == "old"
    assert names(tmp_path) == ["f", "g"] and names(tmp_path / "g") == ["x"]


def test_a_part_that_could_not_be_removed_is_not_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EBUSY, "in use", str(path))

    with writing_folder(tmp_path / "made") as new:
        (new / "model").mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refused)
            write_file(new / "a", "x")
            write_file(new / "model" / "b", "x")
        assert len(list(new.rglob("*.part"))) == 2
    assert sorted(path.name for path in (tmp_path / "made").rglob("*")) == ["a", "b", "model"]


def test_the_second_of_two_renames_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    rename = os.rename

    def second_fails(source: Path, target: Path) -> None:
        calls.append(str(source))
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    with writing_folder(tmp_path / "f") as folder:
        (folder / "old").touch()
    monkeypatch.setattr(whole, "_swapped", lambda one, other: False)
    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"), writing_folder(tmp_path / "f") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["new"]


def no_links(*_: Any) -> None:
    """In the place of os.link, where the file system has no hard links."""
    raise OSError(errno.EPERM, "Operation not permitted")


def write_fresh(path: Path, kind: str) -> None:
    if kind == "file":
        with writing_path(path, fresh=True) as file:
            file.write_text("new")
    else:
        with writing_folder(path, fresh=True) as folder:
            (folder / "x").write_text("new")


@pytest.mark.parametrize("links", [True, False])
def test_a_fresh_name_is_taken_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """``links``: whether the file system has hard links."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for kind in ("file", "folder"):
        write_fresh(tmp_path / "it", kind)
        assert names(tmp_path) == ["it"]
        for other in ("file", "folder"):
            with pytest.raises(FileExistsError, match="it"):
                write_fresh(tmp_path / "it", other)
            assert names(tmp_path) == ["it"]
        if kind == "file":
            (tmp_path / "it").unlink()
            (tmp_path / "it").mkdir()  # an empty folder is nothing to a folder
            with pytest.raises(FileExistsError):
                write_fresh(tmp_path / "it", "file")


FULL = """
import resource, sys
from pathlib import Path
from minicpm4.files import write_file, writing_folder
place = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk that is full after so many bytes
for kind in "file", "folder":
    try:
        if kind == "file":
            write_file(place / "a", "new" * 1000)
        else:
            with writing_folder(place / "f") as folder:
                write_file(folder / "x", "new" * 1000)
    except OSError as error:
        print(error.strerror)
"""


@POSIX
def test_a_full_disk_keeps_the_old(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "old")
    with writing_folder(tmp_path / "f") as folder:
        write_file(folder / "x", "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\nFile too large\n"
    assert (tmp_path / "a").read_text() == (tmp_path / "f" / "x").read_text() == "old"
    assert names(tmp_path) == ["a", "f"] and names(tmp_path / "f") == ["x"]


def test_a_place_is_checked_without_a_trace(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "old")
    for name in ("a", "b"):
        check_writing(tmp_path / name)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    for wrong in (tmp_path, tmp_path / "none" / "x", tmp_path / "a" / "x"):
        with pytest.raises(OSError, match="directory"):
            check_writing(wrong)


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    def write(text: str) -> None:
        for _ in range(20):
            write_file(tmp_path / "a", text * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = (tmp_path / "a").read_text()
    assert len(found) == 100_000 and len(set(found)) == 1 and names(tmp_path) == ["a"]


def test_a_living_part_is_left_alone(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as out:
        write_file(tmp_path / "a", "another's")
        sweep(tmp_path)
        out.write(b"mine")
    assert (tmp_path / "a").read_text() == "mine" and names(tmp_path) == ["a"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    kept = ["model.gguf.0123456789ab.part", ".x.part", "x.0a1b2c3d.part", ".x.0a1b2c3d.part"]
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    write_file(tmp_path / "a", "")
    assert names(tmp_path) == sorted([*kept, "a"])


@POSIX
def test_a_link_that_looks_like_a_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("lock", "new"):
        (tmp_path / "mine" / name).touch()
    (tmp_path / ".x.0a1b2c3d.part").symlink_to(tmp_path / "mine")
    sweep(tmp_path)
    assert names(tmp_path / "mine") == ["lock", "new"]


@POSIX
def test_modes_are_the_users_wish(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with writing_path(tmp_path / "a") as part:
            part.touch(0o600)
        write_file(tmp_path / "b", "")
        with writing(tmp_path / "c", private=True):
            (part,) = tmp_path.glob(".c.*.part")
            assert stat.S_IMODE(part.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    (tmp_path / "b").chmod(0o600)
    write_file(tmp_path / "b", "again")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"]
    assert modes == [0o640, 0o600, 0o600]


@POSIX
def test_links_are_followed_and_streams_written_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    write_file(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_text() == "text"
    write_file(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    code = "from pathlib import Path; from minicpm4.files import write_file; print('a', flush=True); "
    code += "write_file(Path('/dev/stdout'), 'b'); print('c')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert Path("/dev/stdout").is_symlink() and names(tmp_path) == ["folder", "link", "out"]


def test_a_part_that_processes_share(tmp_path: Path) -> None:
    first, second = (Part(tmp_path / "f", "00000000") for _ in range(2))
    first.begin(folder=True)
    (second.new / "x").touch()
    first.commit()
    for part in (first, second):
        part.discard()
    assert names(tmp_path / "f") == ["x"] and names(tmp_path) == ["f"]


def test_json_holds_finite_numbers_only(tmp_path: Path) -> None:
    value = {"a": [1, float("nan"), (float("inf"), 2.5)], "b": {"c": -float("inf")}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", value)
    assert finite(value) == {"a": [1, None, [None, 2.5]], "b": {"c": None}}
    write_json(tmp_path / "a", finite(value), indent=0)
    assert (tmp_path / "a").read_text().endswith("}\n") and json_text({"ä": 1}) == '{"\\u00e4": 1}'
