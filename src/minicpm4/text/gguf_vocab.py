"""A tokenizer from a GGUF file's metadata."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from minicpm4.config.strict import shown, suggest
from minicpm4.errors import TextError
from minicpm4.text.byte_level import WORDS, byte_level_backend
from minicpm4.text.library import AGAIN, library
from minicpm4.text.pieces import PieceCodec
from minicpm4.text.sp_build import SpecialTokens, build_sentencepiece
from minicpm4.text.sp_model import MAX_PIECE_CHARS, MAX_PIECES, PieceType, SentencePieceModel
from minicpm4.text.tokenizer import END_SPELLINGS, Tokenizer

__all__ = ["tokenizer_from_gguf"]


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file's ``tokenizer.ggml.*`` keys describe.

    Kinds: ``gpt2`` (byte-level BPE, with a known ``pre``) and ``llama`` (SentencePiece BPE).
    Raises TextError for a missing or malformed key, or an unknown kind or pre-tokenizer.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise TextError(
            f"GGUF tokenizer.ggml.model is {shown(kind)}" if kind else "the GGUF file has no tokenizer",
            "gpt2 (byte-level BPE) and llama (SentencePiece BPE) are supported",
        )
    tokens = _tokens(metadata)
    types = _numbers(metadata, "token_type", len(tokens), int) or [int(PieceType.NORMAL)] * len(tokens)
    with library("the GGUF file's tokenizer cannot be used"):
        return _byte_level(metadata, tokens, types) if kind == "gpt2" else _llama(metadata, tokens, types)


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in WORDS:
        raise TextError(
            f"GGUF tokenizer.ggml.pre is {shown(pre)}, an unknown pre-tokenizer",
            suggest(str(pre), list(WORDS)),
        )
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    merges = _merges(metadata)
    try:
        backend = byte_level_backend(vocab, merges, pre)
    except TextError as error:
        raise TextError(f"GGUF tokenizer.ggml.{error.condition}", error.remedy) from error
    special = _special(metadata, tokens, types, add_bos=WORDS[pre].bos)
    control = {PieceType.CONTROL, PieceType.UNKNOWN}
    backend.add_tokens(
        [
            AddedToken(token, special=kind in control or i in special.eos_ids, normalized=False)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if token and (kind in control or kind == PieceType.USER_DEFINED or i in special.eos_ids)
        ]
    )
    return Tokenizer(
        backend,
        codec=PieceCodec(kind="byte_level"),
        bos_token_id=special.bos_id,
        eos_token_ids=special.eos_ids,
        prefix_ids=special.prefix_ids,
        suffix_ids=special.suffix_ids,
    )


def _llama(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    scores = _numbers(metadata, "scores", len(tokens), float)
    if scores is None:
        raise TextError("GGUF lacks tokenizer.ggml.scores", "a SentencePiece vocabulary needs them")
    special = _special(metadata, tokens, types, add_bos=True, bos=1, eos=2)
    model = SentencePieceModel(
        pieces=tokens,
        scores=scores,
        types=[int(PieceType.CONTROL) if i in special.eos_ids else t for i, t in enumerate(types)],
        add_dummy_prefix=_flag(metadata, "add_space_prefix", True),
        remove_extra_whitespaces=_flag(metadata, "remove_extra_whitespaces", False),
    )
    return build_sentencepiece(model, special, prefix_after_user_defined=True)


def _special(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    *,
    add_bos: bool,
    bos: int | None = None,
    eos: int | None = None,
) -> SpecialTokens:
    bos = _token_id(metadata, "bos", len(tokens), bos)
    ends = [_token_id(metadata, "eos", len(tokens), eos)]
    ends += [_token_id(metadata, name, len(tokens), None) for name in ("eot", "eom")]
    spelled = set(END_SPELLINGS)
    ends += [
        i
        for i, (t, kind) in enumerate(zip(tokens, types, strict=True))
        if t in spelled and (kind != PieceType.NORMAL or t != "</s>")
    ]
    return SpecialTokens(
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        add_bos=_flag(metadata, "add_bos_token", add_bos),
        add_eos=_flag(metadata, "add_eos_token", False),
    )


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not 0 < len(tokens) <= MAX_PIECES:
        raise TextError("GGUF tokenizer.ggml.tokens is missing, empty or too long", AGAIN)
    tokens = list(tokens)
    if set(map(type, tokens)) == {str} and max(map(len, tokens)) <= MAX_PIECE_CHARS:
        return tokens
    wrong = next(i for i, t in enumerate(tokens) if not isinstance(t, str) or len(t) > MAX_PIECE_CHARS)
    raise TextError(f"GGUF tokenizer.ggml.tokens[{wrong}] is not a short string", AGAIN)


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, Sequence) or isinstance(merges, str) or len(merges) > 2 * MAX_PIECES:
        raise TextError("GGUF tokenizer.ggml.merges is missing or too long", "a gpt2 tokenizer needs it")
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
    except (AttributeError, TypeError):
        raise TextError("GGUF tokenizer.ggml.merges holds an entry that is no string", AGAIN) from None
    if pairs and set(map(len, pairs)) != {2}:
        wrong = next(p for p in pairs if len(p) != 2)
        raise TextError(
            f"GGUF tokenizer.ggml.merges holds {shown(' '.join(wrong))}, which is not a pair", AGAIN
        )
    return pairs


def _numbers(metadata: Mapping[str, Any], name: str, count: int, kind: type) -> list[Any] | None:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return None
    try:
        numbers = list(map(kind, values))
    except (TypeError, ValueError, OverflowError):
        raise TextError(f"GGUF tokenizer.ggml.{name} is not a list of numbers", AGAIN) from None
    if kind is float and not all(map(math.isfinite, numbers)):
        raise TextError(f"GGUF tokenizer.ggml.{name} holds a number that is not finite", AGAIN)
    if len(numbers) != count:
        raise TextError(
            f"GGUF tokenizer.ggml.{name} has {len(numbers)} entries for {count} tokens",
            AGAIN,
        )
    return numbers


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    return bool(metadata.get(f"tokenizer.ggml.{name}", default))


def _token_id(metadata: Mapping[str, Any], name: str, count: int, default: int | None) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return default if default is not None and default < count else None
    try:
        token_id = int(operator.index(value))
    except TypeError:
        token_id = -1
    if not 0 <= token_id < count:
        raise TextError(
            f"GGUF tokenizer.ggml.{name}_token_id = {shown(value)} is outside the {count} tokens", AGAIN
        )
    return token_id
