"""Added tokens: what the files beside a vocabulary add to it, and what they say of tokens that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minicpm4.config.strict import shown
from minicpm4.errors import TextError
from minicpm4.text.files import ROLES, checked_text, own_roles, read_settings, spelling
from minicpm4.text.library import AGAIN
from minicpm4.text.sp_model import MAX_PIECES

__all__ = ["Special", "add_tokens", "added_tokens", "beside_pieces", "special_tokens"]

_WHERE = ("lstrip", "rstrip", "single_word")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Special:
    """A special token that settings name, with the flags that it has as a new one. ``listed``: it is only
    one of a list, without a role."""

    token: AddedToken
    listed: bool


def added_tokens(
    folder: Path, settings: Mapping[str, Any], known: Mapping[int, AddedToken] | None = None
) -> dict[int, AddedToken]:
    """Tokens by id: tokenizer_config.json's added_tokens_decoder, else added_tokens.json of older
    checkpoints, which has no flags: those are of ``known``, added tokens of a tokenizer.json, where it has
    them. Raises TextError."""
    if "added_tokens_decoder" in settings:
        return _decoder(settings["added_tokens_decoder"] or {})
    found, known = _file(folder, special_tokens(settings)), known or {}
    return {i: known[i] if i in known and known[i].content == t.content else t for i, t in found.items()}


def special_tokens(settings: Mapping[str, Any]) -> dict[str, Special]:
    """The special tokens that settings name, by their spelling: those with a role, those of lists, those of
    a model's own roles. Raises TextError."""
    named = [(f"{role}_token", settings.get(f"{role}_token"), False) for role in ROLES]
    for key in _LISTS:
        extra = settings.get(key) or []
        if isinstance(extra, Mapping):
            continue
        if not isinstance(extra, list):
            raise TextError(f"tokenizer_config.json {key} is a {type(extra).__name__}, not a list")
        named += [(key, item, True) for item in extra]
    own = own_roles(settings).items()
    named += [(role, value, False) for role, value in own if isinstance(value, str | Mapping)]
    found: dict[str, Special] = {}
    for where, value, listed in named:
        name = spelling({where: value}, where)
        if name and (name not in found or (found[name].listed and not listed)):
            found[name] = Special(token=_special(name, value), listed=listed)
    return found


def _special(name: str, value: Any) -> AddedToken:
    flags = value if isinstance(value, Mapping) else {}
    where = {flag: bool(flags.get(flag)) for flag in _WHERE}
    return AddedToken(name, special=True, normalized=bool(flags.get("normalized")), **where)


def add_tokens(
    backend: Backend,
    added: Mapping[int, AddedToken],
    special: Mapping[str, Special],
    *,
    rows: int | None,
    lists: bool = True,
) -> None:
    """Give ``backend`` the tokens ``added`` with their flags, then mark what is ``special``.

    As transformers 5 does it: what tokenizer.json calls special stays so, a new special token has the flags
    that name it, one that is there keeps its own, and a list makes none special that was added without being
    so, unless ``lists``. A special token that the vocabulary lacks gets the next id where the model has a row
    for it (``rows``: how many; None: not known), and is left out else. Raises TextError for tokens with other
    ids than in ``backend``.
    """
    for token_id, token in sorted(added.items()):
        known = backend.token_to_id(token.content)
        if known != token_id and not (known is None and token_id == backend.get_vocab_size(True)):
            place = "lacks it" if known is None else f"has it at {known}"
            raise TextError(
                f"tokenizer_config.json: token {token.content!r} has id {token_id}, tokenizer.json {place}",
                "the two belong to different checkpoints: fetch both again",
            )
        old = backend.get_added_tokens_decoder().get(token_id)
        token = _with_flags(token, special=token.special or (old is not None and old.special))
        if old != token:
            backend.add_tokens([token])
    known_flags = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for name, one in special.items():
        old = known_flags.get(name)
        if old is not None and (old.special or (one.listed and not lists)):
            continue
        if backend.token_to_id(name) is None and rows is not None and backend.get_vocab_size(True) >= rows:
            continue
        backend.add_tokens([one.token if old is None else _with_flags(old, special=True)])


def beside_pieces(
    pieces: Sequence[str],
    added: Mapping[int, AddedToken],
    special: Mapping[str, Special],
    *,
    rows: int | None,
) -> dict[int, AddedToken]:
    """``added`` with what is ``special`` marked so, pieces of a SentencePiece model among them; those that
    are neither get the ids that follow, where the model has rows for them (``rows`` as in ``add_tokens``)."""
    found = dict(added)
    ids = {piece: i for i, piece in enumerate(pieces)} | {token.content: i for i, token in found.items()}
    for name, one in special.items():
        token_id = ids.get(name, max([len(pieces), *(i + 1 for i in found)]))
        if name not in ids and rows is not None and token_id >= rows:
            continue
        old = found.get(token_id)
        if old is None:
            found[token_id] = one.token
        elif not one.listed:
            found[token_id] = _with_flags(old, special=True)
    return found


def _with_flags(token: AddedToken, *, special: bool) -> AddedToken:
    kept = {flag: getattr(token, flag) for flag in (*_WHERE, "normalized")}
    return AddedToken(token.content, special=special, **kept)


def _decoder(table: Any) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    try:
        for key, entry in table.items():
            checked_text(entry["content"], "added_tokens_decoder")
            flags = {name: bool(entry.get(name)) for name in (*_WHERE, "special")}
            normalized = bool(entry.get("normalized", not flags["special"]))
            content = entry["content"]
            tokens[_checked_id(int(key))] = AddedToken(content, normalized=normalized, **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TextError(f"tokenizer_config.json added_tokens_decoder is malformed: {error!r}") from error
    return tokens


def _file(folder: Path, special: Collection[str]) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    for content, token_id in read_settings(folder / "added_tokens.json").items():
        if type(token_id) is not int:
            where = folder / "added_tokens.json"
            raise TextError(f"{where} gives {shown(content)} the id {shown(token_id)}", AGAIN)
        checked_text(content, "a token")
        marked = content in special
        tokens[_checked_id(token_id)] = AddedToken(content, special=marked, normalized=not marked)
    return tokens


def _checked_id(token_id: int) -> int:
    if not 0 <= token_id < MAX_PIECES:
        raise TextError(f"an added token has the id {token_id}, which is out of range")
    return token_id
