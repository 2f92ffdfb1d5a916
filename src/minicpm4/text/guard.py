"""A second reading of text in which control tokens spelled inside it stay plain text.

A control token such as ``<|im_end|>`` has a spelling, and a backend turns every occurrence of the
spelling into the token, whoever wrote it. The guard is a copy of the backend whose control tokens
are spelled by unguessable aliases instead: text from outside cannot name them, a chat template's
own control tokens are written as aliases before encoding.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minicpm4.text.written import Written

__all__ = ["ControlGuard", "Spellings", "alternatives"]

MASK = "\ue0f3"  # no control token has it


def alternatives(spellings: Collection[str]) -> re.Pattern[str] | None:
    """A pattern of any of ``spellings``, longest first; None if there are none."""
    ordered = sorted((s for s in spellings if s), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


class Spellings:
    """Tells strings in which a control token is spelled, or that become one with what stands beside them."""

    def __init__(self, control: Collection[str]) -> None:
        self._whole = alternatives(control)
        self._starts = {name[:i] for name in control for i in range(1, len(name))}
        self._ends = {name[i:] for name in control for i in range(1, len(name))}
        self._longest = max(map(len, control), default=0)
        # What a template sets in brackets of its own: <{{ key }}>, <|{{ name }}|>.
        self._inner = {name[i : len(name) - j] for name in control for i in range(3) for j in range(3)} - {""}

    def touch(self, text: str) -> bool:
        """Whether ``text`` may have part in the spelling of a control token."""
        if self._whole is None or not text:
            return False
        if self._whole.search(text) or text in self._inner:
            return True
        sizes = range(1, min(self._longest, len(text) + 1))
        return any(text[-i:] in self._starts or text[:i] in self._ends for i in sizes)

    def count_written(self, text: Written) -> int | None:
        """How many control spellings ``text`` holds, if the template wrote all of them; else None."""
        found = self._whole.finditer(text) if self._whole else ()
        spans = [match.span() for match in found]
        return len(spans) if all(text.covers(*span) for span in spans) else None

    def mask(self, text: str) -> str:
        """Text as long, other than ``text`` where that may have part in a spelling."""
        if not self.touch(text):
            return text
        masked = self._whole.sub(lambda m: MASK * len(m[0]), text) if self._whole else text
        return MASK * len(text) if self.touch(masked) else masked


class ControlGuard:
    """Backend copy whose control tokens are spelled by aliases.

    ``aliases`` maps each control spelling to its alias, ``nonce`` is part of every alias; ``alias_pattern``
    finds them (None: there are none).
    """

    def __init__(self, backend: Backend, control: Collection[str]) -> None:
        self.nonce = secrets.token_hex(8)
        names = sorted(set(control))
        self.aliases = {name: f"\ue0f0{self.nonce}{i:x}\ue0f1" for i, name in enumerate(names)}
        self.alias_pattern = alternatives(self.aliases.values())
        self._spelling = alternatives(names)
        state = json.loads(backend.to_str())
        state["added_tokens"], state["post_processor"] = [], None
        _respell_model(state["model"], self.aliases)
        copy = Backend.from_str(json.dumps(state, ensure_ascii=False))
        originals = sorted(backend.get_added_tokens_decoder().items())
        copy.add_tokens([self._respell(token) for _, token in originals])
        self._backend = copy
        # An alias is a new entry, and dropping the spellings may have moved other added tokens.
        self._original_id = {
            copy.token_to_id(self.aliases.get(token.content, token.content)): token_id
            for token_id, token in originals
        }

    def _respell(self, token: AddedToken) -> AddedToken:
        alias = self.aliases.get(token.content)
        return AddedToken(
            alias or token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized and alias is None,
        )

    def to_aliases(self, text: str) -> str:
        """``text`` with every control spelling replaced by its alias."""
        return self._spelling.sub(lambda m: self.aliases[m[0]], text) if self._spelling else text

    def own_to_aliases(self, text: Written) -> tuple[str, int]:
        """``text`` with the aliases of those control spellings that the template wrote, and how many others
        it holds, which stay as they are."""
        parts, at, look, others = [], 0, 0, 0
        while self._spelling and (found := self._spelling.search(text, look)):
            if text.covers(*found.span()):
                parts += [str.__getitem__(text, slice(at, found.start())), self.aliases[found[0]]]
                at = look = found.end()
            else:
                # The template's own may begin within it.
                look, others = found.start() + 1, others + 1
        return "".join([*parts, str.__getitem__(text, slice(at, None))]), others

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``: only aliases become control tokens."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [self._original_id.get(i, i) for i in ids]


def _respell_model(model: dict[str, Any], aliases: Mapping[str, str]) -> None:
    """Keep the model itself from making a control token out of its letters."""
    if model["type"] == "Unigram":
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    if model["type"] != "BPE":
        return
    pairs = [m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
    model["merges"] = [
        pair for pair in pairs if not ("".join(pair) in aliases or pair[0] in aliases or pair[1] in aliases)
    ]
    unknown = model.get("unk_token") or ""
    model["unk_token"] = aliases.get(unknown, unknown) or None
    model["vocab"] = {aliases.get(piece, piece): i for piece, i in model["vocab"].items()}
