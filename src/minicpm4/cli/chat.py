"""``minicpm4 chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, SamplingFlags, expand
from minicpm4.cli.summary import cut, print_summary
from minicpm4.cli.terminal import one_line, progress_bar, write_text
from minicpm4.config.strict import suggest
from minicpm4.errors import ConfigError, Minicpm4Error, RequestError
from minicpm4.files import json_text, write_file

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams
    from minicpm4.engine.metrics import Metrics
    from minicpm4.engine.outputs import Piece

HELP = """\
/help              this list
/reset             forget the conversation, keep the system message
/forget N          forget the oldest N questions and their answers
/system TEXT       set the system message and forget the conversation (no TEXT: none)
/think on|off|auto whether a reasoning model thinks before it answers
/stats             figures of the last answer
/save FILE         write the conversation to FILE as JSON
/exit              leave (Ctrl-D too)
A line that starts with // is a message that starts with /; one that ends in \\ goes on in
the next line. Ctrl-C stops an answer and keeps the conversation."""


@expand
def command(
    model: ModelOption = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Ask a reasoning model to think first, or not to."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Figures after every answer.")] = False,
    *,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Talk with a model. What was said before stays in the cache and is not read again."""
    sampling.params()  # refuses before the loading what would be refused after it
    llm = engine.load(model)
    params = sampling.params(llm.sampling_defaults)
    if not llm.has_chat_template:
        raise RequestError(f"{model} has no chat template", "use: minicpm4 generate --raw")
    session = Conversation(llm, params, system=system, think=think, stats=stats)
    if sys.stdin.isatty():
        _remember_lines()
        print(one_line(f"{llm.description}; sampling: {params.drawn()}"), file=sys.stderr)
        print("/help lists the commands, Ctrl-D leaves.", file=sys.stderr)
    talk(session, read_line)


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


def talk(session: Conversation, read: Callable[[], str | None]) -> None:
    """Answer line after line until ``read`` returns None or the user leaves."""
    while (text := read()) is not None:
        if not text.strip():
            continue
        try:
            if text.startswith("//") or not text.startswith("/"):
                session.answer(text.removeprefix("/"))
            elif not obey(session, text):
                return
        except Minicpm4Error as error:
            if not sys.stdin.isatty():
                raise  # a script must see the failure
            print(f"error: {one_line(str(error))}", file=sys.stderr)


def obey(session: Conversation, line: str) -> bool:
    """Carry out a /command; return False when it ends the session. Raises ConfigError."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name in ("/exit", "/quit"):
        return False
    action = ACTIONS.get(name)
    if action is None:
        raise ConfigError(f"there is no command {name}", suggest(name, [*ACTIONS, "/exit"]))
    action(session, rest)
    return True


def _help(session: Conversation, rest: str) -> None:
    print(HELP, file=sys.stderr)


def _reset(session: Conversation, rest: str) -> None:
    session.restart(session.system)


def _forget(session: Conversation, rest: str) -> None:
    said = session.exchanges
    if not rest.isascii() or not rest.isdigit() or not 0 < int(rest[:9]) <= said:
        raise ConfigError(f"/forget {rest}: there are {said} questions", f"say how many, 1 to {said}")
    tokens = session.forget(int(rest))
    print(f"left out {rest} of {said} questions with their answers, {tokens:,} tokens", file=sys.stderr)


def _system(session: Conversation, rest: str) -> None:
    session.restart(rest or None)


def _think(session: Conversation, rest: str) -> None:
    choices = {"on": True, "off": False, "auto": None}
    if rest not in choices:
        raise ConfigError(f"/think {rest}: not a choice", "use on, off or auto")
    session.think = choices[rest]


def _stats(session: Conversation, rest: str) -> None:
    if session.last is None:
        raise ConfigError("there is no complete answer yet")
    print_summary(session.last, True)


def _save(session: Conversation, rest: str) -> None:
    if not rest:
        raise ConfigError("/save needs a file name", "as in: /save talk.json")
    try:
        text = json_text(session.messages, indent=2, ascii_only=False)
        write_file(Path(rest).expanduser(), text + "\n")
    except (OSError, ValueError, RuntimeError) as error:  # the last two: of names that no file can have
        raise ConfigError(f"cannot write {rest}: {getattr(error, 'strerror', None) or error}") from error
    print(f"saved {len(session.messages)} messages to {rest}", file=sys.stderr)


ACTIONS: dict[str, Callable[[Conversation, str], None]] = {
    "/help": _help,
    "/reset": _reset,
    "/forget": _forget,
    "/system": _system,
    "/think": _think,
    "/stats": _stats,
    "/save": _save,
}


def read_line() -> str | None:
    """Read one message from standard input; None at its end.

    Ctrl-C drops the line being typed; twice in a row it leaves (KeyboardInterrupt).
    """
    interrupted = False
    while True:
        try:
            return _read_continued()
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if interrupted or not sys.stdin.isatty():
                raise
            interrupted = True
            print("Ctrl-C again, Ctrl-D or /exit leaves.", file=sys.stderr)


def _read_continued() -> str:
    prompts = ("> ", "… ") if sys.stdin.isatty() else ("", "")
    lines = [input(prompts[0]).removeprefix("\ufeff")]  # a byte-order mark, of a file on standard input
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(prompts[1]))
    return "\n".join(lines)


def _remember_lines() -> None:
    try:
        import readline  # arrow keys and line editing for input()
    except ImportError:  # Windows has its own
        return
    readline.set_history_length(1000)
