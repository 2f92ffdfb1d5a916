"""What long work has done so far, a small file for each piece of it: it goes on where it broke off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.files.reading import read_json
from minicpm4.files.whole import finite, json_text, write_file

__all__ = ["Kept"]

MAX_BYTES = 64 << 20
ABOUT = "about.json"


class Kept:
    """Pieces of work in a folder, by keys of JSON values. ``about``: what decides what the pieces are; a
    folder of other work is refused, and so is a damaged one. Raises ConfigError."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        file = folder / ABOUT
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_file(file, json_text(dict(about), indent=1) + "\n")
            return
        # Not that file alone: what the pieces beside it are would be as unknown.
        anew = f"give another folder, or remove {folder} to begin anew"
        found = read_json(file, MAX_BYTES, ConfigError, anew)
        if about and not found:
            raise ConfigError(f"{file} does not say what was begun", anew)
        for name in {**about, **found}:  # in order: the same is told each time
            if found.get(name) != about.get(name):
                before, now = (repr(each.get(name))[:100] for each in (found, about))
                raise ConfigError(
                    f"{folder} was begun with {name} = {before}, now it is {now}",
                    "give the same, or another folder",
                )

    def get(self, *key: Any) -> Any:
        """What was kept; None: it is still to be done. Raises ConfigError."""
        file = self._file(key)
        if not file.exists():
            return None
        anew = f"remove {file} to have that piece made anew"
        found = read_json(file, MAX_BYTES, ConfigError, anew)
        if "value" not in found:
            raise ConfigError(f"{file} holds no value", anew)
        return found["value"]

    def put(self, value: Any, *key: Any) -> None:
        """Keep a JSON value. Raises OSError."""
        write_file(self._file(key), json_text({"key": list(key), "value": finite(value)}, indent=1) + "\n")

    def _file(self, key: tuple[Any, ...]) -> Path:
        name = hashlib.sha256(json_text(list(key), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{name}.json"
