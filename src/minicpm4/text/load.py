"""A tokenizer from a checkpoint folder: tokenizer.json, or else tokenizer.model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minicpm4.config.model import read_generation_config, read_hf_config
from minicpm4.errors import ConfigError, TextError
from minicpm4.text.files import read_bytes, read_json
from minicpm4.text.sp_build import SpecialTokens, build_sentencepiece
from minicpm4.text.sp_model import parse_sentencepiece
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["load_tokenizer"]

MAX_FILE_BYTES = 256 << 20
_CONTROL_LIKE = re.compile(r"<\|.*\|>|</?s>")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    tokenizer.json is preferred to tokenizer.model. BOS and EOS follow tokenizer_config.json's
    add_bos_token and add_eos_token where it has them, else the file's own rule. End tokens: its
    eos_token and the eos_token_id of config.json and generation_config.json. Raises TextError.
    """
    folder = Path(folder)
    settings = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        return _from_json(folder, settings)
    if (folder / "tokenizer.model").is_file():
        return _from_model(folder, settings)
    raise TextError(
        f"{folder} holds no tokenizer", "it needs tokenizer.json or tokenizer.model of the checkpoint"
    )


def _from_json(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    backend = _read_backend(folder / "tokenizer.json")
    named = {role: _content(settings, f"{role}_token") for role in ("bos", "eos")}
    _mark_special(backend, settings)
    bos = backend.token_to_id(named["bos"]) if named["bos"] else None
    eos = backend.token_to_id(named["eos"]) if named["eos"] else None
    before, after = _post_processed(backend)
    if bos is None and len(before) == 1:
        bos = before[0]
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    if add_bos is not None and bos is not None:
        before = [i for i in before if i != bos]
        before = [bos, *before] if add_bos else before
    if add_eos is not None and eos is not None:
        after = [i for i in after if i != eos]
        after = [*after, eos] if add_eos else after
    ends = [*([] if eos is None else [eos]), *_config_ends(folder)]
    return Tokenizer(backend, bos_token_id=bos, eos_token_ids=ends, prefix_ids=before, suffix_ids=after)


def _read_backend(file: Path) -> Backend:
    data = read_bytes(file, MAX_FILE_BYTES)
    try:
        backend = Backend.from_buffer(data)
    except BaseException as error:
        # A panic inside the Rust library reaches Python as a BaseException of its own.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TextError(
            f"{file} is not a tokenizer file: {error}", "fetch the file again: it may be damaged"
        ) from error
    # Settings of training runs that some files keep: here they would cut or pad every prompt.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _post_processed(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that the file's own post-processor puts before and after a text."""
    probe = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(probe) + 1):
        if whole[start : start + len(probe)] == probe:
            return whole[:start], whole[start + len(probe) :]
    return [], []


def _mark_special(backend: Backend, settings: Mapping[str, Any]) -> None:
    """Mark as special what tokenizer_config.json calls so; never adds to the vocabulary."""
    known = backend.get_added_tokens_decoder()
    names = {_content(settings, f"{role}_token") for role in ("bos", "eos", "unk", "pad")}
    names |= {token.content for token in _added_tokens(settings).values() if token.special}
    special = {token.content for token in known.values() if token.special}
    flags = {token.content: token for token in known.values()}
    for name in sorted(n for n in names - special if n and backend.token_to_id(n) is not None):
        old = flags.get(name) or AddedToken(name, normalized=False)
        backend.add_special_tokens(
            [AddedToken(name, special=True, normalized=False, lstrip=old.lstrip, rstrip=old.rstrip)]
        )


def _from_model(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    file = folder / "tokenizer.model"
    model = parse_sentencepiece(read_bytes(file, MAX_FILE_BYTES), str(file))
    added = _added_tokens(settings) or _added_tokens_file(folder)
    ids = {piece: i for i, piece in enumerate(model.pieces)} | {t.content: i for i, t in added.items()}
    bos = ids.get(_content(settings, "bos_token") or "", model.bos_id)
    eos = ids.get(_content(settings, "eos_token") or "", model.eos_id)
    bos_id = bos if 0 <= bos < len(ids) else None
    ends = [*([eos] if 0 <= eos < len(ids) else []), *_config_ends(folder)]
    special = SpecialTokens(
        bos_id=bos_id,
        eos_ids=tuple(ends),
        add_bos=bool(settings.get("add_bos_token", True)),
        add_eos=bool(settings.get("add_eos_token", False)),
    )
    return build_sentencepiece(model, special, added=added)


def _content(settings: Mapping[str, Any], name: str) -> str | None:
    value = settings.get(name)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TextError(f"tokenizer_config.json {name} = {value!r} is not a string")
    return value


def _added_tokens(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    table = settings.get("added_tokens_decoder") or {}
    tokens: dict[int, AddedToken] = {}
    try:
        for key, entry in table.items():
            flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word", "special")}
            tokens[_checked_id(int(key))] = AddedToken(entry["content"], normalized=False, **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TextError(f"tokenizer_config.json added_tokens_decoder is malformed: {error!r}") from error
    return tokens


def _added_tokens_file(folder: Path) -> dict[int, AddedToken]:
    """added_tokens.json of older checkpoints: spelling to id, without flags."""
    tokens: dict[int, AddedToken] = {}
    for content, token_id in read_json(folder / "added_tokens.json").items():
        if type(token_id) is not int:
            raise TextError(f"{folder / 'added_tokens.json'} gives {content!r} the id {token_id!r}")
        special = _CONTROL_LIKE.fullmatch(content) is not None
        tokens[_checked_id(token_id)] = AddedToken(content, special=special, normalized=False)
    return tokens


def _checked_id(token_id: int) -> int:
    if not 0 <= token_id < 1 << 31:
        raise TextError(f"an added token has the id {token_id}, which is out of range")
    return token_id


def _config_ends(folder: Path) -> list[int]:
    whole = (folder / "config.json").is_file()
    try:
        ends = (read_hf_config if whole else read_generation_config)(folder).get("eos_token_id")
    except ConfigError as error:
        raise TextError(f"the end tokens of {folder} cannot be read: {error}") from error
    items = ends if isinstance(ends, list) else [ends]
    return [i for i in items if type(i) is int and i >= 0]
