"""``minicpm4 chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.chat_commands import ACTIONS, meant, obey
from minicpm4.cli.conversation import TAKEN_BACK, Conversation
from minicpm4.cli.kept_chats import KeptChats
from minicpm4.cli.keyboard import Reader, reader
from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, expand
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.summary import thinking_note
from minicpm4.cli.terminal import tell
from minicpm4.config.strict import counted, require
from minicpm4.errors import Minicpm4Error, RequestError

if TYPE_CHECKING:
    from minicpm4 import LLM, SamplingParams


@expand
def command(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model: a known name, a folder, a .gguf file, or a hub repository. "
            f"Default: {DEFAULT_MODEL}; with --continue that of the conversation.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation held on a terminal.")
    ] = False,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Ask a reasoning model to think first, or not to."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Figures after every answer.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="First say how the model runs, and how tokens are drawn.")
    ] = False,
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
    require(
        not (go_on and system is not None),
        "--system begins a conversation, --continue goes on with one",
        "leave one of them out, or use /system",
    )
    if mcp is not None:
        from minicpm4.cli.mcp_servers import ServerFlags

        ServerFlags(config=mcp, allow=allow).read(tell=False)
    kept = KeptChats.usual()
    held, messages = kept.last() if go_on else (DEFAULT_MODEL, [])
    model = model or held
    source = reader(kept.lines(), _remembering(kept), [*ACTIONS, "/exit"])
    with source.quiet():
        llm = engine.load(model)
        params = sampling.params(llm.sampling_defaults)
        if not llm.has_chat_template:
            raise RequestError(f"{model} has no chat template", "use: minicpm4 generate --raw")
        greet(llm, params, think, verbose)
        settings = {"system": system, "think": think, "stats": stats}
        with conversation(llm, params, mcp, allow, source, settings) as session:
            if messages:
                session.go_on(messages)
                tell(f"going on after {counted(session.exchanges, 'question')}")
            keep = kept if sys.stdin.isatty() else KeptChats(None)
            talk(session, source, lambda: keep.save(model, session.messages))


def greet(llm: LLM, params: SamplingParams, think: bool | None, verbose: bool) -> None:
    """Say who is there; how it runs, where that was asked for."""
    if sys.stdin.isatty():
        tell(llm.name)
        tell("/help lists the commands, Ctrl-D leaves.")
    if verbose:
        tell(f"{llm.description}; sampling: {params.drawn()}")
    if note := thinking_note(llm, think):
        tell(f"--think, --no-think: {note}")


@contextmanager
def conversation(
    llm: LLM,
    params: SamplingParams,
    mcp: Path | None,
    allow: list[str] | None,
    source: Reader,
    settings: dict[str, Any],
) -> Iterator[Conversation]:
    """The conversation, with tools where ``mcp`` names servers. Raises Minicpm4Error."""
    if mcp is None:
        yield Conversation(llm, params, **settings)
        return
    from minicpm4.cli.chat_tools import tool_conversation

    with tool_conversation(llm, params, config=mcp, allow=allow, typed=source.typed, **settings) as session:
        yield session


def talk(session: Conversation, source: Reader, keep: Callable[[], None]) -> None:
    """Answer message after message until there is none or the user leaves; ``keep`` is called after each."""
    while (message := source.read()) is not None:
        if not message.text.strip():
            continue
        if sys.stdin.isatty() and (hint := meant(message)):
            tell(hint)
            continue
        try:
            if not message.is_command:
                session.answer(message.said)
            elif not obey(session, source, message.text):
                return
            with suppress(OSError):  # a full disk ends no conversation
                keep()
        except KeyboardInterrupt:  # before the model was asked, or at a question of a command
            if not sys.stdin.isatty():
                raise
            tell(TAKEN_BACK)
        except Minicpm4Error as error:
            if not sys.stdin.isatty():
                raise  # a script must see the failure
            tell(f"error: {error}")


def _remembering(kept: KeptChats) -> Callable[[str], None]:
    def remember(line: str) -> None:
        with suppress(OSError):
            kept.remember(line)

    return remember
