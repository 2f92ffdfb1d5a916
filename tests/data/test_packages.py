"""Packages by name: what is no name is refused, what is fetched stays inside its folder, what cannot be
had is said in one line. Stand-ins for the indexes: a folder of wheels, an apt-get of our own."""

from __future__ import annotations

import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.data import packages
from minicpm4.data.packages import fetch_package
from minicpm4.data.sources import files_of, texts
from minicpm4.errors import ConfigError, UnsupportedError

PROSE = "Something to read. " * 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, a cache of its own, a folder of wheels."""
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "wheels").mkdir()
    return tmp_path / "home" / "packages"


def wheel(folder: Path, name: str = "demo", **files: str) -> None:
    """A wheel of version 1.0 with ``files`` beside its metadata."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
        for file, text in files.items():
            archive.writestr(file, text)


@pytest.mark.parametrize(
    "name",
    ["", "apt:", "demo", "npm:demo", "apt:../x", "apt:-o=x", "pip:a b", "apt:a|", "apt:a|../b", "pip:http://x/y",
     "apt:a/b", "apt:" + "a" * 200, "apt:a\n"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"names no package. write apt:NAME or pip:NAME==VERSION"):
        fetch_package(name)


def test_a_wheel_is_unpacked_once_and_stays_inside(tmp_path: Path, home: Path) -> None:
    hostile = {"../../../out.txt": "x", "/abs.txt": "y", "demo/s.py": "1/0", "demo-1.0.dist-info/t.txt": "z"}
    wheel(tmp_path / "wheels", **{"demo/a.txt": PROSE}, **hostile)
    found = fetch_package("pip:demo==1.0")
    assert found == home / "pip--demo==1.0" and (found / "demo" / "a.txt").read_text() == PROSE
    outside = [p for p in tmp_path.rglob("*.txt") if not p.is_relative_to(found)]
    assert outside == [] and sorted(p.name for p in home.iterdir()) == [".lock", found.name]
    shutil.rmtree(tmp_path / "wheels")
    assert fetch_package("PIP:demo==1.0") == found
    names = {file.name for file in files_of("package", ["pip:demo==1.0"])}
    assert names == {"a.txt", "out.txt", "abs.txt"}


def test_a_wheel_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "wheels", **{"demo/a.txt": "0" * 100_000})
    monkeypatch.setattr(packages, "MAX_UNPACKED", 50_000)
    with pytest.raises(UnsupportedError, match="unpacks to over 50,000 bytes"):
        fetch_package("pip:demo==1.0")


def _names_no_text(raw: bytes) -> bytes:
    return raw.replace("é.txt".encode(), b"\xc3\x01.txt")


def _names_nothing(raw: bytes) -> bytes:
    return raw.replace("é.txt".encode(), b"\0" * 6)


def _packed_wrongly(raw: bytes) -> bytes:
    at = raw.index(PROSE[:8].encode())
    made = bytearray(raw.replace(PROSE.encode(), b"\xff" * len(PROSE)))
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # of LZMA, they say
        first = made.rfind(mark, 0, at) if offset == 8 else made.rfind(mark)
        made[first + offset] = 14
    return bytes(made)


@pytest.mark.parametrize("damage", [_names_no_text, _names_nothing, _packed_wrongly, lambda raw: raw[:-30]])
def test_a_damaged_wheel_is_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    wheel(tmp_path, **{"é.txt": PROSE})
    (file,) = tmp_path.glob("*.whl")
    file.write_bytes(damage(file.read_bytes()))
    monkeypatch.setattr(packages, "_download_wheel", lambda name, folder: file)
    with pytest.raises(
        UnsupportedError, match=r"cannot unpack demo-1\.0.*\.whl: .+where it is damaged, fetch it"
    ):
        fetch_package("pip:demo==1.0")
    assert [p.name for p in home.iterdir()] == [".lock"]


def test_a_wheel_that_cannot_be_had(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match="pip:demo names no version"):
        fetch_package("pip:demo")
    with pytest.raises(UnsupportedError, match=r"pip cannot download demo==1.0: ERROR.*text of your own"):
        fetch_package("pip:demo==1.0")
    assert [p.name for p in home.iterdir()] == [".lock"]


def test_without_apt_the_message_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(UnsupportedError, match=r"there is no apt-get here. on a system without apt"):
        fetch_package("apt:some-doc")


def apt_get(folder: Path, monkeypatch: pytest.MonkeyPatch, *, body: str) -> None:
    folder.mkdir()
    tool = folder / "apt-get"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def deb(folder: Path) -> None:
    """Make ``folder``/d.deb of what is in root there."""
    (folder / "root" / "DEBIAN").mkdir(parents=True)
    (folder / "root" / "DEBIAN" / "control").write_text(
        "Package: demo-doc\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    made = ["dpkg-deb", "-b", str(folder / "root"), str(folder / "d.deb")]
    subprocess.run(made, check=True, capture_output=True)


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


@needs_dpkg
def test_a_package_of_debian_is_unpacked_and_its_pages_are_read(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "root" / "usr" / "share" / "doc" / "demo"
    (docs / "_sources").mkdir(parents=True)
    (docs / "a.html").write_text(f"<p>{PROSE}")
    (docs / "_sources" / "a.rst.txt").write_text(PROSE)
    (docs / "link.txt").symlink_to("/etc/hostname")
    deb(tmp_path)
    only = f'for last; do :; done; [ "$last" = demo-doc ] || exit 100; cp {tmp_path}/d.deb demo.deb'
    apt_get(tmp_path / "bin", monkeypatch, body=only)
    files = files_of("package", ["apt:newer-doc|demo-doc"])
    assert [file.name for file in files] == ["a.html"] and files[0].is_relative_to(home / "apt--demo-doc")
    assert list(texts("package", files)) == [PROSE.strip()]


@needs_dpkg
def test_a_package_of_debian_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.txt").write_bytes(bytes(1 << 20))
    deb(tmp_path)
    apt_get(tmp_path / "bin", monkeypatch, body=f"cp {tmp_path}/d.deb demo.deb")
    monkeypatch.setattr(packages, "MAX_UNPACKED", 1 << 19)
    assert (tmp_path / "d.deb").stat().st_size < 1 << 16
    with pytest.raises(UnsupportedError, match=r"demo\.deb unpacks to over 524,288 bytes"):
        fetch_package("apt:demo-doc")
    assert [p.name for p in home.iterdir()] == [".lock"]


@needs_dpkg
def test_apt_s_own_reason_is_given(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_get(
        tmp_path / "bin",
        monkeypatch,
        body="echo 'W: x' >&2; echo 'E: Unable to locate package' >&2; exit 100",
    )
    said = r"apt-get cannot download none-doc: E: Unable to locate package. check the network and the name"
    with pytest.raises(UnsupportedError, match=said):
        fetch_package("apt:none-doc")
    assert [p.name for p in home.iterdir()] == [".lock"]
