"""Every error that users of the package can meet.

    Minicpm4Error
    ├── ConfigError        a configuration, an option or a sampling parameter is wrong
    ├── CheckpointError    a model file is missing a part, corrupt, truncated or hostile
    ├── TextError          a tokenizer or chat template cannot be read or refuses its input
    ├── RequestError       one request cannot be served (too long, empty, out of range)
    │   └── ToolSchemaError    calls of a tool cannot be held to its schema
    ├── EngineError        the engine failed beneath a request that was right; asked again, it may be served
    ├── ToolServerError    a server of tools cannot be started or reached, or does not keep to the protocol
    ├── NotAllowedError    something was not allowed by whoever was asked, or nobody was there to ask
    ├── MemoryPlanError    what was asked for does not fit in memory
    ├── UnsupportedError   this machine or installation lacks something that was asked for
    ├── TrainingError      a training run cannot go on
    └── ModelNotFoundError a model name leads nowhere, or its files cannot be fetched

A message states the condition with its values, then the remedy. What it quotes of a file is cut to size here,
and said to be: no reader has to think of it. The command line prints it and
exits with code 2; a server answers 4xx with the same text, EngineError with 5xx.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EngineError",
    "MemoryPlanError",
    "Minicpm4Error",
    "ModelNotFoundError",
    "NotAllowedError",
    "RequestError",
    "TextError",
    "ToolSchemaError",
    "ToolServerError",
    "TrainingError",
    "UnsupportedError",
    "shortened",
]


# Characters of a condition, the first 300 of which may be a stranger's, and of a remedy, which may list keys.
_MOST, _MOST_OF_REMEDY = 400, 600
# A stranger's value, or a path: no word, nothing in quotes is so long otherwise (in brackets: ``_nests``).
# What is in quotes first: a long word may be its beginning.
_LONG = re.compile(r"""'[^']{300,}'|"[^"]{300,}"|\S{301,}""")


def _bounded(text: str, most: int, whole: int = 300) -> str:
    """``text`` of ``most`` characters, with what is too long in it cut where it has over ``whole``, and
    nothing that is no UTF-8."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > whole:
        text = _LONG.sub(lambda found: _cut(found[0]), text)
    if len(text) > whole:
        text = "".join(_cut(part) if len(part) > 300 and part[0] in "[{(" else part for part in _nests(text))
    return shortened(text, most)


def _cut(text: str) -> str:
    """Of a path the file's name, too; what ends it in our sentence stays."""
    text, end = (text[:-1], text[-1]) if text[-1] in ":;,." else (text, "")
    shown = f"{text[:120]}…{text[-80:]}" if "/" in text else f"{text[:200]}…"
    return f"{shown} ({len(text)} characters){end}"


def _nests(text: str) -> Iterator[str]:
    """``text`` in parts: what stands in brackets, with all within, and what stands between."""
    depth = start = 0
    for at, char in enumerate(text):
        if char in "[{(":
            if not depth and at > start:
                yield text[start:at]
            start, depth = start if depth else at, depth + 1
        elif char in "]})" and depth:
            depth -= 1
            if not depth:
                yield text[start : at + 1]
                start = at + 1
    if start < len(text):
        yield text[start:]


def shortened(text: str, most: int, apart: str = " ") -> str:
    """Of a text of over ``most`` characters its beginning and its end, and how much is left out between."""
    if len(text) <= most:
        return text
    head = most * 3 // 4
    left = f"[… {len(text) - most:,} characters left out …]"
    return f"{text[:head]}{apart}{left}{apart}{text[len(text) - most + head :]}"


class Minicpm4Error(Exception):
    """Base of all errors of this package: ``condition`` (with values) and ``remedy``."""

    def __init__(self, condition: str, remedy: str = "") -> None:
        self.condition = _bounded(condition, _MOST)
        self.remedy = _bounded(remedy, _MOST_OF_REMEDY, _MOST_OF_REMEDY)  # it may be a command, to be copied
        super().__init__(f"{self.condition}. {self.remedy}" if remedy else self.condition)


class ConfigError(Minicpm4Error, ValueError):
    """A configuration, an option or a sampling parameter is wrong."""


class CheckpointError(Minicpm4Error):
    """A model file is missing a part, corrupt, truncated or hostile."""


class TextError(Minicpm4Error):
    """A tokenizer or chat template cannot be read, or refuses its input."""


class RequestError(Minicpm4Error, ValueError):
    """One request cannot be served: too long, empty, out of range."""


class ToolSchemaError(RequestError):
    """Calls of some tools cannot be held to their schemas: ``tools``, their names."""

    def __init__(self, condition: str, remedy: str = "", *, tools: Sequence[str] = ()) -> None:
        super().__init__(condition, remedy)
        self.tools = tuple(tools)


class EngineError(Minicpm4Error):
    """The engine failed beneath a request that was right; asked again, it may be served."""


class ToolServerError(Minicpm4Error):
    """A server of tools cannot be started or reached, or does not keep to the protocol."""


class NotAllowedError(Minicpm4Error):
    """Something was not allowed by whoever was asked, or nobody was there to ask."""


class MemoryPlanError(Minicpm4Error):
    """What was asked for does not fit in memory."""


class UnsupportedError(Minicpm4Error):
    """This machine or installation lacks something that was asked for."""


class ModelNotFoundError(Minicpm4Error):
    """A model name leads nowhere, or its files cannot be fetched."""


class TrainingError(Minicpm4Error):
    """A training run cannot go on: its loss is not finite, step after step."""
