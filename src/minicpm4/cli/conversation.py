"""A conversation with a model: what was said, and what is said next."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from minicpm4.cli.summary import cut, print_summary
from minicpm4.cli.terminal import progress_bar, tell, write_text, writing
from minicpm4.errors import RequestError

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams
    from minicpm4.engine.metrics import Metrics
    from minicpm4.engine.outputs import Piece

TAKEN_BACK = "[taken back: nothing was answered yet]"
EMPTY = "[the answer is empty]"


@dataclass(slots=True)
class Heard:
    """An answer as far as it came."""

    written: list[str] = field(default_factory=list)
    new: int = 0
    metrics: Metrics | None = None
    reason: str | None = None
    stopped: bool = False

    @property
    def text(self) -> str:
        return "".join(self.written)


class Conversation:
    """A conversation: its messages, and the settings that commands change. ``drop_oldest``: where it outgrows
    the context, the oldest questions are left out, and that is said."""

    def __init__(
        self, llm: LLM, params: SamplingParams, *, system: str | None, think: bool | None, stats: bool
    ) -> None:
        self.llm, self.params, self.think, self.stats = llm, params, think, stats
        self.drop_oldest = False
        self.last: Metrics | None = None
        self.messages: list[dict[str, Any]] = []
        self.restart(system)

    def restart(self, system: str | None) -> None:
        """Forget what was said; ``system`` is the first message, or None."""
        self.system = system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def go_on(self, messages: list[dict[str, Any]]) -> None:
        """Have said what another conversation has. Raises RequestError, TextError where the model's template
        does not take it: then nothing has changed."""
        self._length([*messages, {"role": "user", "content": ""}])
        first = messages[0] if messages else {}
        self.system = first.get("content") if first.get("role") == "system" else None
        self.messages = list(messages)

    def answer(self, text: str) -> None:
        """Say ``text`` and print the answer as it comes. A stopped answer is kept as far as it came; where
        that is nothing, the question is taken back.

        Raises Minicpm4Error, with the conversation as it was before.
        """
        asked = self.fitting([*self.messages, {"role": "user", "content": text}])
        heard = self._hear(asked)
        write_text("\n", sys.stdout)
        if heard.stopped and not heard.written:
            tell(TAKEN_BACK)
            return
        self.messages = [*asked, {"role": "assistant", "content": heard.text}]
        self.last = heard.metrics
        self._remark(heard)

    def _hear(self, asked: list[dict[str, Any]]) -> Heard:
        heard = Heard()
        with writing(sys.stdout) as write, progress_bar("reading", "tokens", before=None) as progress:
            pieces = self.llm.stream_chat(asked, self.params, enable_thinking=self.think, progress=progress)
            try:
                for piece in pieces:
                    if piece.text:
                        write(piece.text)
                        heard.written.append(piece.text)
                    heard.new += len(piece.token_ids)
                    heard.metrics, heard.reason = piece.metrics or heard.metrics, piece.finish_reason
            except KeyboardInterrupt:
                cast("Generator[Piece]", pieces).close()
                heard.stopped = True
        return heard

    def _remark(self, heard: Heard) -> None:
        """What is to be said of an answer beside itself."""
        if heard.stopped:
            tell("[stopped]")
        elif not heard.text.strip():
            tell(EMPTY)
        if heard.reason == "length":
            self.tell_cut(heard.new)
        if heard.metrics is not None:
            print_summary(heard.metrics, self.stats)

    def tell_cut(self, new: int) -> None:
        """That an answer of ``new`` tokens ended before its end, and what would let it go on."""
        full = f"conversation and answer fill the context of {self.llm.limits.context:,}"
        more = "/set max_tokens N allows more"
        tell(cut(new, self.params.max_tokens, full, "/forget N or /reset makes room", more))

    def fitting(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``asked`` where there is room for an answer; else, if that was asked for, without the oldest
        questions, which is said. Raises RequestError, with the way on, where there is none."""
        length, context = self._length(asked), self.llm.limits.context
        said = questions(asked) - 1
        if self.drop_oldest and said and length + self._answer_room() > context:
            return self._with_dropped(asked, said)
        if length < context:
            return asked
        alone = self._length(without(asked, said))
        if alone >= context:
            remedy = f"it has {alone:,} even alone: shorten it, or start with a larger --context"
        else:
            least = next(n for n in range(1, said + 1) if self._length(without(asked, n)) < context)
            remedy = (
                f"/reset forgets all of it, /forget {least} the oldest {least} of {said} questions; "
                "/set drop_oldest on does so by itself"
            )
        raise RequestError(
            f"with this message the conversation has {length:,} tokens, the context is {context:,}; "
            "it was not sent",
            remedy,
        )

    def _answer_room(self) -> int:
        """Tokens that an answer should find free: what it may have, a quarter of the context at most."""
        quarter = self.llm.limits.context // 4
        return min(quarter, self.params.max_tokens or quarter)

    def _with_dropped(self, asked: list[dict[str, Any]], said: int) -> list[dict[str, Any]]:
        length, context = self._length(asked), self.llm.limits.context
        for count in range(1, said + 1):
            kept = without(asked, count)
            left = self._length(kept)
            if left + self._answer_room() <= context or (count == said and left < context):
                tell(left_out(count, said, length - left))
                return kept
        raise RequestError(
            f"this message has {left:,} tokens even alone, the context is {context:,}; it was not sent",
            "shorten it, or start with a larger --context",
        )

    @property
    def exchanges(self) -> int:
        """Questions so far, each with its answer."""
        return questions(self.messages)

    @property
    def told_tools(self) -> str:
        """What the model may call, for /tools."""
        return "no tools: start with --mcp FILE"

    def forget(self, count: int) -> int:
        """Leave out the oldest questions and their answers; return how many tokens these were."""
        before, self.messages = self.messages, without(self.messages, count)
        # Some templates take no conversation without a question: compare with one.
        asked = {"role": "user", "content": ""}
        return self._length([*before, asked]) - self._length([*self.messages, asked])

    def _length(self, messages: list[dict[str, Any]]) -> int:
        return len(self.llm.chat_ids(messages, enable_thinking=self.think))


def questions(messages: list[dict[str, Any]]) -> int:
    """How many messages are the user's."""
    return sum(message["role"] == "user" for message in messages)


def left_out(count: int, said: int, tokens: int) -> str:
    """That the oldest ``count`` of ``said`` questions are gone."""
    return f"[left out {count} of {said} questions with their answers, {tokens:,} tokens]"


def without(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Messages without the oldest ``count`` questions and what was answered to each; system messages stay."""
    kept, seen = [], 0
    for message in messages:
        seen += message["role"] == "user"
        if seen > count or message["role"] == "system":
            kept.append(message)
    return kept
