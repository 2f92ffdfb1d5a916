"""Write docs/cli.md from the live commands; ``--check`` only says whether it is up to date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from minicpm4.cli import build
from minicpm4.cli.chat import HELP

FILE = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """\
# Command line

Written from the commands themselves by `make docs`; a test fails when it is out of date.

Exit codes: 0 done; 2 an error, told in one line on standard error (wrong options too); 1 a bug, or the
reader of the output went away; 130 interrupted. `minicpm4 --debug COMMAND …` shows the traceback of an error.
"""


def render() -> str:
    """Return the whole page."""
    root: Any = typer.main.get_command(build())
    parts = [HEAD]
    for name, command in root.commands.items():
        parts.append(f"## minicpm4 {name}\n\n{inspect.cleandoc(command.help)}\n\n{_parameters(command)}")
        if name == "chat":
            parts.append(f"Inside a conversation:\n\n```\n{HELP}\n```\n")
    return "\n".join(parts)


def _parameters(command: Any) -> str:
    rows = ["| option | value | meaning |", "| --- | --- | --- |"]
    for parameter in command.params:
        meaning = parameter.help or ""
        if parameter.param_type_name == "argument":
            rows.append(f"| `{parameter.metavar or parameter.name.upper()}` | | {meaning} |")
            continue
        if "--help" in parameter.opts:
            continue
        names = ", ".join(f"`{n}`" for n in [*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag else parameter.metavar or parameter.type.name
        if isinstance(parameter.default, str | int | float) and not parameter.is_flag:
            meaning += f" Default: {parameter.default}."
        rows.append(f"| {names} | {value} | {meaning} |".replace("|  |", "| |"))
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def main() -> int:
    page = render()
    if "--check" in sys.argv[1:]:
        return 0 if FILE.read_text(encoding="utf-8") == page else 1
    FILE.write_text(page, encoding="utf-8")
    print(f"wrote {FILE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
