"""``minicpm4 chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.conversation import Conversation
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, ModelOption, SamplingFlags, expand
from minicpm4.cli.summary import print_summary
from minicpm4.cli.terminal import one_line
from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError, Minicpm4Error, RequestError
from minicpm4.files import json_text, write_file

if TYPE_CHECKING:
    pass

HELP = """\
/help              this list
/reset             forget the conversation, keep the system message
/forget N          forget the oldest N questions and their answers
/system TEXT       set the system message and forget the conversation (no TEXT: none)
/think on|off|auto whether a reasoning model thinks before it answers
/tools             the tools that the model may call (--mcp)
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
    mcp: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tools for the model: MCP servers; each call is asked for."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --mcp: a server or SERVER.TOOL that is not asked for."),
    ] = None,
    *,
    engine: EngineFlags,
    sampling: SamplingFlags,
) -> None:
    """Talk with a model. What was said before stays in the cache and is not read again."""
    sampling.params()  # refuses before the loading what would be refused after it
    require(mcp is not None or not allow, "--allow is about tools", "give their servers with --mcp")
    if mcp is not None:
        from minicpm4.cli.mcp_servers import ServerFlags

        ServerFlags(config=mcp, allow=allow).read(tell=False)
    llm = engine.load(model)
    params = sampling.params(llm.sampling_defaults)
    if not llm.has_chat_template:
        raise RequestError(f"{model} has no chat template", "use: minicpm4 generate --raw")
    if sys.stdin.isatty():
        _remember_lines()
        print(one_line(f"{llm.description}; sampling: {params.drawn()}"), file=sys.stderr)
        print("/help lists the commands, Ctrl-D leaves.", file=sys.stderr)
    if mcp is None:
        talk(Conversation(llm, params, system=system, think=think, stats=stats), read_line)
        return
    from minicpm4.cli.chat_tools import tool_conversation

    made = tool_conversation(llm, params, config=mcp, allow=allow, system=system, think=think, stats=stats)
    with made as session:
        talk(session, read_line)


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


def _tools(session: Conversation, rest: str) -> None:
    print(session.told_tools, file=sys.stderr)


ACTIONS: dict[str, Callable[[Conversation, str], None]] = {
    "/help": _help,
    "/reset": _reset,
    "/forget": _forget,
    "/system": _system,
    "/think": _think,
    "/tools": _tools,
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
