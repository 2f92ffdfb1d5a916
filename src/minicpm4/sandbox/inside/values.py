"""Plain values as lines of JSON, which keep their types: what passes between two sandboxes.

Only exact built-in types pass, so nothing that a stranger's class says of itself (that it equals everything)
reaches whoever compares; of a Counter the dict does. Runs inside the sandbox, with Python's library alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

MAX_LINE = 1 << 22  # bytes
DEPTH = 100
# How an instance of a subclass becomes one of the type itself; str and numbers by what they hold, not by what
# the subclass would show (an Enum's name).
_PLAIN: dict[type, Callable[[Any], Any]] = {
    **{kind: kind for kind in (dict, list, tuple, set, frozenset, bytes, bytearray, complex)},
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}


class NotPlain(Exception):
    """A value that is none of the plain ones."""


def dump(message: dict[str, Any]) -> bytes:
    """A line. Raises NotPlain where it is too long."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise NotPlain(f"values of {len(line):,} bytes; at most {MAX_LINE:,} pass")
    return line


def load(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises ValueError for anything else."""
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a message")
    return found


def pack(value: Any, depth: int = DEPTH, *, subclasses: bool = False) -> Any:
    """``value`` in JSON's types; ``subclasses``: their instances, such as a Counter, go as the built-in type
    that they are of. Raises NotPlain."""
    kind = type(value)
    if subclasses and kind is not bool and kind not in _PLAIN:
        base = next((one for one in _PLAIN if issubclass(kind, one)), None)
        if base is not None:
            kind, value = base, _PLAIN[base](value)
    inner = partial(pack, depth=depth - 1, subclasses=subclasses)
    if depth == 0:
        raise NotPlain(f"nested more than {DEPTH} times, or within itself")
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if abs(value) < 1 << 63 else {"int": hex(value)}
    if kind is list:
        return [inner(one) for one in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [inner(one) for one in value]}
    if kind is dict:
        return {"dict": [[inner(key), inner(one)] for key, one in value.items()]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    raise NotPlain(f"a value of type {kind.__name__}, which cannot be handed on")


def unpack(value: Any) -> Any:
    """What ``pack`` was given. Raises ValueError for anything else."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not a packed value")
    ((kind, held),) = value.items()
    try:
        if kind == "dict":
            return {unpack(key): unpack(one) for key, one in held}
        if kind == "int":
            return int(held, 16)
        if kind == "complex":
            return complex(*held)
        if kind in ("bytes", "bytearray"):
            return bytes.fromhex(held) if kind == "bytes" else bytearray.fromhex(held)
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(one) for one in held)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not a packed value") from None
