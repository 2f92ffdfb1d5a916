"""Where this package keeps files: one folder of the user's, and folders in it that a variable may move."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minicpm4.errors import ConfigError

__all__ = ["cache_folder", "cache_home", "from_user", "models_home"]


def from_user(text: str) -> Path:
    """The path that somebody wrote as ``text``: ~ is a home folder. Raises ConfigError where nobody knows
    it."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError) as error:  # the second: of names that no user can have
        raise ConfigError(
            f"the home folder in {text!r:.200} is not known here", "write out which folder is meant"
        ) from error


def cache_home() -> Path:
    """The folder of everything that is kept: $MINICPM4_HOME, else ``minicpm4`` in the user's cache. Raises
    ConfigError."""
    home = os.environ.get("MINICPM4_HOME")
    if home:
        return from_user(home)
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or from_user("~") / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = from_user("~") / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or from_user("~") / ".cache")
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
    return from_user(place) if place else cache_home() / name
