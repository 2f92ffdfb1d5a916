"""Build frozen dataclasses from untrusted mappings: unknown keys refused, types checked."""

from __future__ import annotations

import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, cast

from minicpm4.errors import ConfigError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
MAX_INTEGER = 1 << 63  # no setting is larger, either way


def suggest(name: str, known: list[str], written: Mapping[str, str] | None = None) -> str:
    """``did you mean 'x'?`` with the nearest of ``known``, else the whole list. ``written``: more words, and
    those that are written otherwise."""
    import difflib  # only messages of refusal need it

    words = list({**dict.fromkeys(known), **(written or {})})
    tries = (difflib.get_close_matches(each, words, n=1, cutoff=0.5) for each in (name, name.lower()))
    near = next(filter(None, tries), None)
    if near is None:
        return "known: " + ", ".join(sorted(known))
    return f"did you mean {(written or {}).get(near[0], repr(near[0]))}?"


def nearest_keywords(made: F, elsewhere: Mapping[str, str] | None = None) -> F:
    """Have a function, or a class and its public methods, name the nearest keyword where one is wrong.

    ``elsewhere``: what to write for words that belong into another place. Raises ConfigError, when called.
    """
    if not isinstance(made, type):
        return cast(F, _naming(made, elsewhere or {}))
    for name, one in vars(made).copy().items():
        if inspect.isfunction(one) and (name == "__init__" or not name.startswith("_")):
            setattr(made, name, _naming(one, elsewhere or {}))
    return made


def _naming(made: Callable[..., Any], elsewhere: Mapping[str, str]) -> Callable[..., Any]:
    @functools.wraps(made)
    def call(*args: Any, **values: Any) -> Any:
        try:
            return made(*args, **values)
        except TypeError:
            _refuse_keywords(made, args, values, elsewhere)
            raise

    @functools.wraps(made)
    async def awaited(*args: Any, **values: Any) -> Any:
        return await call(*args, **values)

    return awaited if inspect.iscoroutinefunction(made) else call


def _refuse_keywords(
    made: Callable[..., Any], args: Sequence[Any], values: Mapping[str, Any], elsewhere: Mapping[str, str]
) -> None:
    """Raise ConfigError if ``values`` have a name that ``made`` does not take."""
    taken = inspect.signature(made).parameters
    known = [name for name in taken if name != "self"]
    wrong = next((name for name in values if name not in known), None)
    if wrong is None or any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        return
    called = made.__name__
    if "self" in taken and args:
        called = type(args[0]).__name__ + ("" if called == "__init__" else f".{called}")
    remedy = suggest(wrong, known, {name: how for name, how in elsewhere.items() if name not in known})
    raise ConfigError(f"{called} has no parameter {wrong!r}", remedy) from None


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
            raise ConfigError(f"{where} has an unknown key {shown(key)}", suggest(str(key), known))
        values[key] = check_scalar(value, hints[key], f"{where}.{key}")
    _check_whole(cls, values, where)
    return cls(**values)


def check_scalar(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` if it fits the scalar type ``hint`` (int fits float), else raise ConfigError."""
    if typing.get_origin(hint) is UnionType:  # X | None
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        if value is None:
            return None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} = {shown(value)} is not a valid float") from error
    if hint in (int, float, str, bool):
        right = type(value) is hint
        if not right or (hint is float and not math.isfinite(value)):
            raise ConfigError(f"{where} = {shown(value)} is not a valid {hint.__name__}")
        if hint is int and not -MAX_INTEGER < value < MAX_INTEGER:
            raise ConfigError(f"{where} = {shown(value)} is out of range")
        if hint is str and "\0" in value:  # no name of a file, and nothing else, has one
            raise ConfigError(f"{where} = {shown(value)} holds a NUL character")
    return value


def from_table(cls: type[T], table: Any, where: str, *, any_text: bool = False) -> T:
    """Return ``cls`` from a nested table (of TOML or JSON), its parts by their type hints: scalars, other
    dataclasses, tuples, sequences and string-keyed mappings of these. Lists become tuples; what may be None
    may be JSON's null. ``any_text``: texts are no settings, and may hold NULs. Raises ConfigError."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is a {type(table).__name__}, not a table of settings")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {shown(key)}", suggest(str(key), list(known)))
        values[key] = _convert(value, hints[key], f"{where}.{key}" if where else str(key), any_text)
    _check_whole(cls, values, where)
    return cls(**values)


def _check_whole(cls: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless ``values`` has all fields that have no default."""
    for entry in fields(cls):
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{where or 'the table'} lacks {entry.name}")


def _convert(value: Any, hint: Any, where: str, any_text: bool) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):  # X | None: in TOML, absence is a missing key
        hint = next(arg for arg in args if arg is not type(None))
        return None if value is None else _convert(value, hint, where, any_text)
    if origin in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {shown(value)} is not a list")
        any_length = origin is Sequence or args[1:] == (Ellipsis,)
        hints = [args[0]] * len(value) if any_length else args
        if len(value) != len(hints):
            raise ConfigError(f"{where} has {len(value)} values, not {len(hints)}")
        pairs = zip(value, hints, strict=True)
        return tuple(_convert(item, each, f"{where}[{i}]", any_text) for i, (item, each) in enumerate(pairs))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {shown(value)} is not a table")
        return {key: _convert(item, args[1], f"{where}.{key}", any_text) for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return from_table(hint, value, where, any_text=any_text)
    if any_text and hint is str and isinstance(value, str):
        return value
    return check_scalar(value, hint, where)


def shown(value: Any, most: int = 100) -> str:
    """``repr`` of a stranger's value, of so many characters at most."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= most else f"{text[: most // 2]}… ({len(text)} characters)"


def listed(names: Sequence[str], most: int = 5, apart: str = ", ") -> str:
    """Strangers' names, the first few of them: "a, b, c and 397 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return apart.join(name if len(name) <= 150 else f"{name[:100]}…" for name in names[:most]) + more


def counted(count: int, what: str, several: str = "") -> str:
    """``count`` things, as in "1 text", "2 texts"; ``several``: where that is not ``what`` and an s."""
    return f"{count:,} {what if count == 1 else several or what + 's'}"


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raise ConfigError unless ``value`` is an integer from ``low`` to ``high``."""
    require(type(value) is int, f"{name} = {shown(value)} is not an integer")
    require(low <= value <= high, f"{name} = {shown(value)} is outside {low} to {high}")


def check_optional_integer(name: str, value: Any, low: int, high: int) -> None:
    """As ``check_integer``; None is right too."""
    if value is not None:
        check_integer(name, value, low, high)


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ConfigError, which names the nearest, unless ``value`` is one of ``known``."""
    if value not in known:
        raise ConfigError(f"{name} = {shown(value)} is not a choice", suggest(shown(value), list(known)))


def require(condition: bool, message: str, remedy: str = "") -> None:
    """Raise ConfigError(message, remedy) unless ``condition``."""
    if not condition:
        raise ConfigError(message, remedy)


def check_pattern(pattern: str) -> None:
    """Raise ConfigError unless ``pattern`` is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{pattern!r:.80} is no regular expression: {error}",
            "write it as Python's re has them: a part of a name, such as down_proj, is one",
        ) from error
