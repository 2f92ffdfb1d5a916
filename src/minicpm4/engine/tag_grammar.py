"""Grammars of values that stand in a tag: text as it is where the schema says text, else JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from minicpm4.errors import RequestError
from minicpm4.text.call_formats import CallFormat
from minicpm4.text.xml_calls import CDATA, CDATA_END, resolved, types_of

__all__ = ["Rules", "tagged_value"]

_RAW = r"[^<&\n]*"  # text that needs no CDATA block, and such a block
_BLOCK = r"<!\[CDATA\[([^\]]|\][^\]]|\]\]+[^\]>])*\]\]+>"
_ANY = "(?s:.*)"
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[A-Za-z0-9_%+-]{1,64}@[A-Za-z0-9]{1,63}(\.[A-Za-z0-9]{1,63}){1,3}",
}
_NARROWER = ("minLength", "maxLength", "pattern", "format")
_SAID = {"type", "enum", "const", *_NARROWER}
_SILENT = {"title", "description", "default", "examples", "example", "$defs", "$comment", "deprecated"}
MAX_LENGTH = 4000  # characters that are counted: more make the grammar too large


class Rules(Protocol):
    """Where rules are written."""

    def add(self, body: str, *, terminal: bool = False, suffix: str | None = None) -> str:
        """The name of a rule; as a ``terminal`` it may hold ``&``; up to ``suffix``, which it reads too."""
        ...

    def literal(self, text: str) -> str: ...

    def json(self, schema: Mapping[str, Any]) -> str: ...


def tagged_value(schema: Mapping[str, Any], form: CallFormat, rules: Rules) -> str:
    """The value of an argument and the end of its tag. Raises RequestError, which tells the place, for a
    schema that cannot be followed outside JSON."""
    assert form.argument is not None
    after = form.argument.after
    closing = rules.literal(after)
    types = types_of(schema)
    null = rules.literal("None" if form.python_words else "null")
    if "string" not in types or types - {"string", "null"}:
        plain = types == {"boolean"} and not {"enum", "const"} & resolved(schema, schema).keys()
        value = '("True" | "False")' if form.python_words and plain else rules.json(schema)
        return f"{value} {closing}"
    own_line = "\n" in form.argument.middle
    text = _text(schema, rules, own_line)
    if text is not None:
        return f"({text} | {null}) {closing}" if "null" in types else f"{text} {closing}"
    if not own_line:
        raw, block = rules.add(f"/{_RAW}/", terminal=True), rules.add(f"/{_BLOCK}/", terminal=True)
        return f"({raw} | {block}) {closing}"  # what is text reads "null" as null where that may be
    if closing.startswith("<["):
        return f"/{_ANY}/ {closing}"
    return rules.add(f"/{_ANY}/", suffix=after)


def _text(schema: Mapping[str, Any], rules: Rules, own_line: bool) -> str | None:
    """The strings of a schema; None: any. ``own_line``: values stand on lines of their own, as they are."""
    own = resolved(schema, schema)
    if isinstance(choices := own.get("anyOf"), list):  # one of them null
        inner = [one for one in choices if types_of(one, schema) == {"string"}]
        if len(inner) == 1 and len(choices) == 2:
            own = resolved(inner[0], schema)
    odd = sorted(own.keys() - _SAID - _SILENT)
    if odd:
        raise RequestError(f"at {odd[0]}: this is not followed in a tag")
    values = own.get("enum", [own["const"]] if "const" in own else None)
    if isinstance(values, list):
        return "(" + " | ".join(_exactly(one, own_line) for one in values if isinstance(one, str)) + ")"
    if not own.keys() & {*_NARROWER}:
        return None
    regexes = [_lengths(own), *([_searched(own["pattern"])] if "pattern" in own else [])]
    if "format" in own:
        if not isinstance(own["format"], str) or own["format"] not in _FORMATS:
            raise RequestError(f"at format: {own['format']!r:.40} is not followed in a tag")
        regexes.append(_FORMATS[own["format"]])
    return rules.add(" & ".join(f"/{_slashed(one)}/" for one in regexes), terminal=True)


def _lengths(own: Mapping[str, Any]) -> str:
    low, high = own.get("minLength", 0), own.get("maxLength")
    for name, bound in (("minLength", low), ("maxLength", high)):
        if bound is not None and (type(bound) is not int or not 0 <= bound <= MAX_LENGTH):
            raise RequestError(f"at {name}: {bound!r:.40} is not 0 to {MAX_LENGTH}, as in a tag")
    return _RAW if not low and high is None else f"[^<&\\n]{{{low},{'' if high is None else high}}}"


def _searched(pattern: Any) -> str:
    """What holds a match of ``pattern``, as schemas mean it."""
    if not isinstance(pattern, str):
        raise RequestError(f"at pattern: {pattern!r:.40} is no pattern")
    ends = re.search(r"(?<!\\)(\\\\)*\$$", pattern) is not None
    inner = pattern[: len(pattern) - ends].removeprefix("^")
    return f"{'' if pattern.startswith('^') else _ANY}({inner}){'' if ends else _ANY}"


def _slashed(regex: str) -> str:
    """A regular expression as it stands between slashes, in one line."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", regex).replace("\n", r"\x0a").replace("\r", r"\x0d")


def _exactly(text: str, own_line: bool) -> str:
    if own_line and "\n</" in text:
        raise RequestError(f"at enum: no tag can hold {text!r:.40}")
    if not own_line and any(char in text for char in "<&\n"):
        if CDATA_END in text:
            raise RequestError(f"at enum: no tag can hold {text!r:.40}")
        text = CDATA + text + CDATA_END
    return json.dumps(text, ensure_ascii=False)
