"""Conversations as documents: which tokens the assistant wrote, by the checkpoint's own chat template.

The prompt of an answer is what the template makes of the messages before it, with the opening of the
answer. Whatever follows it in the whole text, up to and with the end token, is learnt: thinking too where
the template keeps it. Tokens are those of inference: a prompt ends where an answer's first token begins,
even where the tokenizer would join the two.

A conversation longer than ``max_tokens`` ends after the last answer that fits, never within one; if not
even the first fits, it is left out. One without an answer is left out, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm4.data.shards import Document
from minicpm4.errors import ConfigError, RequestError, TextError
from minicpm4.text import ChatTemplate, Tokenizer
from minicpm4.text.chat import guarded_text

__all__ = ["ChatEncoder", "LeftOut"]


class LeftOut(Exception):
    """A conversation that nothing can be learnt from; the text is the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class ChatEncoder:
    """Conversations to documents of at most ``max_tokens`` tokens (0: any length)."""

    tokenizer: Tokenizer
    template: ChatTemplate
    max_tokens: int = 0

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        where: str = "the conversation",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Document:
        """The document of ``messages``. Raises LeftOut, ConfigError for what is no conversation."""
        try:
            spans, text = self._answers(messages, tools)
        except (RequestError, TextError) as error:
            raise ConfigError(f"{where}: {error.condition}", error.remedy) from error
        tokens, learn, stops = self._encode(text, spans)
        fitting = [stop for stop in stops if not self.max_tokens or stop <= self.max_tokens]
        if not fitting:
            raise LeftOut(f"the first answer does not end within {self.max_tokens} tokens")
        kept = fitting[-1]
        return Document(tokens=np.asarray(tokens[:kept], np.int64), learn=np.asarray(learn[:kept], bool))

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
        tokens: list[int] = list(tokenizer.prefix_ids)
        if ids[: len(tokens)] == tokens:  # templates write the begin token or leave it out; it comes once
            tokens = []
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
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[tuple[int, int]], str]:
        """Where in the whole text the assistant's words lie."""

        def render(some: Sequence[Mapping[str, Any]], opening: bool) -> str:
            return guarded_text(
                self.tokenizer, self.template, some, tools=tools, add_generation_prompt=opening
            )

        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise RequestError(f"messages is a {type(messages).__name__}, not a list")
        text = render(messages, False)
        ends = self._ends()
        spans: list[tuple[int, int]] = []
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            if index == 0:
                raise LeftOut("it begins with an answer")
            prompt = render(messages[:index], True)
            if spans and len(prompt) < spans[-1][1]:
                raise LeftOut("the template changes earlier turns")
            if not text.startswith(prompt):
                raise LeftOut("the template does not go on from the prompt of an answer")
            found = [(at, end) for end in ends if (at := text.find(end, len(prompt))) >= 0]
            at, end = min(found, default=(len(text), ""))
            spans.append((len(prompt), at + len(end)))
        if not spans:
            raise LeftOut("it has no answer")
        return spans, text

    def _ends(self) -> list[str]:
        """End tokens as they stand in guarded text: no message can spell them."""
        tokenizer = self.tokenizer
        names = [tokenizer.id_to_token(i) for i in tokenizer.eos_token_ids]
        names += [name for name in ("<|im_end|>", "<|eot_id|>") if name in tokenizer.control_tokens]
        return [tokenizer.guard.aliases[name] for name in names if name in tokenizer.guard.aliases]


def _after_last(ids: Sequence[int], control: frozenset[int]) -> int:
    return 1 + max(i for i, token in enumerate(ids) if token in control)
