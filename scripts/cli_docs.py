"""Write docs/cli.md from the live commands; ``--check`` only says whether it is up to date."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import get_args

from typer import Context
from typer.models import ArgumentInfo

from minicpm4.cli import COMMANDS
from minicpm4.cli.chat_commands import HELP

FILE = Path(__file__).parents[1] / "docs" / "cli.md"

VALUES = {str: "text", int: "whole number", float: "number"}
HEAD = """\
# Command line

Written from the commands themselves by `make docs`; a test fails when it is out of date.

Exit codes: 0 done; 2 an error, told in one line on standard error (wrong options too); 1 a bug, or the
reader of the output went away; 130 interrupted: no traceback, from the package's first line on (in the
hundredths of a second before it, Python itself starts, which shows its own); 129, 131 or 143 by SIGHUP,
SIGQUIT or SIGTERM, where servers of tools or a terminal were put in order first, or a training was saved.
`minicpm4 --debug COMMAND …` shows the traceback of an error.
"""


def render() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name in COMMANDS:
        module = importlib.import_module(f"minicpm4.cli.{name}")
        commands = {f" {one}": function for one, function in getattr(module, "commands", {}).items()}
        for one, command in (commands or {"": module.command}).items():
            parts.append(f"## minicpm4 {name}{one}\n\n{inspect.getdoc(command)}\n")
            parameters = inspect.signature(command, eval_str=True).parameters.values()
            if rows := [_row(one) for one in parameters if one.annotation is not Context]:
                parts.append("\n".join(["| option | value | meaning |", "| --- | --- | --- |", *rows, ""]))
        if name == "chat":
            parts.append(f"Inside a conversation:\n\n```\n{HELP}\n```\n")
    return "\n".join(parts)


def _row(parameter: inspect.Parameter) -> str:
    # Read from our own signatures: what Typer makes of them differs between its versions.
    kind, option = get_args(parameter.annotation)
    if isinstance(option, ArgumentInfo):
        return f"| `{option.metavar}` | | {option.help} |"
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    # Inside Annotated, Option's first argument is not a default but the first spelling.
    names = [n for n in (option.default, *(option.param_decls or ())) if isinstance(n, str)] or [
        "--" + parameter.name.replace("_", "-")
    ]
    shown = ", ".join(f"`{name}`" for decl in names for name in decl.split("/"))
    value = "" if bool in kinds else option.metavar or VALUES[kinds[0]]
    default = parameter.default
    known = f" Default: {default}." if default not in (None, False, inspect.Parameter.empty) else ""
    return f"| {shown} | {value} | {option.help}{known} |".replace("|  |", "| |")


def main() -> int:
    page = render()
    if "--check" in sys.argv[1:]:
        return 0 if FILE.read_text(encoding="utf-8") == page else 1
    FILE.write_text(page, encoding="utf-8")
    print(f"wrote {FILE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
