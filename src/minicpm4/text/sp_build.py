"""A tokenizer from SentencePiece pieces, read from a ``tokenizer.model`` or from GGUF metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from minicpm4.errors import TextError
from minicpm4.text.library import library
from minicpm4.text.pieces import SPACE, PieceCodec
from minicpm4.text.sp_model import PieceType, SentencePieceModel, check_charsmap
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["SpecialTokens", "build_sentencepiece", "merges_from_scores"]


@dataclass(kw_only=True, slots=True)
class SpecialTokens:
    """What stands around a text: ids, and whether encoding adds them."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    add_eos: bool = False

    @property
    def prefix_ids(self) -> list[int]:
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    @property
    def suffix_ids(self) -> list[int]:
        return [self.eos_ids[0]] if self.add_eos and self.eos_ids else []


def build_sentencepiece(
    model: SentencePieceModel,
    special: SpecialTokens,
    *,
    added: Mapping[int, AddedToken] | None = None,
    prefix_after_user_defined: bool = False,
    prefix_once: bool = False,
) -> Tokenizer:
    """A tokenizer that gives the ids that SentencePiece gives.

    ``added``: tokens beyond the model's own pieces (a tokenizer_config.json's), by id.
    ``prefix_after_user_defined``: whether the dummy prefix also follows user-defined pieces, as in
    llama.cpp; SentencePiece itself puts it at the start only. ``prefix_once``: as ``Tokenizer`` has it, for
    files whose ``legacy`` is false. Raises TextError.
    """
    extra = dict(added or {})
    vocab = _vocabulary(model, extra)
    backend = Backend(_unigram(model, vocab) if model.unigram else _bpe(model, vocab))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(_precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tail = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    control, user_defined = _own_added_tokens(model)
    named = {i: token for i, token in extra.items() if token.special or i not in control | user_defined}
    backend.add_tokens([token for _, token in sorted((control | user_defined | named).items())])
    prefix_after = {t.content for t in (control | extra).values()}
    if prefix_after_user_defined or prefix_once:
        prefix_after |= {t.content for t in user_defined.values()}
    return Tokenizer(
        backend,
        codec=PieceCodec(kind="sentencepiece", drops_prefix=model.add_dummy_prefix),
        bos_token_id=special.bos_id,
        eos_token_ids=special.eos_ids,
        prefix_ids=special.prefix_ids,
        suffix_ids=special.suffix_ids,
        dummy_prefix=model.add_dummy_prefix,
        prefix_once=prefix_once,
        trim=model.remove_extra_whitespaces,
        escape=not model.charsmap and not model.remove_extra_whitespaces,
        prefix_after=prefix_after,
    )


def _vocabulary(model: SentencePieceModel, extra: Mapping[int, AddedToken]) -> list[str]:
    vocab = list(model.pieces)
    for token_id, token in sorted(extra.items()):
        if token_id < len(model.pieces):
            if vocab[token_id] != token.content:
                raise TextError(
                    f"added token {token.content!r} has id {token_id}, which is {vocab[token_id]!r} in the "
                    "SentencePiece model",
                    "tokenizer.model and tokenizer_config.json belong to different checkpoints",
                )
            continue
        if token_id > len(model.pieces) + (1 << 16):
            raise TextError(f"added token {token.content!r} has id {token_id}, far past the vocabulary")
        # Ids must be consecutive: a hole gets a name that no text can spell.
        vocab += [f"\ue0f2unused {i}\ue0f2" for i in range(len(vocab), token_id)] + [token.content]
    if len(set(vocab)) != len(vocab):
        twice = next(piece for piece, count in Counter(vocab).items() if count > 1)
        raise TextError(f"the vocabulary holds the piece {twice!r} twice", "the file may be damaged")
    return vocab


def _own_added_tokens(
    model: SentencePieceModel,
) -> tuple[dict[int, AddedToken], dict[int, AddedToken]]:
    control, user_defined = {}, {}
    for i, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True)):
        if kind in (PieceType.CONTROL, PieceType.UNKNOWN) and piece:
            control[i] = AddedToken(piece, special=True, normalized=False)
        elif kind == PieceType.USER_DEFINED and piece:
            user_defined[i] = AddedToken(piece, special=False, normalized=False)
    return control, user_defined


def _unknown(model: SentencePieceModel) -> int | None:
    return next((i for i, t in enumerate(model.types) if t == PieceType.UNKNOWN), None)


def _bpe(model: SentencePieceModel, vocab: Sequence[str]) -> models.BPE:
    unknown = _unknown(model)
    return models.BPE(
        {piece: i for i, piece in enumerate(vocab)},
        merges_from_scores(model.pieces, model.scores, model.types),
        unk_token=None if unknown is None else model.pieces[unknown],
        fuse_unk=True,
        byte_fallback=_has_bytes(model.types),
    )


def _has_bytes(types: Collection[int]) -> bool:
    return PieceType.BYTE in types


def _unigram(model: SentencePieceModel, vocab: Sequence[str]) -> models.Unigram:
    # Only normal pieces may be found in text; the backend has no types, so the others get a score
    # that no path can afford.
    floor = min(model.scores) - 1e6
    scores = [
        score if kind in (PieceType.NORMAL, PieceType.USER_DEFINED) else floor
        for score, kind in zip(model.scores, model.types, strict=True)
    ]
    scores += [floor] * (len(vocab) - len(scores))
    return models.Unigram(
        list(zip(vocab, scores, strict=True)), unk_id=_unknown(model), byte_fallback=_has_bytes(model.types)
    )


def _precompiled(charsmap: bytes) -> normalizers.Normalizer:
    check_charsmap(charsmap, "the SentencePiece model")
    with library("the SentencePiece model's normalisation table is damaged"):
        return normalizers.Precompiled(charsmap)


def merges_from_scores(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Every pair of pieces whose joint is a piece, best score first: the order that BPE merges in.

    Only normal pieces take part: a control token must never arise from its letters.
    """
    rank = {p: s for p, s, t in zip(pieces, scores, types, strict=True) if t == PieceType.NORMAL}
    found: list[tuple[float, int, str, str]] = []
    for piece, score in rank.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in rank and right in rank:
                found.append((-score, -cut, left, right))
    found.sort(key=lambda item: item[:2])
    return [(left, right) for _, _, left, right in found]
