"""Prompts out of a corpus: what a user might ask about a passage of it. The answers are the model's own
(``minicpm4 spec train``), so a passage need not be true, only like what the model will be asked about.

A conversation of a corpus of chats is asked up to its last question. Which passages are taken hangs on their
hashes alone: the same corpus gives the same prompts, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any, NamedTuple

from minicpm4.config.strict import require
from minicpm4.data.corpora import Corpus
from minicpm4.data.holdout import mark_of, mark_of_messages
from minicpm4.data.packages import is_package
from minicpm4.data.packer import corpus_texts
from minicpm4.data.sources import SUFFIXES, conversations
from minicpm4.places import from_user

__all__ = ["VERSION", "Ask", "asks", "corpora_of"]

VERSION = 1  # of what is asked: others give other prompts
SOURCES = (*SUFFIXES["text"], ".py")
PASSAGE = (120, 700)  # characters
PROSE = (
    "Copy this text exactly:\n\n{}",
    "Summarise this:\n\n{}",
    "{}\n\nExplain this in simple words.",
    "Write this in other words:\n\n{}",
    "Go on with this text:\n\n{}",
    "{}\n\nWhat are the main points? Answer as a list.",
    "{}\n\nAsk three questions about this text and answer each of them.",
    "Translate this into Spanish:\n\n{}",
    "Correct the mistakes in this text and print all of it:\n\n{}",
    "Write a short story in which this is said: {}",
    "Tell me more about this: {}",
    "How would you explain to a friend what this is about? {}",
)
CODE = (
    "What does this code do?\n```\n{}\n```",
    "Add comments to this code and print all of it:\n```\n{}\n```",
    "Give the variables of this code better names and print all of it:\n```\n{}\n```",
    "Write tests for this code:\n```\n{}\n```",
    "Print this code without changes:\n```\n{}\n```",
    "Write a Python function that does something like this, with an example:\n```\n{}\n```",
)
SHORT = 160  # characters that the last three of PROSE show
_CODE = re.compile(r"^\s*(def |class |import |from \w+ import|return\b|#include|>>> |[{}]\s*$)", re.MULTILINE)
_GAP = re.compile(r"\n\s*\n")


class Ask(NamedTuple):
    """Messages of a conversation that ends with a question, and its mark."""

    mark: int
    messages: list[dict[str, Any]]


def corpora_of(paths: Sequence[str]) -> list[Corpus]:
    """Corpora by what ``paths`` are: packages, conversations (JSON lines, parquet), else text; of folders
    their texts, and Python sources. Raises ConfigError."""
    found = []
    for path in paths:
        if is_package(path):
            found.append(Corpus(kind="package", paths=(path,)))
        elif path.endswith(SUFFIXES["chat"]):
            found.append(Corpus(kind="chat", paths=(path,)))
        else:
            found.append(Corpus(kind="text", paths=tuple(map(str, _inside(from_user(path))))))
    return found


def _inside(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [one for one in path.rglob("*") if one.name.endswith(SOURCES) and one.is_file()]
    require(bool(found), f"{path} has no files to ask about", "it looks for " + ", ".join(SOURCES))
    return sorted(found)


def asks(corpora: Iterable[Corpus], count: int) -> list[Ask]:
    """At most ``count`` asks of all corpora: those with the least marks, ascending. Raises ConfigError."""

    def every() -> Iterator[Ask]:
        for corpus in corpora:
            files = corpus.files()
            if corpus.kind == "chat":
                yield from _of_chats(files)
            else:
                for text in corpus_texts(corpus, files):
                    yield from _of_text(text)

    return nsmallest(count, {ask.mark: ask for ask in every()}.values(), key=lambda ask: ask.mark)


def _of_text(text: str) -> Iterator[Ask]:
    for passage in _passages(text):
        mark = mark_of(passage)
        code = len(_CODE.findall(passage)) > 1
        forms = CODE if code else PROSE
        form = mark % len(forms)
        brief = not code and form >= len(PROSE) - 3
        shown = " ".join(passage.split())[:SHORT] if brief else passage
        yield Ask(mark, [{"role": "user", "content": forms[form].format(shown)}])


def _passages(text: str) -> Iterator[str]:
    """Paragraphs, short ones together, long ones cut."""
    held = ""
    for part in _GAP.split(text):
        part = part.strip("\n")[: PASSAGE[1]].rstrip()
        if len(held) + len(part) > PASSAGE[1] and held:
            if len(held) >= PASSAGE[0]:
                yield held
            held = ""
        held = f"{held}\n\n{part}" if held else part
        if len(held) >= 2 * PASSAGE[0]:
            yield held
            held = ""
    if len(held) >= PASSAGE[0]:
        yield held


def _of_chats(files: Sequence[Path]) -> Iterator[Ask]:
    for one in conversations(files, skip=lambda reason, where: None):
        messages = one.messages if isinstance(one.messages, list) else []
        last = max((i for i, m in enumerate(messages) if _asks(m)), default=-1)
        if last >= 0 and not one.tools:
            asked = messages[: last + 1]
            yield Ask(mark_of_messages(asked), asked)


def _asks(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") == "user"
        and isinstance(message.get("content"), str)
    )
