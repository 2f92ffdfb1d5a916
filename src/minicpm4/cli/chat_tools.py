"""``minicpm4 chat --mcp``: a conversation whose model may call tools, each allowed first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm4.cli.asking import Terminal, shown
from minicpm4.cli.conversation import EMPTY, TAKEN_BACK, Conversation
from minicpm4.cli.keyboard import typed_line
from minicpm4.cli.mcp_agent import tell_step
from minicpm4.cli.mcp_servers import ServerFlags, tell_troubles
from minicpm4.cli.summary import print_summary
from minicpm4.cli.terminal import tell, write_text, writing

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams
    from minicpm4.agents.mcp.blocking import Blocking
    from minicpm4.agents.mcp.models import Reply
    from minicpm4.agents.mcp.toolbox import Toolbox
    from minicpm4.text.reply_stream import ReplyPart

MAX_STEPS = 12  # answers to one message
ONCE_MORE = "[that names a tool and is no call: asked for once more as one]"


@contextmanager
def tool_conversation(
    llm: LLM,
    params: SamplingParams,
    *,
    config: Path,
    allow: list[str] | None,
    system: str | None,
    think: bool | None,
    stats: bool,
    typed: Callable[[str], str] = typed_line,
) -> Iterator[ToolConversation]:
    """A conversation with the servers of a file; ``typed`` answers questions. Raises Minicpm4Error."""
    with ServerFlags(config=config, allow=allow).toolbox(Terminal(typed)) as (blocking, box):
        blocking.run(box.refresh())
        tell_troubles(box)
        yield ToolConversation(llm, params, blocking, box, system=system, think=think, stats=stats)


def with_guard(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` with what an agent is told of tools and their results before all else: that these are
    data. Many templates know one message of the system, so it is put before what that says."""
    from minicpm4.agents.mcp.agent import SYSTEM

    first = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": SYSTEM}, *messages]
    said = first.get("content")
    text = said if isinstance(said, str) else "\n".join(part["text"] for part in said or ())
    if SYSTEM in text:
        return list(messages)
    return [{**first, "content": f"{SYSTEM}\n\n{text}"}, *messages[1:]]


class ToolConversation(Conversation):
    """As Conversation. A call that is asked for is shown, allowed or not, and what it says goes on to the
    model; all of it stays in the conversation."""

    def __init__(
        self, llm: LLM, params: SamplingParams, blocking: Blocking, box: Toolbox, **settings: Any
    ) -> None:
        from minicpm4.agents.mcp.models import Local

        self._blocking, self._box = blocking, box
        self._functions = [tool.function for tool in box.tools.values()]
        self._model = Local.of(llm, params)
        super().__init__(llm, params, **settings)

    @property
    def told_tools(self) -> str:
        names = ", ".join(f"{tool.server}.{tool.name}" for tool in self._box.tools.values())
        return shown(names) or "no server offers a tool"

    def restart(self, system: str | None) -> None:
        """See Conversation. The word on results of tools stays, whatever else the system says."""
        super().restart(system)
        self.messages = with_guard(self.messages)

    def go_on(self, messages: list[dict[str, Any]]) -> None:
        """See Conversation. One that was held without tools gets the word on their results, too."""
        super().go_on(with_guard(messages))

    def answer(self, text: str) -> None:
        """Say ``text``; print answers and calls as they come, until there is an answer without a call. A
        stopped answer is kept as far as it came, as in Conversation. Raises Minicpm4Error: with the
        conversation as it was where no tool was called yet; what tools have done stays in it."""
        before = self.messages
        try:
            self._answer(text)
        except KeyboardInterrupt:
            if self.messages is before:  # no tool was called
                raise
            tell("[stopped]")

    def _answer(self, text: str) -> None:
        from minicpm4.agents.mcp.models import missed_call

        before, messages = self.messages, [*self.messages, {"role": "user", "content": text}]
        for _ in range(MAX_STEPS):
            messages = self.fitting(messages)
            reply, stopped = self._heard(messages)
            write_text("\n", sys.stdout)
            if not stopped and missed_call(self._model, reply, self._functions):
                tell(ONCE_MORE)
                reply, stopped = self._heard(messages, must_call=True)
            if stopped and not reply.text and self.messages is before:
                tell(TAKEN_BACK)
                return
            messages = [*messages, reply.as_message()]
            self._tell(reply, stopped)
            if stopped or not reply.calls:
                break
            messages = self._called(messages, reply)
        else:
            tell(f"stopped after {MAX_STEPS} answers")
        self.messages, self.last = messages, self._model.metrics
        if self.last is not None:
            print_summary(self.last, self.stats)

    def _tell(self, reply: Reply, stopped: bool) -> None:
        if stopped:
            tell("[stopped]")
        elif not reply.text.strip() and not reply.calls:
            tell(EMPTY)
        if reply.cut:
            self.tell_cut(0 if self._model.metrics is None else self._model.metrics.new_tokens)

    def _heard(self, messages: list[dict[str, Any]], *, must_call: bool = False) -> tuple[Reply, bool]:
        """The model's next answer, printed while it comes; whether it was stopped."""
        from minicpm4.agents.mcp.models import Reply

        written: list[str] = []

        self._model.params, self._model.enable_thinking = self.params, self.think
        with writing(sys.stdout) as write:

            def heard(part: ReplyPart) -> None:
                written.append(part.content)
                write(part.content)

            try:
                return self._model.reply(messages, self._functions, must_call, heard), False
            except KeyboardInterrupt:
                return Reply(text="".join(written)), True

    def _called(self, messages: list[dict[str, Any]], reply: Reply) -> list[dict[str, Any]]:
        """``messages`` with what the calls of a reply gave. The conversation keeps that, whatever comes;
        where Ctrl-C comes between, the model is told that nobody knows of the rest."""
        from minicpm4.agents.mcp.agent import called
        from minicpm4.agents.mcp.transcript import mend

        messages = list(messages)
        try:
            for number, call in reply.calls:
                messages.append(self._blocking.run(called(self._box, number, call, tell_step))[1])
        finally:
            mend(messages)
            self.messages = [*messages, {"role": "assistant", "content": ""}]  # unless it is answered
        return messages

    def _length(self, messages: list[dict[str, Any]]) -> int:
        return len(self.llm.chat_ids(messages, tools=self._functions or None, enable_thinking=self.think))
