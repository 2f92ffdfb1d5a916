"""Where this package keeps files: one folder of the user's, and folders in it that a variable may move."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_folder", "cache_home", "models_home"]


def cache_home() -> Path:
    """The folder of everything that is kept: $MINICPM4_HOME, else ``minicpm4`` in the user's cache."""
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


def models_home() -> Path:
    """The folder of downloads: ``models`` in ``cache_home``."""
    return cache_home() / "models"


def cache_folder(name: str, variable: str) -> Path | None:
    """The folder of one cache: what ``variable`` of the environment says, else ``name`` beside the downloads;
    None where it says "off": nothing is kept, nothing is looked up."""
    place = os.environ.get(variable, "").strip()
    if place.lower() == "off":
        return None
    return Path(place).expanduser() if place else cache_home() / name
