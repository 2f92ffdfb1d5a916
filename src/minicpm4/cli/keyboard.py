"""Messages of a chat: typed and pasted on a terminal, or lines of a pipe.

On a terminal prompt_toolkit edits the line; while an answer is written nothing that is typed is shown, and
what it was stands in the next line, not sent.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

from minicpm4.cli.terminal import sanitize
from minicpm4.errors import UnsupportedError
from minicpm4.machine.signals import ended_in_order, handled

BLOCK = '"""'  # around a message of many lines
MAX_AHEAD = 1 << 20  # bytes typed during an answer
# What keys that write nothing send: arrows, function keys, marks around a paste.
_KEYS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?")


class Message(NamedTuple):
    """What was said; ``verbatim``: no command, whatever it begins with."""

    text: str
    verbatim: bool = False

    @property
    def is_command(self) -> bool:
        return not self.verbatim and self.text.startswith("/") and not self.text.startswith("//")

    @property
    def said(self) -> str:
        """The text as the model is told it."""
        return self.text.removeprefix("/") if not self.verbatim and self.text.startswith("//") else self.text


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> Message | None:
        """The next message, None at the end."""
        ...

    def quiet(self) -> AbstractContextManager[None]:
        """A session, in which the terminal shows what is typed only where it is asked for."""
        ...

    def typed(self, question: str) -> str:
        """What is answered to a question, on a line. Raises EOFError."""
        ...


class Lines:
    """Lines of standard input, one a message; a backslash at its end or three quotes join several."""

    def __init__(self, prompts: tuple[str, str] = ("", "")) -> None:
        self._prompts = prompts

    def read(self) -> Message | None:
        """See Reader. Ctrl-C drops the line; twice in a row it leaves (KeyboardInterrupt)."""
        return patient(self._read)

    def quiet(self) -> AbstractContextManager[None]:
        """See Reader."""
        return nullcontext()

    def typed(self, question: str) -> str:
        """See Reader."""
        return typed_line(question)

    def _read(self) -> Message:
        text = input(self._prompts[0]).removeprefix("\ufeff")  # a byte-order mark, of a file
        while is_open(text) or text.endswith("\\"):
            text = text if is_open(text) else text[:-1]
            try:
                text += "\n" + input(self._prompts[1])
            except EOFError:
                break  # what there is counts
        return as_message(text)


def is_open(text: str) -> bool:
    """Whether a block begins and does not end."""
    return text.startswith(BLOCK) and not (len(text) >= 6 and text.rstrip().endswith(BLOCK))


def as_message(text: str) -> Message:
    """The message of what was typed."""
    if text.startswith(BLOCK):
        return Message(text.rstrip().removeprefix(BLOCK).removesuffix(BLOCK).strip("\n"), True)
    return Message(text)


def patient(read: Callable[[], Message]) -> Message | None:
    """What ``read`` gives, None at the end of the input. A first Ctrl-C drops the line."""
    interrupted = False
    while True:
        try:
            return read()
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


def typed_line(question: str) -> str:
    """A line of standard input; the question is on standard error, as results may go to a file."""
    print(question, end="", file=sys.stderr, flush=True)
    return input()


def agreed(reader: Reader, question: str) -> bool:
    """Whether somebody is there and says yes."""
    if not sys.stdin.isatty():
        return False
    try:
        return reader.typed(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return False


class Keyboard:
    """A terminal. ``history``: what was said before, the oldest first; ``remember`` is told of more;
    ``commands`` are completed by Tab."""

    def __init__(
        self, history: Sequence[str], remember: Callable[[str], None], commands: Sequence[str]
    ) -> None:
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.completion import WordCompleter
            from prompt_toolkit.history import InMemoryHistory
            from prompt_toolkit.shortcuts import CompleteStyle
        except ImportError as error:
            raise UnsupportedError(
                "chat on a terminal needs the package prompt_toolkit", "pip install prompt_toolkit"
            ) from error
        self._remember = remember
        self._ahead = ""
        self._usual: Any = None
        self._silent: Any = None
        self._set: Callable[[Any], None] | None = None
        self._asks = False  # somebody else decides then what the terminal shows
        self._pasted = False  # the line begins with pasted text of many lines
        self._session: Any = PromptSession(
            output=_output(),
            history=InMemoryHistory(list(history)),
            key_bindings=self._keys(),
            prompt_continuation="… ",
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
        )
        self._session.default_buffer.on_text_changed += self._on_text

    def read(self) -> Message | None:
        """See Reader. Ctrl-C drops the line; twice in a row it leaves (KeyboardInterrupt)."""
        message = patient(self._read)
        if message is not None and message.text.strip():
            # Found again by an arrow key it must be no command, either.
            escaped = message.verbatim and message.text.startswith("/")
            self._remember("/" + message.text if escaped else message.text)
        return message

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """See Reader: what is typed while nobody asks is not shown, and stands in the next line."""
        try:
            import termios
        except ImportError:  # Windows shows nothing that nobody reads
            yield
            return
        source = sys.stdin.fileno()
        self._usual = termios.tcgetattr(source)
        silent = termios.tcgetattr(source)
        silent[3] &= ~(termios.ECHO | termios.ICANON)
        silent[3] |= termios.NOFLSH  # Ctrl-C loses nothing of it
        self._set = partial(termios.tcsetattr, source, termios.TCSANOW)
        self._set(silent)
        self._silent = silent
        try:
            with ended_in_order("SIGTERM", "SIGHUP", "SIGQUIT"), handled(self._again, "SIGCONT"):
                yield
        finally:
            with suppress(termios.error):  # the terminal is gone
                self._set(self._usual)
            self._set = None

    def _again(self, *_: object) -> None:
        """A shell that had the terminal meanwhile, after Ctrl-Z, has shown what is typed."""
        if self._set is not None and not self._asks:
            self._set(self._silent)

    def typed(self, question: str) -> str:
        """See Reader. What was typed before the question is no answer to it."""
        self._keep_ahead()
        if self._set is None:
            return typed_line(question)
        self._asks = True
        self._set(self._usual)
        try:
            return typed_line(question)
        finally:
            self._set(self._silent)
            self._asks = False

    def _keep_ahead(self) -> None:
        if self._set is not None:
            self._ahead += typed_text(_waiting(sys.stdin.fileno()))

    def _read(self) -> Message:
        self._keep_ahead()
        ahead, self._ahead = self._ahead, ""
        self._pasted = "\n" in ahead
        self._asks = True
        try:
            text = str(self._session.prompt("> ", default=ahead))
        finally:
            self._asks = False
        if self._pasted:
            return Message(text.rstrip("\n"), True)
        return as_message(text)

    def _on_text(self, buffer: Any) -> None:
        self._pasted = self._pasted and buffer.text != ""  # what was pasted may have been rubbed out

    def _keys(self) -> Any:
        from prompt_toolkit.application import get_app
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        keys = KeyBindings()

        def goes_on() -> bool:
            buffer = get_app().current_buffer
            ends = buffer.document.is_cursor_at_the_end
            return not self._pasted and ends and (is_open(buffer.text) or buffer.text.endswith("\\"))

        def on_enter(event: Any) -> None:
            if not is_open(event.current_buffer.text):
                event.current_buffer.delete_before_cursor(1)
            event.current_buffer.insert_text("\n")

        def on_paste(event: Any) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            self._pasted |= "\n" in text.rstrip("\n") and event.current_buffer.cursor_position == 0
            event.current_buffer.insert_text(text)

        keys.add("enter", filter=Condition(goes_on))(on_enter)
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        keys.add(Keys.BracketedPaste)(on_paste)
        # No mouse is asked for: it is a text with colours, pasted unmarked, whose sequences look like one's.
        keys.add(Keys.Vt100MouseEvent)(lambda event: None)
        return keys


def _output() -> Any:
    """Where lines are edited: standard error, so that answers alone go to a file; None: as is usual."""
    from prompt_toolkit.output.defaults import create_output
    from prompt_toolkit.utils import is_dumb_terminal

    if is_dumb_terminal():
        return None
    output = create_output(stdout=sys.stderr if sys.stderr.isatty() else sys.stdout)
    if hasattr(output, "enable_cpr"):
        output.enable_cpr = False  # where the cursor is need not be known, and not every terminal tells
    return output


def _waiting(source: int) -> bytes:
    """What was typed and not read."""
    data = b""
    while len(data) < MAX_AHEAD and select.select([source], [], [], 0)[0]:
        more = os.read(source, 4096)
        if not more:
            break
        data += more
    return data


def typed_text(data: bytes) -> str:
    """The text of raw keys: what was rubbed out is gone, keys that write nothing too."""
    text = _KEYS.sub("", data.decode("utf-8", "ignore")).replace("\r\n", "\n").replace("\r", "\n")
    kept: list[str] = []
    for char in text:
        if char in "\b\x7f":
            del kept[-1:]
        else:
            kept.append(char)
    return sanitize("".join(kept))


def reader(history: Sequence[str], remember: Callable[[str], None], commands: Sequence[str]) -> Reader:
    """The keyboard where somebody sits at one, else lines."""
    if not sys.stdin.isatty():
        return Lines()
    if not hasattr(sys.stdin, "buffer") or not (sys.stderr.isatty() or sys.stdout.isatty()):
        return Lines(("> ", "… "))  # no real terminal, or none to draw on
    return Keyboard(history, remember, commands)
