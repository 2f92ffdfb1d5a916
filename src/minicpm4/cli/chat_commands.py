"""What a line that begins with / does in ``minicpm4 chat``. Each says what it did."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicpm4.cli.conversation import Conversation, left_out
from minicpm4.cli.kept_chats import read_conversation
from minicpm4.cli.keyboard import Message, Reader, agreed
from minicpm4.cli.summary import print_summary, thinking_note
from minicpm4.cli.terminal import between_words, one_line, tell
from minicpm4.config.strict import counted, suggest
from minicpm4.errors import ConfigError
from minicpm4.files import json_text, parse_json, write_file

HELP = """\
/help              this list
/reset             forget the conversation, keep the system message
/forget N          forget the oldest N questions and their answers
/system            the system message; /system TEXT sets it and forgets the conversation,
                   /system none leaves it out
/set               the settings; /set NAME VALUE changes one, as in: /set temperature 0
/think on|off|auto whether a reasoning model thinks before it answers
/tools             the tools that the model may call (--mcp)
/stats             figures of the last answer
/save FILE         write the conversation to FILE as JSON
/load FILE         go on with the conversation that /save wrote
/exit              leave (Ctrl-D too)
A message of many lines: paste it, end a line with \\, press Alt-Enter, or write it between
\"\"\" and \"\"\". What is pasted in several lines, and what stands between such quotes, is never a
command; // at the beginning is a / that begins no command.
Ctrl-C stops an answer; where nothing was answered yet it takes the message back.
"""
DROP = "drop_oldest"
# Of SamplingParams: what a line can say, and what fits; {} is the range, or the least. The others are for a
# program, or decide what an answer is.
_SWITCH = "on or off"
SETTINGS = {
    "max_tokens": "a whole number from {}, or none: up to the context",
    "min_tokens": "a whole number from {}",
    "temperature": "a number from {} (0: the likeliest token), as in 0.7, or none",
    "top_k": "a whole number from 1; none turns it off",
    "top_p": "a number from {}; none turns it off",
    "min_p": "a number from {}; none turns it off",
    "repetition_penalty": "a number from {}; none turns it off",
    "presence_penalty": "a number from {}; 0 turns it off",
    "frequency_penalty": "a number from {}; 0 turns it off",
    "seed": "a whole number, or none",
    "stop": "a text, or none",
    "ignore_eos": _SWITCH,
    "skip_special_tokens": _SWITCH,
}
SWITCH = {"on": True, "off": False, "true": True, "false": False}
NO_ARGUMENT = ("/help", "/reset", "/tools", "/stats", "/exit", "/quit")
# What is a command elsewhere, typed alone on a line.
_BARE = {"exit": "/exit leaves", "quit": "/exit leaves", "help": "/help lists the commands"}


def meant(message: Message) -> str:
    """What to say where somebody at a terminal typed a command without its /; "" where it is a message."""
    word = message.text.rstrip()
    hint = "" if message.verbatim else _BARE.get(word.lower().removesuffix("()"), "")
    return hint and f"{hint}; a space before {word} sends it to the model"


def obey(session: Conversation, reader: Reader, line: str) -> bool:
    """Carry out a /command; return False when it ends the session. Raises ConfigError."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name in NO_ARGUMENT and rest:
        raise ConfigError(f"{name} takes nothing behind it, and has {one_line(rest):.60}", "leave that out")
    if name in ("/exit", "/quit"):
        return False
    action = ACTIONS.get(name)
    if action is None:
        raise ConfigError(
            f"there is no command {one_line(name):.60}",
            f"{suggest(name, [*ACTIONS, '/exit'])} // begins a message that starts with /",
        )
    action(session, reader, rest)
    return True


def _help(session: Conversation, reader: Reader, rest: str) -> None:
    print(between_words(HELP, sys.stderr), end="", file=sys.stderr)


def _reset(session: Conversation, reader: Reader, rest: str) -> None:
    said = session.exchanges
    session.restart(session.system)
    kept = "; the system message stays" if session.system is not None else ""
    tell(f"the conversation is forgotten, {counted(said, 'question')}{kept}")


def _forget(session: Conversation, reader: Reader, rest: str) -> None:
    said = session.exchanges
    digits = rest.lstrip("0")
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    if not 0 < number <= said:
        raise ConfigError(
            f"/forget {rest:.40}: there are {counted(said, 'question')}", f"say how many, 1 to {said}"
        )
    tell(left_out(number, said, session.forget(number)))


def _system(session: Conversation, reader: Reader, rest: str) -> None:
    if not rest:
        now = session.system
        tell("there is no system message" if now is None else f"the system message: {now}")
        return
    said = session.exchanges
    text = None if rest in ("none", '""', "''") else rest
    session.restart(text)
    forgotten = f"; the conversation is forgotten, {counted(said, 'question')}" if said else ""
    tell(f"{'there is no system message' if text is None else 'the system message is set'}{forgotten}")


def _think(session: Conversation, reader: Reader, rest: str) -> None:
    choices = {"on": True, "off": False, "auto": None}
    if rest not in choices:
        raise ConfigError(f"/think {rest}: not a choice", "use on, off or auto")
    session.think = choices[rest]
    note = thinking_note(session.llm, session.think)
    tell(f"thinking: {rest}{note and '; ' + note}")


def _stats(session: Conversation, reader: Reader, rest: str) -> None:
    if session.last is None:
        raise ConfigError("there is no complete answer yet")
    print_summary(session.last, True)


def _save(session: Conversation, reader: Reader, rest: str) -> None:
    if not rest:
        raise ConfigError("/save needs a file name", "as in: /save talk.json")
    try:
        file = Path(rest).expanduser()
        if file.is_file() and not agreed(reader, f"{one_line(rest)} is there already. Write over it?"):
            raise ConfigError(f"{rest} is there already; nothing was saved", "give another name")
        write_file(file, json_text(session.messages, indent=2, ascii_only=False) + "\n")
    except (OSError, RuntimeError) as error:  # the second: of names that no file can have
        raise _refused(f"cannot write {rest}", error) from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise _refused(f"cannot write {rest}", error) from error
    tell(f"saved {len(session.messages)} messages to {rest}")


def _load(session: Conversation, reader: Reader, rest: str) -> None:
    if not rest:
        raise ConfigError("/load needs a file name", "as in: /load talk.json")
    try:
        _, messages = read_conversation(Path(rest).expanduser())
    except (OSError, RuntimeError) as error:
        raise _refused(f"cannot read {rest}", error) from error
    session.go_on(messages)
    tell(f"loaded {len(messages)} messages from {rest}, {counted(session.exchanges, 'question')}")


def _refused(what: str, error: Exception) -> ConfigError:
    return ConfigError(f"{what}: {getattr(error, 'strerror', None) or error}")


def _tools(session: Conversation, reader: Reader, rest: str) -> None:
    tell(session.told_tools)


def _set(session: Conversation, reader: Reader, rest: str) -> None:
    name, _, value = rest.partition(" ")
    value = value.strip()
    if not name:
        for one in (*SETTINGS, DROP):
            tell(f"{one} {_shown(session, one)}")
        return
    name = name.removeprefix("--").replace("-", "_")
    if name not in (*SETTINGS, DROP):
        raise ConfigError(f"there is no setting {one_line(name):.60}", suggest(name, [*SETTINGS, DROP]))
    if value:
        _change(session, name, value)
    tell(f"{name} {_shown(session, name)}")


def _change(session: Conversation, name: str, value: str) -> None:
    if name == DROP:
        if value not in SWITCH:
            raise ConfigError(f"/set {DROP} {value}: not a choice", "use on or off")
        session.drop_oldest = SWITCH[value]
        return
    session.params = session.params.changed(**{name: _value(name, value)})


def _value(name: str, value: str) -> Any:
    if name == "stop":
        return () if value == "none" else (value,)
    if value == "none" and "none" in SETTINGS[name]:
        return None
    is_switch = SETTINGS[name] == _SWITCH
    if is_switch and value in SWITCH:
        return SWITCH[value]
    try:
        found = parse_json(value, name, ConfigError)
    except ConfigError:
        found = None
    if is_switch or not isinstance(found, int | float) or isinstance(found, bool):
        from minicpm4.engine.params import LEAST, RANGES  # the engine is loaded by now, at a start it is not

        fitting = SETTINGS[name].format(RANGES.get(name, LEAST.get(name)))
        raise ConfigError(f"/set {name}: {one_line(value):.60} does not fit", f"give {fitting}")
    return found


def _shown(session: Conversation, name: str) -> str:
    value = session.drop_oldest if name == DROP else getattr(session.params, name)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(value) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


ACTIONS: dict[str, Callable[[Conversation, Reader, str], None]] = {
    "/help": _help,
    "/reset": _reset,
    "/forget": _forget,
    "/system": _system,
    "/set": _set,
    "/think": _think,
    "/tools": _tools,
    "/stats": _stats,
    "/save": _save,
    "/load": _load,
}
