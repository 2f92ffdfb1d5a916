"""Conversations as documents: which tokens the assistant wrote, by the checkpoint's own chat template.

The prompt of an answer is what the template makes of the messages before it, with the opening of the
answer. Whatever follows it in the whole text, up to and with the end token, is learnt: thinking too where
the template keeps it, and the end token also where the template leaves the last turn open. Tokens are those
of inference: a prompt ends where an answer's first token begins, even where the tokenizer would join the two.

A conversation longer than ``max_tokens`` ends after the last answer that fits, never within one; if not
even the first fits, it is left out. One without an answer is left out, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm4.data.conversation import LeftOut
from minicpm4.data.holdout import without_weight
from minicpm4.data.shards import Document
from minicpm4.errors import ConfigError, RequestError, TextError
from minicpm4.text import ChatTemplate, Tokenizer
from minicpm4.text.chat import guarded_text
from minicpm4.text.turn_ends import with_turn_ends

__all__ = ["ChatEncoder", "LeftOut"]


@dataclass(frozen=True, slots=True, eq=False)
class ChatEncoder:
    """Conversations to documents of at most ``max_tokens`` tokens (0: any length)."""

    tokenizer: Tokenizer
    template: ChatTemplate
    max_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", with_turn_ends(self.tokenizer, self.template))

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        where: str = "the conversation",
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Document:
        """The document of ``messages``; ``options``: further arguments of the template, such as
        enable_thinking. Raises LeftOut, ConfigError for what is no conversation."""
        try:
            weights = _weights(messages)
            given = [without_weight(message) for message in messages]
            spans, text = self._answers(given, weights, tools, options or {})
        except (RequestError, TextError) as error:
            raise ConfigError(f"{where}: {error.condition}", error.remedy) from error
        tokens, learn, stops = self._encode(text, spans)
        fitting = [stop for stop in stops if not self.max_tokens or stop <= self.max_tokens]
        if not fitting:
            why = "no learnt answer ends" if 0 in weights else "the first answer does not end"
            raise LeftOut(f"{why} within {self.max_tokens} tokens")
        kept = fitting[-1]
        return Document(tokens=np.asarray(tokens[:kept], np.int64), learn=np.asarray(learn[:kept], bool))

    def ends(self, document: Document) -> bool:
        """Whether the last answer of a document of ``encode`` has an end token: not with a template that
        writes none."""
        return int(document.tokens[-1]) in self.tokenizer.eos_token_ids

    def teaches_ends(self) -> bool:
        """Whether a conversation of one question and one answer has an end token after it; also where the
        template refuses such a one."""
        try:
            made = self.encode([_ANOTHER, {"role": "assistant", "content": "yes"}])
        except (LeftOut, ConfigError):
            return True
        return self.ends(made)

    def _encode(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool], list[int]]:
        """Tokens of a guarded text, which of them are learnt, and where in them each answer stops.

        All is encoded at once, as at inference, and the aliases of control tokens in the text are matched
        with these tokens. Only the stretch between two of them in which an answer begins is looked at again:
        where the tokenizer would join the end of a prompt with its answer, the two are encoded apart.
        """
        tokenizer = self.tokenizer
        pattern = tokenizer.guard.alias_pattern
        places = [found.start() for found in pattern.finditer(text)] if pattern else []
        control = frozenset(tokenizer.control_tokens.values())
        ids = tokenizer.encode_guarded(text)
        marks = [i for i, token in enumerate(ids) if token in control]
        if len(marks) != len(places):
            raise LeftOut("it has characters that the tokenizer does not know")
        tokens = tokenizer.missing_prefix(ids)  # templates write the begin token or leave it out
        learn, stops, at = [False] * len(tokens), [], 0
        for start, stop in spans:
            before, after = bisect_left(places, start), bisect_left(places, stop)
            first = marks[before - 1] + 1 if before else 0
            # With the alias before it: at the start of a text a tokenizer may add a space.
            opening = tokenizer.encode_guarded(text[places[before - 1] if before else 0 : start])
            opening = opening[_after_last(opening, control) :] if before else opening
            end = marks[after - 1] + 1 if after > before else len(ids)
            answer = ids[first + len(opening) : end]
            if ids[first : first + len(opening)] != opening:
                rest, until = (places[before], marks[before]) if before < len(places) else (stop, len(ids))
                answer = [*tokenizer.encode_after(text[start:rest]), *ids[until:end]]
            tokens += [*ids[at:first], *opening, *answer]
            learn += [False] * (first - at + len(opening)) + [True] * len(answer)
            stops.append(len(tokens))
            at = end
        return tokens, learn, stops

    def _answers(
        self,
        messages: Sequence[Mapping[str, Any]],
        weights: Sequence[int],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> tuple[list[tuple[int, int]], str]:
        """Where in the whole text the assistant's words lie that are learnt."""

        def render(some: Sequence[Mapping[str, Any]], opening: bool) -> str:
            return guarded_text(
                self.tokenizer, self.template, some, tools=tools, add_generation_prompt=opening, **options
            )

        def tried(some: Sequence[Mapping[str, Any]]) -> str:
            """``text``, after which nothing comes, where the template refuses what nobody asked for."""
            try:
                return render(some, False)
            except (RequestError, TextError):
                return text

        text = render(messages, False)
        ends = self._ends()
        spans: list[tuple[int, int]] = []
        for index, message in enumerate(messages):
            if message.get("role") != "assistant" or not (weights[index] or spans):
                continue
            if index == 0:
                raise LeftOut("it begins with an answer")
            prompt = render(messages[:index], True)
            if not text.startswith(prompt) and weights[index]:
                earlier = bool(spans) and len(prompt) < spans[-1][1]
                raise LeftOut(
                    _CHANGED if earlier else "the template does not go on from the prompt of an answer"
                )
            if spans and len(prompt) < spans[-1][1] and text.startswith(prompt):
                raise LeftOut(_ENDLESS)
            if not weights[index]:
                continue
            found = [(at, end) for end in ends if (at := text.find(end, len(prompt))) >= 0]
            if index < len(messages) - 1:
                # Open, an answer may be closed by the next turn, yet not after words of that turn.
                until = min(found, default=(len(text), ""))[0]
                through = tried(messages[: index + 1])
                if not found or (text.startswith(through) and text[len(through) : until].strip()):
                    raise LeftOut(_ENDLESS)
            if not found:
                longer = tried([*messages, _ANOTHER])
                text += _end_in(longer[len(text) :], ends) if longer.startswith(text) else ""
            at, end = min(found, default=(len(text), ""))
            spans.append((len(prompt), at + len(end)))
        if not spans:
            said = any(message.get("role") == "assistant" for message in messages)
            raise LeftOut("all of its answers have weight 0" if said else "it has no answer")
        return spans, text

    def _ends(self) -> list[str]:
        """End tokens as they stand in guarded text: no message can spell them."""
        tokenizer = self.tokenizer
        names = [tokenizer.id_to_token(i) for i in tokenizer.eos_token_ids]
        return [tokenizer.guard.aliases[name] for name in names if name in tokenizer.guard.aliases]


def _weights(messages: Any) -> list[int]:
    """Of each message 1, or 0 where it says so. Raises RequestError."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages is a {type(messages).__name__}, not a list")
    found = []
    for index, message in enumerate(messages):
        weight = message.get("weight") if isinstance(message, Mapping) else None
        weight = 1 if weight is None else weight
        # Parquet makes 0.0 and 1.0 of a column that has nulls.
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
            raise RequestError(
                f"messages[{index}].weight = {weight!r:.80} is neither 0 nor 1",
                "give answers that are not to be learnt 0, the others 1 or none",
            )
        found.append(int(weight))
    return found


_CHANGED = "the template changes earlier turns"
_ENDLESS = "the template writes no end token after an answer that is not the last"
_ANOTHER = {"role": "user", "content": "on"}


def _end_in(rest: str, ends: Sequence[str]) -> str:
    """The end of the last answer that a template writes only where another turn follows, as before ``rest``:
    a conversation of one answer would teach never to stop. Empty where none comes."""
    blanks = len(rest) - len(rest.lstrip())
    return next((rest[: blanks + len(end)] for end in ends if rest.startswith(end, blanks)), "")


def _after_last(ids: Sequence[int], control: frozenset[int]) -> int:
    return 1 + max(i for i, token in enumerate(ids) if token in control)
