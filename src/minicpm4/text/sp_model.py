"""SentencePiece: reading a ``tokenizer.model`` file.

The file is a protocol-buffer message; the few fields that matter are read here with every length
checked, so neither protobuf nor the SentencePiece library is needed at run time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from minicpm4.errors import TextError

__all__ = ["PieceType", "SentencePieceModel", "check_charsmap", "parse_sentencepiece"]

MAX_PIECES = 2_000_000
MAX_PIECE_CHARS = 1024


class PieceType(IntEnum):
    """Kinds of pieces; GGUF's tokenizer.ggml.token_type uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(kw_only=True, slots=True)
class SentencePieceModel:
    """What a SentencePiece model holds: pieces with scores (higher merges first) and types."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    unigram: bool = False
    bos_id: int = 1
    eos_id: int = 2
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def parse_sentencepiece(data: bytes, where: str = "tokenizer.model") -> SentencePieceModel:
    """Read a serialized model; ``where`` names it in errors. Raises TextError."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(memoryview(data)):
            if number == 1:
                _read_piece(model, value)
            elif number == 2:
                _read_trainer(model, value, where)
            elif number == 3:
                _read_normalizer(model, value, where)
    except (ValueError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise TextError(
            f"{where} is not a SentencePiece model: {error}", "fetch the file again: it may be damaged"
        ) from error
    if not model.pieces:
        raise TextError(f"{where} holds no pieces", "fetch the file again: it may be damaged")
    return model


def check_charsmap(charsmap: bytes, where: str) -> None:
    """Raise TextError where a table of normalisation is shorter than it says: the tokenizers library takes as
    much memory as that is, up to 4 GB, and ends the process where there is less."""
    size = int.from_bytes(charsmap[:4], "little")
    if size % 4 or size > len(charsmap) - 4:
        raise TextError(
            f"{where}: its normalisation table is damaged: it is shorter than it says", "fetch the file again"
        )


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Numbers and values of one message: int for varints, memoryview for the rest."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > len(data):
            raise ValueError(f"field {key >> 3} with wire type {wire} runs past the end at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} is longer than 10 bytes")


def _int32(value: Any) -> int:
    low = int(value) & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _read_piece(model: SentencePieceModel, data: memoryview) -> None:
    piece, score, kind = "", 0.0, int(PieceType.NORMAL)
    for number, value in _fields(data):
        if number == 1:
            piece = bytes(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = int(value)
    if len(model.pieces) >= MAX_PIECES or len(piece) > MAX_PIECE_CHARS:
        raise ValueError(f"over {MAX_PIECES} pieces, or a piece over {MAX_PIECE_CHARS} characters")
    model.pieces.append(piece)
    model.scores.append(score)
    model.types.append(kind)


def _read_trainer(model: SentencePieceModel, data: memoryview, where: str) -> None:
    values: Mapping[int, Any] = dict(_fields(data))
    kind = values.get(3, 1)
    if kind not in (1, 2):
        name = {3: "word", 4: "char"}.get(kind, kind)
        raise TextError(f"{where} has model type {name}", "only bpe and unigram are supported")
    if values.get(24):
        raise TextError(f"{where} has treat_whitespace_as_suffix", "this option is not supported")
    model.unigram = kind == 1
    model.bos_id, model.eos_id = _int32(values.get(41, 1)), _int32(values.get(42, 2))


def _read_normalizer(model: SentencePieceModel, data: memoryview, where: str) -> None:
    values: Mapping[int, Any] = dict(_fields(data))
    model.charsmap = bytes(values.get(2, b""))
    model.add_dummy_prefix = bool(values.get(3, 1))
    model.remove_extra_whitespaces = bool(values.get(4, 1))
    if not values.get(5, 1):
        raise TextError(f"{where} has escape_whitespaces off", "this option is not supported")
