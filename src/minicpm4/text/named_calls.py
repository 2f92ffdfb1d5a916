"""Calls whose names and arguments stand between marks of their own: ``[TOOL_CALLS]name[ARGS]{…}``."""

from __future__ import annotations

from typing import Any

from minicpm4.text.call_formats import CallFormat
from minicpm4.text.loose_json import JSON_BLANKS, LooseJsonError, read_value
from minicpm4.text.pycalls import MAX_CALLS, MAX_NAME_CHARS, CallSyntaxError

__all__ = ["read_named"]


def read_named(block: str, form: CallFormat) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """(name, arguments) of the calls of a block, its outer marks left out, and where they end: behind all of
    it where the format has a closing mark. Raises CallSyntaxError."""
    lead, end = _bare(form.before.removeprefix(form.opening)), _bare(form.after.removesuffix(form.closing))
    middle, between, at = _bare(form.middle), _bare(form.between or ""), 0
    calls: list[tuple[str, dict[str, Any]]] = []
    while len(calls) < MAX_CALLS:
        at = _past(block, at, lead)
        stop = block.find(middle, at)
        name = _bare(block[at:stop])
        if stop < 0 or not name or len(name) > MAX_NAME_CHARS:
            raise CallSyntaxError(f"there is no name before {middle}")
        at = stop + len(middle)
        if form.id_after:
            stop = block.find(_bare(form.id_after), at)
            if stop < 0:
                raise CallSyntaxError(f"{form.id_after} is missing behind {name}")
            at = stop + len(_bare(form.id_after))
        given, at = _arguments(block, at, name)
        calls.append((name, given))
        rest = _bare(block[at:])
        if rest == end:
            return calls, len(block)
        if not form.closing and not rest.startswith(between or "\0"):
            return calls, at
        if not between or not rest.startswith(between):
            raise CallSyntaxError(f"{rest[:40]!r} follows the call of {name}")
        lead = between
    raise CallSyntaxError(f"more than {MAX_CALLS} calls")


def _bare(text: str) -> str:
    return text.strip(JSON_BLANKS)


def _arguments(block: str, at: int, name: str) -> tuple[dict[str, Any], int]:
    try:
        given, at = read_value(block, at)
    except LooseJsonError as error:
        raise CallSyntaxError(f"not JSON: {error}") from error
    if not isinstance(given, dict):
        raise CallSyntaxError(f"the arguments of {name} are a {type(given).__name__}, not a table")
    return given, at


def _past(text: str, at: int, mark: str) -> int:
    """Where ``mark`` ends, which comes next but for blanks."""
    rest = text[at:].lstrip(JSON_BLANKS)
    if not rest.startswith(mark):
        raise CallSyntaxError(f"{mark} is missing at {rest[:40]!r}")
    return len(text) - len(rest) + len(mark)
