"""A reader of SentencePiece models: pieces and settings that no training gives, and damage."""

from __future__ import annotations

import struct
from functools import cache
from importlib.util import find_spec
from random import Random
from typing import Any

from tests.fuzz.model_files import packed
from tests.fuzz.mutate import NUMBERS, dumped, mutated_bytes, mutated_json
from tests.fuzz.reader import Reader
from tests.fuzz.texts import SETTINGS, read_tokenizer

_KINDS: list[dict[str, Any]] = [
    *[{}, {}, {"model_type": "unigram"}, {"byte_fallback": False, "add_dummy_prefix": False}],
    {"rule": "nmt_nfkc", "symbols": "<ud>,::"},
]
_FLOATS = [0.0, -0.0, -1.0, 1.0, 3e38, -3e38, 1e-40, float("nan"), float("inf"), float("-inf")]
_NAMES = [
    "",
    "a",
    "▁",
    "▁▁",
    " ",
    "<s>",
    "<0x41>",
    "<0xZZ>",
    "<0x041>",
    "\0",
    "\u2028",
    "é",
    "hi",
    "x" * 1024,
    "x" * 1025,
]


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _odd_piece(rng: Random) -> bytes:
    kind = rng.choice([0, 1, 1, 2, 3, 4, 5, 6, 7, *NUMBERS[-2:]])
    name, score = rng.choice(_NAMES).encode(), rng.choice(_FLOATS)
    return _field(1, _field(1, name) + _field(2, score) + _field(3, kind))


def _odd_settings(rng: Random) -> bytes:
    """Of training, or of normalisation."""
    if rng.random() < 0.5:
        number = rng.choice([3, 24, 40, 41, 42, 43])
        return _field(2, _field(number, rng.choice([0, 1, 2, 3, 5, *NUMBERS, b"x", 0.5])))
    return _field(
        3, _field(rng.choice([2, 3, 4, 5]), rng.choice([0, 1, 7, b"", b"x" * 9, b"\4\0\0\0abcd\0", 0.5]))
    )


def _draw(rng: Random) -> bytes:
    """A tokenizer.model of few pieces: the first that were made, the special ones, and some more."""
    from tests.text.vocabularies import train_sentencepiece

    kind = rng.choice(_KINDS)
    whole = _messages(train_sentencepiece(**kind))
    pieces = [one for one in whole if one[:1] == b"\x0a"]
    rest = [one for one in whole if one[:1] != b"\x0a"]
    special = 262 if kind.get("byte_fallback", True) else 3
    kept = pieces[:special] + rng.sample(pieces[special:], 40)
    way = rng.random()
    if way < 0.6:
        for _ in range(rng.choice([1, 1, 2, 4])):
            kept[rng.randrange(len(kept))] = _odd_piece(rng)
    if way > 0.4:
        rest.append(_odd_settings(rng))
    if rng.random() < 0.1:
        rng.shuffle(kept)
    model = b"".join(kept + rest)
    if rng.random() < 0.2:
        model = mutated_bytes(rng, model, len(model))
    settings = SETTINGS | {"added_tokens_decoder": {}, "additional_special_tokens": []}
    config = dumped(settings).encode() if rng.random() < 0.8 else mutated_json(rng, settings)
    return packed({"tokenizer.model": model, "tokenizer_config.json": config})


@cache
def _messages(model: bytes) -> list[bytes]:
    """The fields of a message that all are messages themselves."""
    found, at = [], 0
    while at < len(model):
        end, size, shift = at + 1, 0, 0
        while True:
            size |= (model[end] & 0x7F) << shift
            end, shift = end + 1, shift + 7
            if model[end - 1] < 0x80:
                break
        found.append(model[at : end + size])
        at = end + size
    return found


READERS = []
if find_spec("sentencepiece") is not None:
    READERS.append(Reader(name="pieces", draw=_draw, read=read_tokenizer, share=0.5))
