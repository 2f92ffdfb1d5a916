"""Conversations as documents: which tokens the assistant wrote, by the checkpoint's own chat template.

The prompt of an answer is what the template makes of the messages before it, with the opening of the
answer. Whatever follows it in the whole text, up to and with the end token, is learnt: thinking too where
the template keeps it. Prompts and answers are encoded apart, as they are at inference, where the
prompt ends before the first token of the answer.

A conversation longer than ``max_tokens`` ends after the last answer that fits, never within one; if not
even the first fits, it is left out. One without an answer is left out, too.
"""

from __future__ import annotations

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
        tokens = list(self.tokenizer.prefix_ids)
        learn = [False] * len(tokens)
        kept = at = 0
        for start, stop in spans:
            for piece, learnt in ((text[at:start], False), (text[start:stop], True)):
                ids = self._encode(piece)
                if not tokens[len(self.tokenizer.prefix_ids) :]:
                    ids = self._without_prefix(ids)
                tokens += ids
                learn += [learnt] * len(ids)
            at = stop
            if self.max_tokens and len(tokens) > self.max_tokens:
                break
            kept = len(tokens)
        if not kept:
            raise LeftOut(f"the first answer does not end within {self.max_tokens} tokens")
        return Document(tokens=np.asarray(tokens[:kept], np.int64), learn=np.asarray(learn[:kept], bool))

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

    def _encode(self, piece: str) -> list[int]:
        return self.tokenizer.encode_guarded(piece) if piece else []

    def _without_prefix(self, ids: list[int]) -> list[int]:
        """Templates write the begin token or leave it out; it comes once."""
        before = self.tokenizer.prefix_ids
        return ids[len(before) :] if before and ids[: len(before)] == before else ids
