"""Calls whose arguments have a tag each: ``<function name="f"><param name="a">text</param></function>``.

A value is text where its schema says so, else JSON. It may stand in a CDATA block; else entities of XML are
read, unless values have lines of their own. Whether quotes are single or double, and what white space stands
between tags, makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minicpm4.text.call_formats import CallFormat, Tag
from minicpm4.text.loose_json import JSON_BLANKS, LooseJsonError, NumberRangeError, read_values
from minicpm4.text.pycalls import CallSyntaxError

__all__ = ["CDATA", "CDATA_END", "argument_types", "read_xml", "resolved", "types_of", "value_of"]

CDATA, CDATA_END = "<![CDATA[", "]]>"
MAX_ARGUMENTS = 1024
_QUOTES = {"&quot;": '"', "&apos;": "'"}
MAX_PARTS = 256  # of a schema that has choices
_ONE = f"[{JSON_BLANKS}]"  # of the blanks, which are XML's too
_BLANK, _BLANKS = f"{_ONE}{{1,64}}+", f"{_ONE}{{0,64}}+"  # bounded: a reply may be nothing else
_DEEP = 16  # references inside references
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
    (type(None), "null"),
)


def types_of(schema: Any, root: Any = None) -> frozenset[str]:
    """The types of JSON that values of a schema may have; none where it does not say, or in over MAX_PARTS
    parts. ``root``: what references in it lead into."""
    return _types(schema, schema if root is None else root, [MAX_PARTS])


def _types(schema: Any, root: Any, left: list[int]) -> frozenset[str]:
    """``left``: how many parts may still be looked at; references may lead in circles."""
    left[0] -= 1
    if left[0] < 0:
        return frozenset()
    schema = resolved(schema, root)
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset([named])
    if isinstance(named, list):
        return frozenset(one for one in named if isinstance(one, str))
    if "const" in schema:
        return frozenset([_kind(schema["const"])])
    if isinstance(values := schema.get("enum"), list):
        return frozenset(map(_kind, values))
    for key in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(key), list):
            found = [_types(one, root, left) for one in choices[: MAX_PARTS + 1]]
            return frozenset().union(*found) if all(found) and left[0] >= 0 else frozenset()
    if isinstance(every := schema.get("allOf"), list) and every:
        return _types(every[0], root, left)
    return frozenset()


def resolved(schema: Any, root: Any) -> dict[str, Any]:
    """What a schema's reference leads to, if it is one; nothing where it leads nowhere here."""
    for _ in range(_DEEP):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(reference := schema.get("$ref"), str):
            return dict(schema)
        schema = _at(root, reference)
    return {}


def value_of(text: str, types: frozenset[str]) -> Any:
    """The value that a tag's text says, of a schema with these types. Raises CallSyntaxError for a number
    that no double holds, where text cannot be meant."""
    if types == {"string"}:
        return text
    plain = text.strip(JSON_BLANKS)
    if types == {"string", "null"}:
        return None if plain in ("null", "None") else text
    try:
        (value,) = read_values(plain)
    except NumberRangeError as error:
        if not types or "string" in types:
            return text
        raise CallSyntaxError(str(error)) from error
    except (LooseJsonError, ValueError):
        return text
    kind = _kind(value)
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return text if not fits and "string" in types else value


def read_xml(block: str, form: CallFormat, schemas: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls in ``block``, marks and all. Raises CallSyntaxError."""
    assert form.argument is not None
    start = form.before.rfind("<")
    call = _tag(form.before[start:], form.middle)
    end = re.compile(f"{_ONE}*+" + re.escape(re.findall(r"</[^<>]+>", form.after)[0]))
    calls, at = [], 0
    while (found := call.search(block, at)) is not None:
        name, schema = found[1], schemas.get(found[1])
        given, at = _arguments(block, found.end(), form.argument, schema)
        closed = end.match(block, at)
        if closed is None:
            raise CallSyntaxError(f"the call of {name:.80} is not closed")
        calls.append((name, given))
        at = closed.end()
    if not calls:
        raise CallSyntaxError("the block holds no call")
    return calls


def _arguments(block: str, at: int, tag: Tag, schema: Any) -> tuple[dict[str, Any], int]:
    opening = re.compile(f"{_ONE}*+" + _tag(tag.before, tag.middle).pattern)
    blank = "\n" if "\n" in tag.middle else ""
    closing = tag.after.strip(JSON_BLANKS)
    given: dict[str, Any] = {}
    while (found := opening.match(block, at)) is not None:
        key, at = found[1], found.end()
        if key in given:
            raise CallSyntaxError(f"the argument {key:.80} is given twice")
        if len(given) == MAX_ARGUMENTS:
            raise CallSyntaxError(f"over {MAX_ARGUMENTS} arguments")
        text, at = _text(block, at, closing, blank, key)
        given[key] = value_of(text, argument_types(schema, key))
    return given, at


def _text(block: str, at: int, closing: str, blank: str, key: str) -> tuple[str, int]:
    from xml.sax.saxutils import unescape  # only here: it loads an HTTP client, which a start would wait for

    # Where values stand on lines of their own they stand as they are.
    inside = not blank and block[at : at + 80].lstrip(JSON_BLANKS).startswith(CDATA)
    start = block.index(CDATA, at) + len(CDATA) if inside else at
    stop = block.find(CDATA_END if inside else closing, start)
    if stop < 0:
        raise CallSyntaxError(f"the argument {key:.80} is not closed")
    text = block[start:stop]
    end = block.find(closing, stop)
    if end < 0 or (inside and block[stop + len(CDATA_END) : end].strip(JSON_BLANKS)):
        raise CallSyntaxError(f"the argument {key:.80} is not closed")
    if not inside:
        text = text.removeprefix(blank).removesuffix(blank) if blank else unescape(text, _QUOTES)
    return text, end + len(closing)


def argument_types(schema: Any, key: str) -> frozenset[str]:
    """The types of one argument of a tool with this schema."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return types_of(properties.get(key), schema) if isinstance(properties, Mapping) else frozenset()


def _tag(before: str, after: str) -> re.Pattern[str]:
    """An opening tag with a name in it, loosely."""
    kinds = {"'": "[\"']?", '"': "[\"']?"}

    def loose(text: str) -> str:
        parts = re.split(r"(\s+|[\"'])", text.strip(JSON_BLANKS))
        return "".join(_BLANK if part.isspace() else kinds.get(part, re.escape(part)) for part in parts)

    name = r"([^\s\"'<>][^\"'<>]{0,255}?)"
    return re.compile(
        f"{loose(before)}[\"']?{_BLANKS}{name}{_BLANKS}{loose(after.partition('>')[0])}{_BLANKS}>"
    )


def _at(root: Any, pointer: str) -> Any:
    """What a reference leads to; None where it leads nowhere here."""
    if not pointer.startswith("#"):
        return None
    for part in pointer[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        root = root.get(key) if isinstance(root, Mapping) else None
    return root


def _kind(value: Any) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "string")
