"""Damage, drawn at random: of bytes, and of the values in JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

NUMBERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    65535,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 62,
    (1 << 64) - 1,
]
_DEEP = 3000


@dataclass(frozen=True)
class Raw:
    """JSON as it is to stand in a text: what json.dumps would not write."""

    text: str


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 64, 0.5, -0.0, 1e-300, 1e308, 1.5),
    *((1 << 31) - 1, 1 << 31, -(1 << 31), 1 << 53, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64),
    *(
        "",
        "a",
        "x" * 70_000,
        "\0",
        "é",
        "../x",
        "/etc/passwd",
        "f32",
        "float32",
        "[{",
        "\u2028",
        "{{ x }}",
        "\ud800",
    ),
    *([], [0], [None], [[]], ["x"], [1.5], {}, {"a": 1}, {"": {}}, [1] * 5000),
    *([f"name {i}" for i in range(400)], {f"key{i}": [i] for i in range(400)}, "two words " * 900),
    *(
        Raw("1" * 400),
        Raw("NaN"),
        Raw("Infinity"),
        Raw("1e999"),
        Raw("[" * _DEEP + "]" * _DEEP),
        Raw('"\\ud800"'),
    ),
]


def mutated_bytes(rng: Random, content: bytes, header: int = 4096) -> bytes:
    """``content`` with a few edits, most of them in its first ``header`` bytes."""
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 9])):
        at = rng.randrange(min(header, len(raw)) + 1) if rng.random() < 0.8 else rng.randrange(len(raw) + 1)
        what = rng.random()
        if what < 0.45:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif what < 0.7:
            width = rng.choice([1, 2, 4, 8])
            raw[at : at + width] = struct.pack("<Q", rng.choice(NUMBERS))[:width]
        elif what < 0.8:
            raw[at:at] = bytes([rng.randrange(256)]) * rng.randint(1, 9)
        elif what < 0.9:
            del raw[at : at + rng.randint(1, 9)]
        elif what < 0.95:
            raw[at:at] = raw[at : at + rng.randint(1, 64)]
        else:
            del raw[at:]
    return bytes(raw)


def mutated_value(rng: Random, value: Any, odd: Sequence[Any] = ODD) -> Any:
    """A copy of a JSON value in which a few places are odd, missing, or another's."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = _mutated(rng, value, odd)
    return value


def _mutated(rng: Random, value: Any, odd: Sequence[Any]) -> Any:
    places = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    if not places or rng.random() < 0.1:
        return rng.choice(odd)
    place = rng.choice(places)
    copy = dict(value) if isinstance(value, dict) else list(value)
    way = rng.random()
    if way < 0.1:
        del copy[place]
    elif way < 0.2 and isinstance(copy, dict):
        copy[rng.choice([*places, "x", "", "name", "type"])] = copy[place]
    else:
        copy[place] = _mutated(rng, value[place], odd)
    return copy


def dumped(value: Any) -> str:
    """A value as JSON, with what is ``Raw`` as it is."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dumped(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


def mutated_json(rng: Random, value: Any) -> bytes:
    """A value as JSON, odd in its values or, seldom, in its bytes."""
    content = dumped(mutated_value(rng, value)).encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content, len(content)) if rng.random() < 0.15 else content
