"""Conversations with calls of tools, why one is not kept, and a folder of those that are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.checks import misfit
from minicpm4.agents.mcp.hidden import has_hidden
from minicpm4.agents.mcp.tools import texts_in
from minicpm4.errors import RequestError
from minicpm4.files import json_text, making, write_json, writing
from minicpm4.text.call_messages import call_message
from minicpm4.text.messages import check_messages, check_tools

__all__ = ["REASONS", "Counts", "Dropped", "Talk", "call_message", "fault", "write_set"]

REASONS = {
    "layout": "it is not of the layout that was named",
    "no tools": "no tool was offered",
    "no query": "the user says nothing",
    "no call": "no tool is called",
    "unknown tool": "a tool is called that was not offered",
    "arguments": "arguments do not fit the tool's schema",
    "order": "a result stands where no call was made, or a call that has others after it has no result",
    "not JSON": "a number is none that JSON has",
    "bounds": "it is no chat that a model is given: nested too deep, too long, or of other parts",
    "hidden": "it has characters that nobody sees",
    "twice": "the same query with the same calls came before",
    "gave up": "its maker says that it was not solved",
    "failed call": "the tool, or the way to it, failed",
    "refused": "a call was not allowed",
    "not called": "the tool that the query was written for was not called",
    "not answered": "it ends without an answer",
    "other answer": "the answer is not the one that was known",
    "tool named": "the query is about a tool by its name, as no user says it",
    "unnamed value": "the query does not name a value that the call needs",
    "other tool": "the query, put to the model, leads to another tool",
    "not written": "the model did not write what was asked for",
}
TALKS, DROPPED, COUNTS = "talks.jsonl", "dropped.jsonl", "counts.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """A conversation as ``minicpm4 train`` reads it. ``where``: what it was made from."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    where: str = ""

    @property
    def query(self) -> str:
        """What the user says first."""
        said = [str(one.get("content") or "") for one in self.messages if one.get("role") == "user"]
        return said[0].strip() if said else ""

    def calls(self) -> Iterator[tuple[str, Any]]:
        """Names and arguments, in order."""
        for message in self.messages:
            for one in message.get("tool_calls") or ():
                yield one["function"]["name"], one["function"]["arguments"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What is not kept: a name of REASONS, and ``why`` in particular."""

    reason: str
    where: str
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """``kept``: conversations, with so many ``calls``; ``dropped``: how many for each reason."""

    kept: int
    calls: int
    dropped: Mapping[str, int]


def fault(talk: Talk) -> Dropped | None:
    """Why a conversation is not to be learnt from; None: nothing speaks against it."""

    def dropped(reason: str, why: str = "") -> Dropped:
        return Dropped(reason=reason, where=talk.where, why=why[:500])

    try:
        check_messages(talk.messages)
        check_tools(talk.tools)
    except RequestError as error:
        return dropped("bounds", str(error)) if talk.messages else dropped("no query")
    if not talk.tools:
        return dropped("no tools")
    if not talk.query:
        return dropped("no query")
    calls = list(talk.calls())
    if not calls:
        return dropped("no call")
    schemas = {one["function"]["name"]: one["function"].get("parameters") or {} for one in talk.tools}
    for name, given in calls:
        if name not in schemas:
            return dropped("unknown tool", str(name))
        if not isinstance(given, Mapping):
            return dropped("arguments", f"{name}: no table")
        if unfit := misfit(schemas[name], given):
            return dropped("arguments", f"{name}: {unfit}")
    if why := _order(talk.messages):
        return dropped("order", why)
    try:
        _line(talk)
    except ValueError as error:
        return dropped("not JSON", str(error))
    texts = (*texts_in(list(talk.messages)), *texts_in(list(talk.tools)))
    return dropped("hidden") if any(map(has_hidden, texts)) else None


def _order(messages: Sequence[Mapping[str, Any]]) -> str:
    """Each result follows its call, and a call is followed by its results, unless it is the last thing."""
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message.get("role") == "tool":
            if message.get("tool_call_id") not in waiting:
                return f"messages[{i}] is a result of no call"
            waiting.remove(message["tool_call_id"])
        elif waiting:
            return f"messages[{i}] comes before the result of {waiting[0]}"
        waiting += [one["id"] for one in message.get("tool_calls") or ()]
    return ""


def write_set(
    folder: Path, found: Iterable[Talk | Dropped], told: Callable[[int], None] | None = None
) -> Counts:
    """Check conversations and write them: what is kept into ``talks.jsonl``, what is not, with its reason,
    into ``dropped.jsonl``, how many of each into ``counts.json``. Each file is whole or as it was, and a
    folder that would be empty is not made. Raises OSError, and what reading raises."""
    with making(folder):
        return _write_set(folder, found, told)


def _write_set(folder: Path, found: Iterable[Talk | Dropped], told: Callable[[int], None] | None) -> Counts:
    kept = calls = 0
    dropped: Counter[str] = Counter()
    seen: set[bytes] = set()
    with writing(folder / TALKS) as good, writing(folder / DROPPED) as bad:
        for number, one in enumerate(found, 1):
            made = one if isinstance(one, Dropped) else fault(one) or _twice(one, seen)
            if isinstance(made, Dropped):
                dropped[made.reason] += 1
                table = {"reason": made.reason, "why": made.why, "where": made.where}
                bad.write((json_text(table, ascii_only=True) + "\n").encode())
            elif isinstance(one, Talk):
                kept, calls = kept + 1, calls + sum(1 for _ in one.calls())
                good.write((_line(one) + "\n").encode())
            if told is not None:
                told(number)
    counts = Counts(kept=kept, calls=calls, dropped=dict(sorted(dropped.items())))
    write_json(folder / COUNTS, {"kept": kept, "calls": calls, "dropped": counts.dropped})
    return counts


def _line(talk: Talk) -> str:
    text = json_text({"messages": list(talk.messages), "tools": list(talk.tools)}, ascii_only=False)
    return text.encode("utf-8", "surrogatepass").decode("utf-8")  # half a character is none: ValueError


def _twice(talk: Talk, seen: set[bytes]) -> Dropped | None:
    text = json_text([talk.query, list(talk.calls())], sort_keys=True)
    mark = hashlib.sha256(text.encode()).digest()[:16]
    if mark in seen:
        return Dropped(reason="twice", where=talk.where)
    seen.add(mark)
    return None
