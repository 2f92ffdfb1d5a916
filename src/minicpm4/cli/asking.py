"""Questions of servers and tools, in the terminal. Nothing of what strangers wrote is shown unseen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minicpm4.cli.keyboard import typed_line
from minicpm4.cli.terminal import console, sanitize
from minicpm4.errors import ConfigError, shortened

if TYPE_CHECKING:
    from minicpm4.agents.mcp.asking import Consent, Field, Form, May

MAX_SHOWN = 4000  # characters of one text
_ANSWERS: dict[str, Consent] = {
    **dict.fromkeys(("y", "yes", "o", "once"), "once"),
    **dict.fromkeys(("s", "session"), "session"),
    **dict.fromkeys(("a", "always"), "always"),
    **dict.fromkeys(("n", "no", ""), "no"),
}


class Terminal:
    """Asks on standard error, reads answers from standard input. Where that is no terminal, nobody is there:
    nothing is allowed, and ``remedy`` is told once."""

    def __init__(self, read: Callable[[str], str] = typed_line, interactive: bool | None = None) -> None:
        self._read = read
        self._interactive = sys.stdin.isatty() if interactive is None else interactive
        self._told = False

    def may(self, may: May) -> Consent:
        """Whether something may run. The end of the input means no."""
        name = shown(f"{may.server}.{may.tool}" if may.tool else may.server)
        if not self._interactive:
            if not self._told:
                print(f"nobody is there to allow {name}: name it with --allow", file=sys.stderr)
                self._told = True
            return "no"
        asked = f"the tool {name} be called" if may.what == "call" else f"the server {name} be used"
        self._print(f"May {asked}?")
        for key, value in may.details:
            self._line(key, value)
        for key, given in may.arguments.items():
            self._line(f"  {key} =", json.dumps(given, ensure_ascii=False, default=str))
        if may.what == "call" and not may.arguments:
            self._line("  with", "no arguments")
        for one in may.changed:
            self._print(f"  ! changed since it was allowed: {shown(one)}")
        for one in may.warnings:
            self._print(f"  ! {shown(one)}")
        while True:
            try:
                answer = self._read("[y]es once, for this [s]ession, [a]lways, [n]o: ").strip().lower()
            except EOFError:
                print(file=sys.stderr)
                return "no"
            if answer in _ANSWERS:
                return _ANSWERS[answer]

    def tell(self, form: Form) -> dict[str, Any] | None:
        """The values of a form; None where the user would rather not."""
        if not self._interactive:
            print(f"nobody is there to answer {shown(form.server)}: it is declined", file=sys.stderr)
            return None
        self._print(f"{shown(form.server)} asks (for {shown(form.tool)}): {shown(form.message)}")
        if form.url:
            self._print(f"  it wants this page opened, which nothing here does: {shown(form.url)}")
        try:
            if self._read("Answer it? [y/N] ").strip().lower() not in ("y", "yes"):
                return None
            return {one.name: value for one in form.fields if (value := self._field(one)) is not None}
        except EOFError:
            print(file=sys.stderr)
            return None

    def _field(self, field: Field) -> Any:
        told = f" ({shown(field.told)})" if field.told else ""
        choices = f" [{shown(', '.join(field.choices))}]" if field.choices else ""
        default = None if field.default is None else shown(json.dumps(field.default, ensure_ascii=False))
        needed = f", empty for {default or 'none'}" if default or not field.required else ""
        while True:
            text = self._read(f"  {shown(field.name)}{told}{choices} as {field.kind}{needed}: ")
            if not text.strip() and needed:
                return field.default
            try:
                value = field.read(text)
            except ConfigError as error:
                self._print(f"  {shown(str(error))}")
                continue
            if field.choices and field.kind != "array" and value not in field.choices:
                self._print("  choose one of these")
                continue
            return value

    def _line(self, key: str, value: str) -> None:
        if value:
            self._print(f"  {shown(key)} {shown(value)}")

    def _print(self, text: str) -> None:
        console(sys.stderr).print(text, soft_wrap=True)


def shown(text: str) -> str:
    """A stranger's text: what is not seen written out, and how much is left out of what is too long."""
    from minicpm4.agents.mcp.hidden import escaped

    return sanitize(escaped(shortened(text, MAX_SHOWN)))
