"""A conversation with a model: what was said, and what is said next."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, cast

from minicpm4.cli.summary import cut, print_summary
from minicpm4.cli.terminal import progress_bar, write_text
from minicpm4.errors import RequestError

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams
    from minicpm4.engine.metrics import Metrics
    from minicpm4.engine.outputs import Piece


class Conversation:
    """A conversation: its messages, and the settings that commands change."""

    def __init__(
        self, llm: LLM, params: SamplingParams, *, system: str | None, think: bool | None, stats: bool
    ) -> None:
        self.llm, self.params, self.think, self.stats = llm, params, think, stats
        self.last: Metrics | None = None
        self.messages: list[dict[str, Any]] = []
        self.restart(system)

    def restart(self, system: str | None) -> None:
        """Forget what was said; ``system`` is the first message, or None."""
        self.system = system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, text: str) -> None:
        """Say ``text`` and print the answer as it comes. A stopped answer is kept as far as it came.

        Raises Minicpm4Error, with the conversation as it was before.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        self.require_room(asked)
        written: list[str] = []
        metrics, reason, new = None, None, 0
        with progress_bar("reading", "tokens") as progress:
            pieces = self.llm.stream_chat(asked, self.params, enable_thinking=self.think, progress=progress)
            try:
                for piece in pieces:
                    write_text(piece.text, sys.stdout)
                    written.append(piece.text)
                    new += len(piece.token_ids)
                    metrics, reason = piece.metrics or metrics, piece.finish_reason
            except KeyboardInterrupt:
                cast("Generator[Piece]", pieces).close()
                print(" [stopped]", end="", file=sys.stderr, flush=True)
        write_text("\n", sys.stdout)
        if reason == "length":
            full = f"conversation and answer fill the context of {self.llm.limits.context:,}"
            print(cut(new, self.params.max_tokens, full, "/forget N makes room"), file=sys.stderr)
        self.messages = [*asked, {"role": "assistant", "content": "".join(written)}]
        self.last = metrics
        if metrics is not None:
            print_summary(metrics, self.stats)

    def require_room(self, asked: list[dict[str, Any]]) -> int:
        """Tokens that are left for an answer. Raises RequestError, with the way on, where there are none."""
        length, context = self._length(asked), self.llm.limits.context
        if length < context:
            return context - length
        said, alone = self.exchanges, self._length(_without(asked, self.exchanges))
        if alone >= context:
            remedy = f"it has {alone:,} even alone: shorten it, or start with a larger --context"
        else:
            least = next(n for n in range(1, said + 1) if self._length(_without(asked, n)) < context)
            remedy = f"/forget {least} leaves out the oldest {least} of {said} questions, /reset all of them"
        raise RequestError(
            f"with this message the conversation has {length:,} tokens, the context is {context:,}; "
            "it was not sent",
            remedy,
        )

    @property
    def exchanges(self) -> int:
        """Questions so far, each with its answer."""
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def told_tools(self) -> str:
        """What the model may call, for /tools."""
        return "no tools: start with --mcp FILE"

    def forget(self, count: int) -> int:
        """Leave out the oldest questions and their answers; return how many tokens these were."""
        before, self.messages = self.messages, _without(self.messages, count)
        # Some templates take no conversation without a question: compare with one.
        asked = {"role": "user", "content": ""}
        return self._length([*before, asked]) - self._length([*self.messages, asked])

    def _length(self, messages: list[dict[str, Any]]) -> int:
        return len(self.llm.chat_ids(messages, enable_thinking=self.think))


def _without(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Messages without the oldest ``count`` questions and what was answered to each; system messages stay."""
    kept, seen = [], 0
    for message in messages:
        seen += message["role"] == "user"
        if seen > count or message["role"] == "system":
            kept.append(message)
    return kept
