"""From vocabulary entries to the bytes that they stand for.

Two spellings exist. Byte-level vocabularies write each byte as one printable character (a space is
``Ġ``). SentencePiece vocabularies write text with ``▁`` for a space and single bytes as ``<0x0A>``.
Decoding by bytes, not by the ``tokenizers`` decoder chain, is what makes streaming exact: the text
of a sequence is the UTF-8 reading of the concatenated bytes, whatever the boundaries of tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from tokenizers import Tokenizer as Backend

from minicpm4.errors import TextError

__all__ = ["SPACE", "PieceCodec", "codec_of"]

SPACE = "▁"  # U+2581: SentencePiece's visible space
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


@cache
def byte_of_char() -> dict[str, int]:
    """The byte that each of the 256 characters of a byte-level vocabulary stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table |= {chr(0x100 + i): b for i, b in enumerate(others)}
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceCodec:
    """How a vocabulary spells bytes, and whether decoding drops the first space (the dummy prefix)."""

    kind: Literal["byte_level", "sentencepiece"]
    drops_prefix: bool = False

    def to_bytes(self, piece: str) -> bytes:
        """The bytes of one vocabulary entry that is not an added token."""
        if self.kind == "byte_level":
            table = byte_of_char()
            if all(char in table for char in piece):
                return bytes(table[char] for char in piece)
            return piece.encode("utf-8", "replace")
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte:
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE, " ").encode("utf-8", "replace")


def codec_of(backend: Backend) -> PieceCodec:
    """Read the spelling from a backend's decoder. Raises TextError for an unknown one."""
    if backend.decoder is None:
        raise TextError(
            "the tokenizer has no decoder, so its tokens cannot be turned back into text",
            "tokenizer.json needs a ByteLevel or a SentencePiece (ByteFallback, Metaspace) decoder",
        )
    steps = _flatten(json.loads(backend.decoder.__getstate__()))
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return PieceCodec(kind="byte_level")
    if not set(kinds) <= _SENTENCEPIECE_STEPS or not any(map(_is_space_step, steps)):
        raise TextError(
            f"the tokenizer's decoder ({', '.join(map(str, kinds))}) is not supported",
            "only ByteLevel and SentencePiece (ByteFallback, Metaspace) decoders are",
        )
    return PieceCodec(kind="sentencepiece", drops_prefix=any(map(_drops_first_space, steps)))


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step.get("type") == "Sequence":
        return [inner for item in step.get("decoders", []) for inner in _flatten(item)]
    return [step]


def _is_space_step(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("replacement", SPACE) == SPACE
    return bool(
        step["type"] == "Replace" and step.get("pattern") == {"String": SPACE} and step.get("content") == " "
    )


def _drops_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return step.get("content") == " " and step.get("start", 0) > 0
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
    return False
