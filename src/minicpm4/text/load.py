"""A tokenizer from a folder: tokenizer.json, else tokenizer.model, else vocab.json with merges.txt.

Where transformers' versions differ, a tokenizer.json is read as it stands, as the tokenizers library and
transformers 4 do: version 5 makes the splitting of words anew from the name of a class, and loses, say, that
SmolLM2's digits stand alone.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from minicpm4.errors import TextError
from minicpm4.files import parse_json, read_bytes, read_text
from minicpm4.text.added import add_tokens, added_tokens, beside_pieces, special_tokens
from minicpm4.text.around import around
from minicpm4.text.byte_level import byte_level_backend
from minicpm4.text.files import has_tokenizer, model_settings, spelling, text_settings, tokenizer_class
from minicpm4.text.library import AGAIN, library
from minicpm4.text.sp_build import SpecialTokens, build_sentencepiece
from minicpm4.text.sp_model import MAX_PIECES, check_charsmap, parse_sentencepiece
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["load_tokenizer", "of_training", "read_backend"]

MAX_FILE_BYTES = 256 << 20
_LARGE = re.compile(rb"[:,\[]\s*\d{7,}")  # an integer that may be an id of over MAX_PIECES
_CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
# Classes whose add_bos_token and add_eos_token count whatever a tokenizer.json's post-processor says, in
# transformers 4, which wrote such files; version 5 looks at them nowhere beside a tokenizer.json.
_OBEYING = ("LlamaTokenizer", "CodeLlamaTokenizer")
# Classes that a vocab.json with merges.txt is read for -> how words are split (byte_level.WORDS).
_WORDS_OF_CLASS = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    tokenizer.json is preferred to tokenizer.model, and this to vocab.json with merges.txt. What stands around
    a text is the file's own rule; beside a tokenizer.json, add_bos_token and add_eos_token count for Llama's
    classes alone. End tokens: the eos_token of tokenizer_config.json or
    special_tokens_map.json and the eos_token_id of config.json and generation_config.json. Raises TextError.
    """
    folder = Path(folder)
    with library(f"the tokenizer in {folder} cannot be used"):
        return _load(folder, text_settings(folder))


def _load(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    if settings.get("split_special_tokens"):
        raise TextError(
            f"tokenizer_config.json of {folder} has split_special_tokens, which is not supported",
            "set it to false: chats are encoded so that typed control tokens stay text",
        )
    if (folder / "tokenizer.json").is_file():
        return _from_json(folder, settings)
    if (folder / "tokenizer.model").is_file():
        return _from_model(folder, settings)
    if has_tokenizer(folder):
        return _from_vocabulary(folder, settings)
    other = " (tekken.json is a format of Mistral's own)" if (folder / "tekken.json").is_file() else ""
    raise TextError(
        f"{folder} holds no tokenizer{other}", "it needs tokenizer.json or tokenizer.model of the checkpoint"
    )


def _from_json(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    named = settings.get("fast_tokenizer_files")
    if named not in (None, [], ["tokenizer.json"]):
        raise TextError(
            f"tokenizer_config.json of {folder} has fast_tokenizer_files, tokenizers for several versions",
            "save the checkpoint's tokenizer anew with transformers",
        )
    backend = read_backend(folder / "tokenizer.json")
    kind = tokenizer_class(folder, settings)
    if kind in _WORDS_OF_CLASS and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        # Its own setting, which is false where it is absent, in both versions of transformers.
        backend.pre_tokenizer.add_prefix_space = bool(settings.get("add_prefix_space"))
    return _dressed(folder, settings, backend, obeying=kind in _OBEYING)


def _from_vocabulary(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    kind = tokenizer_class(folder, settings)
    if kind not in _WORDS_OF_CLASS:
        raise TextError(
            f"{folder} holds vocab.json and merges.txt of a {kind or 'tokenizer without a class'}",
            f"without tokenizer.json, {' and '.join(_WORDS_OF_CLASS)} are read: fetch tokenizer.json",
        )
    content = read_bytes(folder / "vocab.json", MAX_FILE_BYTES, TextError)
    vocab = parse_json(content, str(folder / "vocab.json"), TextError)
    if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < MAX_PIECES for i in vocab.values()):
        raise TextError(f"{folder / 'vocab.json'} is no table of ids", AGAIN)
    pairs: list[tuple[str, str]] = []
    for line in read_text(folder / "merges.txt", MAX_FILE_BYTES, TextError).split("\n"):
        if not line.strip() or line.startswith("#version"):
            continue
        left, space, right = line.rstrip("\r").partition(" ")
        if not space or " " in right:
            raise TextError(f"{folder / 'merges.txt'} holds {line!r:.80}, which is not a pair", AGAIN)
        pairs.append((left, right))
    words = _WORDS_OF_CLASS[kind]
    backend = byte_level_backend(vocab, pairs, words, add_prefix_space=bool(settings.get("add_prefix_space")))
    return _dressed(folder, settings, backend, obeying=True)


def _dressed(folder: Path, settings: Mapping[str, Any], backend: Backend, *, obeying: bool) -> Tokenizer:
    """``backend`` with all that the other files say."""
    config = model_settings(folder)
    add_tokens(
        backend,
        added_tokens(folder, settings, backend.get_added_tokens_decoder()),
        special_tokens(settings),
        rows=_rows(config),
        lists=tokenizer_class(folder, settings) == "Qwen2Tokenizer",  # which adds them anew
    )
    ids = {role: backend.token_to_id(spelling(settings, f"{role}_token") or "") for role in ("bos", "eos")}
    before, after = around(backend)
    if ids["bos"] is None and len(before) == 1:
        ids["bos"] = before[0]
    if obeying:
        before = _with(before, ids["bos"], settings.get("add_bos_token"))
        after = _with(after, ids["eos"], settings.get("add_eos_token"))
    ends = [*([] if ids["eos"] is None else [ids["eos"]]), *_config_ends(config)]
    return Tokenizer(
        backend, bos_token_id=ids["bos"], eos_token_ids=ends, prefix_ids=before, suffix_ids=after
    )


def _with(around_text: list[int], token: int | None, wanted: Any) -> list[int]:
    """What stands at one end of a text: the token alone, whatever a post-processor has, where it is wanted;
    nothing where it is not."""
    if token is None or wanted is None:
        return around_text
    return [token] if wanted else []


def read_backend(source: Path | bytes, where: str = "tokenizer.json", *, as_is: bool = False) -> Backend:
    """The tokenizer in a tokenizer.json, without settings of training runs (``as_is``: with them, see
    ``of_training``). Raises TextError."""
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_FILE_BYTES, TextError)
    where = where if isinstance(source, bytes) else str(source)
    with library(f"{where} is not a tokenizer file"):
        for found in _CHARSMAP.finditer(data):
            check_charsmap(b64decode(found[1].replace(b"\\", b"")), where)
        backend = Backend.from_buffer(data)
    if _LARGE.search(data):  # it may stand in a string: only then is it worth to look at all
        last = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
        if last >= MAX_PIECES:
            raise TextError(f"{where} has a token with the id {last}, the limit is {MAX_PIECES - 1}", AGAIN)
    if not as_is and of_training(backend):
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None) is not None:
            backend.model.dropout = None
    return backend


def of_training(backend: Backend) -> bool:
    """Whether it has settings of a training run, which cut or pad every prompt, or encode it by chance."""
    dropout = getattr(backend.model, "dropout", None)
    return backend.truncation is not None or backend.padding is not None or dropout is not None


def _from_model(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    file = folder / "tokenizer.model"
    model = parse_sentencepiece(read_bytes(file, MAX_FILE_BYTES, TextError), str(file))
    if settings.get("add_prefix_space") is False:
        model = replace(model, add_dummy_prefix=False)
    config = model_settings(folder)
    added = added_tokens(folder, settings)
    added = beside_pieces(model.pieces, added, special_tokens(settings), rows=_rows(config))
    ids = {piece: i for i, piece in enumerate(model.pieces)} | {t.content: i for i, t in added.items()}
    bos = ids.get(spelling(settings, "bos_token") or "", model.bos_id)
    eos = ids.get(spelling(settings, "eos_token") or "", model.eos_id)
    bos_id = bos if 0 <= bos < len(ids) else None
    ends = [*([eos] if 0 <= eos < len(ids) else []), *_config_ends(config)]
    special = SpecialTokens(
        bos_id=bos_id,
        eos_ids=tuple(ends),
        add_bos=bool(settings.get("add_bos_token", True)),
        add_eos=bool(settings.get("add_eos_token", False)),
    )
    return build_sentencepiece(model, special, added=added, prefix_once=settings.get("legacy") is False)


def _rows(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model knows; None: not told."""
    rows = config.get("vocab_size")
    return rows if type(rows) is int else None


def _config_ends(config: Mapping[str, Any]) -> list[int]:
    ends = config.get("eos_token_id")
    items = ends if isinstance(ends, list) else [ends]
    return [i for i in items if type(i) is int and i >= 0]
