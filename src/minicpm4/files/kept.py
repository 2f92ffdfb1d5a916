"""What long work has done so far, a small file for each piece of it: it goes on where it broke off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from minicpm4.errors import ConfigError
from minicpm4.files.json_values import finite, json_text
from minicpm4.files.reading import read_json
from minicpm4.files.whole import making, write_file

__all__ = ["Kept", "keeping"]

T = TypeVar("T")
MAX_BYTES = 64 << 20
ABOUT = "about.json"


# What comes of taking a value for what it is not; ConfigError is a ValueError.
_MISREAD = (ValueError, TypeError, KeyError, IndexError, AttributeError)


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

    def get(self, read: Callable[[Any], T], *key: Any) -> T | None:
        """What was kept, as ``read`` makes it of the JSON value; None: it is still to be done. A value that
        ``read`` does not understand is a damaged one: whoever asks says what it needs. Raises ConfigError."""
        file = self._file(key)
        if not file.exists():
            return None
        anew = f"remove {file} to have that piece made anew"
        found = read_json(file, MAX_BYTES, ConfigError, anew)
        if "value" not in found or found.get("key") != json.loads(json_text(list(key))):
            raise ConfigError(f"{file} is not the piece that its name says", anew)
        try:
            return read(found["value"])
        except _MISREAD as error:
            raise ConfigError(
                f"{file} holds something else than such a piece: {error!s:.200}", anew
            ) from error

    def put(self, value: Any, *key: Any) -> None:
        """Keep a JSON value. Raises OSError."""
        write_file(self._file(key), json_text({"key": list(key), "value": finite(value)}, indent=1) + "\n")

    def _file(self, key: tuple[Any, ...]) -> Path:
        name = hashlib.sha256(json_text(list(key), sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / f"{name}.json"


@contextmanager
def keeping(folder: Path, about: Mapping[str, Any]) -> Iterator[Kept]:
    """``Kept`` for a stretch of work: where that ends in an error before there is a piece, the folder is as
    it was. Raises ConfigError."""
    new = not (folder / ABOUT).exists()
    with making(folder):
        kept = Kept(folder, about)
        try:
            yield kept
        except BaseException:
            if new and [one.name for one in folder.iterdir()] == [ABOUT]:
                (folder / ABOUT).unlink()
            raise
