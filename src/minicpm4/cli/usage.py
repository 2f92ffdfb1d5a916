"""What is said of a command line that is not understood: what is wrong, the value, and what to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MODEL_OPTIONS = ("-m", "--model")
MAX_SHOWN = 60  # characters of a value
MUCH_NEARER = 0.2  # of difflib's ratio: what is less like the word by that much is not named beside it
# Words of the library that reads options -> what to give.
_KINDS = {"valid number": "a number", "valid integer": "a whole number"}


def told(error: Any, args: Sequence[str]) -> str:
    """One line for an error of usage in ``args``."""
    message = str(error.format_message())
    context = getattr(error, "ctx", None)
    if context is not None and message.startswith("No such command"):
        return _no_command(message, args, context)
    if context is None or not context.command.params:
        return message
    name = getattr(error, "option_name", None)
    if name:
        return f"No such option: {name:.{MAX_SHOWN}}. {_nearest(name, context)}"
    if message.startswith("Got unexpected extra argument"):
        return f"{message}. {_too_many(context)}"
    param = getattr(error, "param", None)
    kind = next((what for said, what in _KINDS.items() if said in message), None)
    value = None if param is None else _value(args, param.opts)
    if param is not None and kind is not None and value is not None:
        return f"{max(param.opts, key=len)} {value:.{MAX_SHOWN}} is not {kind}. give {kind}"
    return message


def _nearest(name: str, context: Any) -> str:
    """What to write in place of an option that there is not."""
    if name in MODEL_OPTIONS and (argument := _model(context)):
        return f"the model has its place without one: {context.command_path} {argument}"
    import difflib

    known = [one for param in context.command.params for one in (*param.opts, *param.secondary_opts)]
    written = name.replace("_", "-").lower()
    near = difflib.get_close_matches(written, [one for one in known if one.startswith("--")], cutoff=0.6)
    if not near:
        return f"{context.command_path} --help lists them"
    likeness = [difflib.SequenceMatcher(None, one, written).ratio() for one in near]
    others = [
        one
        for one, like in zip(near[1:], likeness[1:], strict=True)
        if written != near[0] and like > likeness[0] - MUCH_NEARER
    ]
    return f"did you mean {near[0]}?" + (f" (else {' or '.join(others)})" if others else "")


def _no_command(message: str, args: Sequence[str], context: Any) -> str:
    """That there is no such command, and what lists them; `help` and `version` are options."""
    path = context.command_path
    word = next((one for one in args if f"'{one}'" in message), "")
    if word.lower() == "version" and context.parent is None:
        return f"{message.rstrip('.')}. {path} --version prints it"
    if word.lower() == "help":
        command = context.command
        for one in args[args.index(word) + 1 :]:
            command = getattr(command, "commands", {}).get(one)
            if command is None:
                break
            path = f"{path} {one}"
        return f"{message.rstrip('.')}. {path} --help shows it"
    return message if "Did you mean" in message else f"{message.rstrip('.')}. {path} --help lists them"


def _too_many(context: Any) -> str:
    """What to do with words behind those that a command takes."""
    arguments = [one for one in context.command.params if one.param_type_name == "argument"]
    if any(one.name == "question" for one in arguments):
        return f'put quotes around the question: {context.command_path} "What is the capital of France?"'
    if arguments:
        return "put quotes around what has spaces in it, or leave the rest out"
    models = any("-m" in one.opts for one in context.command.params)
    return "leave it out" + (": --model NAME names the model" if models else "")


def _model(context: Any) -> str:
    """How help writes the argument that names the model; "" without one."""
    named = [one for one in context.command.params if one.param_type_name == "argument"]
    return next(("MODEL" for one in named if one.name in ("model", "models")), "")


def _value(args: Sequence[str], names: Sequence[str]) -> str | None:
    """What stands behind an option, if it stands apart or behind a = ."""
    for at, one in enumerate(args):
        for name in names:
            if one == name and at + 1 < len(args):
                return args[at + 1]
            if one.startswith(f"{name}=") and name.startswith("--"):
                return one.partition("=")[2]
    return None
