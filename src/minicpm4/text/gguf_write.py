"""A tokenizer and its chat templates as the metadata of a GGUF file: the inverse of ``gguf_vocab.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from minicpm4.errors import TextError
from minicpm4.text.byte_level import WORDS, splitter
from minicpm4.text.pieces import SPACE
from minicpm4.text.sp_model import PieceType, SentencePieceModel
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["differences", "gguf_templates", "gguf_vocabulary", "padded"]

_ROLES = ("eos", "eot", "eom")  # keys of tokens that end an answer
_REMEDY = "write a folder (--to hf), which keeps the tokenizer's own files"
# Words of many kinds: each way to split text that is known splits some of them as no other does.
_PROBES = (
    "Hello, world! It's they'LL and WE'VE; don't  stop.\n\n\tif (x == 10) { return y[3]; }  \r\n",
    "Numbers 1234567 and 3.14159, ١٢٣ ½ ²; naïve café Ünïcödé e\u0301 ﬁ, CamelCaseWordsHere HTTPServer/path",
    "今天天气很好，我们去公园吧。日本語と한국어 — русский текст, ελληνικά; हिन्दी भाषा עברית العربية",
    "😀👩‍👩‍👧‍👦 🇫🇷! a   b    c \u3000wide\u200b  trailing   ",
    "def f(a, b):\n    return a**2 + b_1  # ok!!!\n\n\n==--==....<|x|> $100 50% @name #tag",
)


def gguf_vocabulary(
    own: Tokenizer, rows: int, pieces: SentencePieceModel | None, unknown: str | None, padding: str | None
) -> dict[str, Any]:
    """The keys ``tokenizer.ggml.*`` of a model with ``rows`` tokens. ``pieces``: the SentencePiece model that
    the tokenizer is read from, where there is one; ``unknown``, ``padding``: spellings of such tokens.

    Raises TextError for a tokenizer that these keys cannot describe.
    """
    backend = own.backend
    if backend.get_vocab_size(True) > rows:
        raise TextError(
            f"the tokenizer has {backend.get_vocab_size(True):,} tokens, the model rows for {rows:,}", _REMEDY
        )
    state = json.loads(backend.to_str())["model"]
    byte_level = own.codec.kind == "byte_level"
    if state["type"] != "BPE":
        raise TextError(f"GGUF files have no place for a tokenizer of kind {state['type']}", _REMEDY)
    tokens, types = _tokens(own, rows)
    found: dict[str, Any] = {"model": "gpt2" if byte_level else "llama"}
    if byte_level:
        found["pre"] = _pre(backend, state)
        found["merges"] = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["merges"]]
    else:
        found["pre"] = "default"
        found["scores"] = _scores(tokens, types, state["merges"], pieces)
        found["add_space_prefix"] = _has_prefix(own)
        found["remove_extra_whitespaces"] = pieces is not None and pieces.remove_extra_whitespaces
    found |= {"tokens": tokens, "token_type": np.array(types, np.int32)}
    found |= _special(own, unknown, padding)
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def gguf_templates(sources: Mapping[str, str]) -> dict[str, Any]:
    """The keys of chat templates, of which one is "default", or the only one."""
    first = "default" if "default" in sources else next(iter(sources))
    found: dict[str, Any] = {"tokenizer.chat_template": sources[first]}
    others = [name for name in sources if name != first]
    if others:
        found["tokenizer.chat_templates"] = others
    return found | {f"tokenizer.chat_template.{name}": sources[name] for name in others}


def padded(metadata: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """What another GGUF file says of its tokenizer, for a model with ``rows`` tokens: readers want a token
    for each row."""
    found = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    tokens = list(found["tokenizer.ggml.tokens"])
    if len(tokens) > rows:
        raise TextError(f"the tokenizer has {len(tokens):,} tokens, the model rows for {rows:,}", _REMEDY)
    types = found.get("tokenizer.ggml.token_type") or [int(PieceType.NORMAL)] * len(tokens)
    missing = range(len(tokens), rows)
    found["tokenizer.ggml.tokens"] = tokens + [_filler(i) for i in missing]
    found["tokenizer.ggml.token_type"] = np.array([*types, *[PieceType.UNUSED for _ in missing]], np.int32)
    if "tokenizer.ggml.scores" in found:
        scores = [float(score) for score in found["tokenizer.ggml.scores"]]
        found["tokenizer.ggml.scores"] = scores + [_LAST for _ in missing]
    return found


_LAST = -1e6  # the score of what no text may become


def _filler(token_id: int) -> str:
    return f"[PAD{token_id}]"


def _tokens(own: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Spelling and type of every token, fillers where the tokenizer has none."""
    vocab = {i: token for token, i in own.backend.get_vocab(with_added_tokens=True).items()}
    added = own.backend.get_added_tokens_decoder()
    unknown = getattr(own.backend.model, "unk_token", None)
    tokens, types = [], []
    for token_id in range(rows):
        token = vocab.get(token_id)
        kind = PieceType.NORMAL
        if token is None:
            token, kind = _filler(token_id), PieceType.UNUSED
        elif own.codec.kind == "sentencepiece" and token == unknown:
            kind = PieceType.UNKNOWN
        elif token_id in added:
            kind = PieceType.CONTROL if added[token_id].special else PieceType.USER_DEFINED
        elif own.codec.kind == "sentencepiece" and _is_byte(token):
            kind = PieceType.BYTE
        tokens.append(token)
        types.append(int(kind))
    if len(set(tokens)) != rows:
        raise TextError("the tokenizer has a token that is spelled as a filler ([PAD1])", _REMEDY)
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[Any], pieces: SentencePieceModel | None
) -> list[float]:
    """Those of the SentencePiece model; without it a piece is worth as much as the first merge that makes it
    is early."""
    if pieces is not None:
        own = dict(zip(pieces.pieces, pieces.scores, strict=True))
        return [float(own.get(token, _LAST)) for token in tokens]
    first: dict[str, int] = {}
    for place, pair in enumerate(merges):
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        first.setdefault(left + right, place)
    return [
        -float(first.get(token, len(merges))) if kind == PieceType.NORMAL else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _has_prefix(own: Tokenizer) -> bool:
    """Whether a space is put before a text."""
    first = own.encode("a", add_special_tokens=False)[0]
    return str(own.backend.id_to_token(first)).startswith(SPACE)


def _special(own: Tokenizer, unknown: str | None, padding: str | None) -> dict[str, Any]:
    """Special tokens by their roles, and what stands around a text. Raises TextError."""
    found: dict[str, Any] = {}
    if own.bos_token_id is not None:
        found["bos_token_id"] = own.bos_token_id
    for role, token_id in zip(_ROLES, own.eos_token_ids, strict=False):
        found[f"{role}_token_id"] = token_id
    for role, spelling in (("unknown", unknown), ("padding", padding)):
        token = None if spelling is None else own.backend.token_to_id(spelling)
        if token is not None:
            found[f"{role}_token_id"] = token
    before = [] if own.bos_token_id is None else [own.bos_token_id]
    if own.prefix_ids not in ([], before) or own.suffix_ids not in ([], list(own.eos_token_ids[:1])):
        raise TextError(
            f"GGUF files have no place for tokens {own.prefix_ids} before and {own.suffix_ids} after a text",
            _REMEDY,
        )
    return {**found, "add_bos_token": bool(own.prefix_ids), "add_eos_token": bool(own.suffix_ids)}


def _pre(backend: Backend, state: Mapping[str, Any]) -> str:
    """The name of the way in which a byte-level tokenizer splits text. Raises TextError where it has none."""
    if not state["merges"] and not state.get("ignore_merges"):
        return "gpt-2"  # bytes stay bytes, however they are split
    whole, composed = bool(state.get("ignore_merges")), _composes(backend)
    parts = [_split(backend.pre_tokenizer, text) for text in _PROBES]
    names = [name for name, words in WORDS.items() if name != "default"]
    for name in (*names, "default"):
        words = WORDS[name]
        if (words.whole, words.composed) == (whole, composed) and parts == [
            _split(splitter(words), text) for text in _PROBES
        ]:
            return name
    raise TextError("the way in which this tokenizer splits text has no name in GGUF files", _REMEDY)


def _composes(backend: Backend) -> bool:
    """Whether text is put into Unicode's NFC, which is all that may be done to it. Raises TextError."""
    if backend.normalizer is None:
        return False
    nfc = normalizers.NFC()
    for done, plain in ((True, nfc.normalize_str), (False, str)):
        if all(backend.normalizer.normalize_str(text) == plain(text) for text in _PROBES):
            return done
    raise TextError("GGUF files have no place for what this tokenizer's normaliser does to text", _REMEDY)


def _split(split: Any, text: str) -> list[str]:
    return [text] if split is None else [word for word, _ in split.pre_tokenize_str(text)]


def differences(own: Tokenizer, written: Tokenizer) -> tuple[str | None, str | None]:
    """A text that the tokenizer as it was written encodes to other ids, and one with added tokens in it; None
    where there is none among those tried."""
    plain = next((text for text in _PROBES if own.encode(text) != written.encode(text)), None)
    added = [token.content for token in own.backend.get_added_tokens_decoder().values()]
    texts = [f"so{token}it is {token} on\n{token}\n" for token in added]
    return plain, next((text for text in texts if own.encode(text) != written.encode(text)), None)
