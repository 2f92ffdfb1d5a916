"""The command ``minicpm4``: one module per command, imported when it is used.

Exit codes: 0 done, 2 an error that the message explains (wrong options too), 130 interrupted (129, 131 or 143
by SIGHUP, SIGQUIT or SIGTERM where servers of tools or a terminal were put in order first, or a training was
saved), 1 a bug of ours or a reader of our output that went away.
"""

from __future__ import annotations

import errno
import gc
import importlib
import inspect
import logging
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from minicpm4.cli import streams
from minicpm4.cli.terminal import Notice, one_line
from minicpm4.errors import Minicpm4Error

__all__ = ["COMMANDS", "build", "main", "run"]

# Name -> one line for the list of commands. Module minicpm4.cli.NAME holds the function `command`, or
# `commands`: functions by their names.
COMMANDS = {
    "chat": "Talk with a model, turn by turn.",
    "generate": "Continue a prompt, or answer one, and print the text.",
    "serve": "Answer over HTTP, by the APIs of OpenAI and Anthropic.",
    "mcp": "Use tools of MCP servers, each allowed first.",
    "models": "List the models known by name, and which are present.",
    "pull": "Download a model's files.",
    "convert": "Make a model small: int4, int8 or ternary weights, in files that others read too.",
    "info": "Show what a model is and how much memory it takes.",
    "data": "Make tokenizers and packed training data, and look into them.",
    "train": "Train a model from a recipe, stage by stage.",
    "bench": "Measure tokens per second at given depths, dense and sparse.",
    "spec": "Prepare drafting: count frequent tokens, train a head that drafts.",
    "eval": "Measure how good a model is: texts, code, mathematics, tools.",
    "needles": "See which facts a model finds in long texts, at every depth.",
    "doctor": "Show what this machine offers and which kernels will run.",
}
# Errors of the system that are no bug of ours though they name no file.
_OUTSIDE = {
    getattr(errno, name, None)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENXIO", "ENODEV", "ESTALE", "ETXTBSY", "EBUSY"),
        *("EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "EMFILE", "ENFILE", "EAGAIN", "ETIMEDOUT"),
    )
} - {None}
# What takes memory in a command, and can be lowered.
_MODEL = "lower --context, or choose smaller --weights or --kv"
_LOWER = {
    "chat": _MODEL,
    "generate": _MODEL,
    "serve": "lower --context or --max-batch, or choose smaller --weights or --kv",
    "bench": "lower --depths, --batch or --chunk, or choose smaller --weights or --kv",
    "needles": "lower --lengths",
    "eval": "lower --window or --length, or choose smaller --weights or --kv",
    "train": "lower the micro_tokens or context of the recipe's stages, or train a smaller model",
    "data": "give fewer or smaller files at a time",
    "spec": "lower --batch, --answer-tokens or --draft-vocab",
}
# Base of all complaints about options; where it lives differs between versions of Typer.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def build(only: str | None = None) -> typer.Typer:
    """Return the application; ``only`` names the one command whose module is imported (None: all)."""
    app = typer.Typer(
        name="minicpm4",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help="Language models on end devices, block-sparse attention included.")(_root)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"minicpm4.cli.{name}") if only in (None, name) else None
        if hasattr(module, "commands"):
            app.add_typer(_group(module, summary), name=name, short_help=summary)
        else:
            app.command(name, cls=_Command, short_help=summary)(getattr(module, "command", _stub))
    return app


class _Command(TyperCommand):
    """A command whose usage has one pair of brackets around what may be left out: Typer's versions differ in
    whether they put brackets and dots around those of a metavar."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = [self.options_metavar or ""]
        for one in self.params:
            if one.param_type_name == "argument":
                name = (one.metavar or one.name or "").strip("[].")
                piece = name if one.required else f"[{name}]"
                pieces.append(piece + ("..." if one.nargs != 1 else ""))
        return pieces


def _group(module: Any, summary: str) -> typer.Typer:
    group = typer.Typer(rich_markup_mode=None)

    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    group.callback(invoke_without_command=True, help=summary)(alone)
    for name, function in module.commands.items():
        # Without one, Typer cuts the sentence where the terminal's line ends.
        group.command(name, cls=_Command, short_help=_first_sentence(function))(function)
    return group


def _first_sentence(function: Any) -> str:
    paragraph = (inspect.getdoc(function) or "").partition("\n\n")[0]
    sentence, stop, _ = " ".join(paragraph.split()).partition(". ")
    return sentence + stop.strip()


def _print_version(wanted: bool) -> None:
    if wanted:
        from minicpm4 import __version__

        typer.echo(f"minicpm4 {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version and leave."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Both are dealt with elsewhere: --debug by ``run``."""


def _stub() -> None:
    raise AssertionError("a command was run without its module")


def run(args: Sequence[str]) -> int:
    """Run one command line (without the program's name); return the exit code."""
    args = list(args) or ["--help"]
    debug = "--debug" in args[: _command_position(args) + 1]
    named = next((a for a in args if a in COMMANDS), "")
    try:
        return int(build(only=named)(args, prog_name="minicpm4", standalone_mode=False) or 0)
    except Minicpm4Error as error:
        if debug:
            raise
        cause = error.__cause__
        return _fail(_memory(cause, named) if isinstance(cause, MemoryError) else str(error))
    except USAGE_ERROR as error:
        from minicpm4.cli.usage import told

        return _fail(told(error, args))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except MemoryError as error:
        if debug:
            raise
        return _fail(_memory(error, named))
    except OSError as error:
        if error.errno != errno.EPIPE:
            if error.errno == errno.ENOMEM and not debug:
                return _fail(_memory(error, named))
            if debug or (error.filename is None and error.errno not in _OUTSIDE):
                return _bug(error, debug)
            return _fail(streams.told(error))
        streams.drop(sys.stdout)
        return 1
    except Exception as error:
        return _bug(error, debug)


def _command_position(args: list[str]) -> int:
    return next((i for i, a in enumerate(args) if a in COMMANDS), len(args))


def _fail(message: str) -> int:
    streams.complain(f"error: {one_line(message)}")
    return 2


def _memory(error: Exception, command: str) -> str:
    why = f" ({error})" if str(error) else ""
    remedy = _LOWER.get(command, "")
    return (
        f"memory ran out in minicpm4 {command}{why}. {remedy + '; or ' if remedy else ''}end other programs"
    )


def _bug(error: Exception, debug: bool) -> int:
    if debug:
        raise error
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _fail(f"{what}. This should not happen: minicpm4 --debug shows where it did")
    return 1


def main() -> None:
    """Entry point of the command ``minicpm4``."""
    # A vocabulary is some 100,000 objects that all stay: looking through them again and again for
    # cycles would be a twentieth of the time to the first token.
    gc.set_threshold(100_000, 20, 100)
    closed = streams.mend()
    if logging.lastResort is not None:  # what is warned of, where a command keeps no log
        logging.lastResort.setFormatter(Notice())
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without UTF-8 must not end an answer
    sys.exit(streams.flush(_fail(closed) if closed else run(sys.argv[1:])))
