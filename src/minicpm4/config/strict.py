"""Build frozen dataclasses from untrusted mappings: unknown keys refused, types checked."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar

from minicpm4.errors import ConfigError

T = TypeVar("T")


def suggest(name: str, known: list[str]) -> str:
    """``did you mean 'x'?`` with the nearest of ``known``, else the whole list."""
    import difflib  # only messages of refusal need it

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Return ``cls(**mapping)`` after checking every key and scalar type.

    ``where`` names the source in errors. Raises ConfigError.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} is a {type(mapping).__name__}, not a table of settings")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key!r}", suggest(str(key), known))
        values[key] = check_scalar(value, hints[key], f"{where}.{key}")
    return cls(**values)


def check_scalar(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` if it fits the scalar type ``hint`` (int fits float), else raise ConfigError."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        right = type(value) is hint
        if not right or (hint is float and not math.isfinite(value)):
            raise ConfigError(f"{where} = {value!r} is not a valid {hint.__name__}")
    return value


def from_table(cls: type[T], table: Any, where: str) -> T:
    """Return ``cls`` from a nested table (of TOML or JSON), its parts by their type hints: scalars, other
    dataclasses, tuples and string-keyed mappings of these. Lists become tuples. Raises ConfigError."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is a {type(table).__name__}, not a table of settings")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key!r}", suggest(str(key), list(known)))
        values[key] = _convert(value, hints[key], f"{where}.{key}" if where else str(key))
    for name, entry in known.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{where or 'the table'} lacks {name}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):  # X | None: absence is a missing key
        return _convert(value, next(arg for arg in args if arg is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {value!r} is not a list")
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r} is not a table")
        return {key: _convert(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return from_table(hint, value, where)
    return check_scalar(value, hint, where)


def require(condition: bool, message: str, remedy: str = "") -> None:
    """Raise ConfigError(message, remedy) unless ``condition``."""
    if not condition:
        raise ConfigError(message, remedy)
