"""Grammars as text, and what llguidance makes of them; a SELECT statement of SQL as one that is ready."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from minicpm4.config.strict import shown
from minicpm4.engine.schemas import UNHELD
from minicpm4.errors import RequestError

__all__ = ["JSON_STYLE", "READY", "SQL", "compile_grammar", "line", "plain_schema"]

MAX_RULES = 2000  # of a GBNF grammar, whose converter compares each with each
MAX_BRACKETS = 64  # of a GBNF grammar, inside one another
# Of the lexer's states (1 to 2 kB each) and of a grammar's symbols: compiling then takes under a second.
MAX_STATES, MAX_SYMBOLS = 50_000, 200_000
# JSON as json.dumps writes it. A model that may write any white space often writes nothing else.
JSON_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
LONGEST = {"email": 254}  # characters of strings of a format, by the standards that say what it is
# How schemas hold others: in a table, in a list, or as they are.
_TABLES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalItems", "unevaluatedItems", "contains", "not", "if", "then", "else"),
    *("additionalProperties", "unevaluatedProperties", "propertyNames", "contentSchema"),
)
# Of a stranger's grammar no tokens are asked for that follow without a choice. Where a token of it takes what
# should stand behind it (/y+/ and then y), one follows for ever, and llguidance asks itself for all.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
SQL = r"""
start: "SELECT " ("DISTINCT ")? columns " FROM " source joins where? group? order? limit? ";"?
columns: "*" | column (", " column)*
column: measure (" AS " NAME)?
source: NAME (" AS " NAME)?
joins: (" " ("INNER " | "LEFT ")? "JOIN " source " ON " condition)*
where: " WHERE " condition
group: " GROUP BY " value (", " value)* (" HAVING " measure " " OPERATOR " " value)?
order: " ORDER BY " measure DIRECTION? (", " measure DIRECTION?)*
limit: " LIMIT " COUNT (" OFFSET " COUNT)?
condition: test ((" AND " | " OR ") test)*
test: "NOT "? (comparison | "(" condition ")")
comparison: value (" " OPERATOR " " value | " IS " ("NOT ")? "NULL" | " " ("NOT ")? "LIKE " TEXT
    | " " ("NOT ")? "BETWEEN " value " AND " value | " " ("NOT ")? "IN (" literal (", " literal)* ")")
measure: FUNCTION "(" ("*" | ("DISTINCT ")? name) ")" | value
value: term (" " ARITHMETIC " " term){0,2}
term: name | literal
name: NAME ("." NAME)?
literal: NUMBER | TEXT
FUNCTION: "COUNT" | "SUM" | "AVG" | "MIN" | "MAX"
OPERATOR: "=" | "<>" | "<=" | ">=" | "<" | ">"
ARITHMETIC: "+" | "-" | "*" | "/"
DIRECTION: " ASC" | " DESC"
COUNT: /[0-9]{1,9}/
NUMBER: /-?[0-9]{1,15}(\.[0-9]{1,9})?/
TEXT: /'([^'\x00-\x1f]|''){0,200}'/
NAME: /[a-z_][a-z0-9_]{0,39}/ & ~RESERVED
RESERVED: /select|distinct|from|as|inner|left|join|on|where|group|by|having|order|asc|desc|limit/
    | /offset|and|or|not|is|null|like|between|in|union|all|case|when|then|else|end|exists|cross/
    | /full|right|outer|natural|using|set|into|values|create|table|drop|update|delete|insert/
    | /alter|index|primary|foreign|references|check|default|unique|to|add|commit|transaction/
    | /isnull|notnull|except|intersect|constraint|collate|escape|if|returning|nothing|deferrable/
    | /autoincrement|window|over|filter|with|recursive|user|fetch|for|grant/
"""
"""One SELECT statement of SQL: key words in capitals, names in small letters, values in a standard form."""
READY = {"sql": SQL}
"""Grammars that ``SamplingParams.grammar`` may name."""


def compile_grammar(tokenizer: Any, name: str, value: Any) -> Any:
    """The matcher of a parameter, at its start. Raises RequestError."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=MAX_STATES, max_grammar_size=MAX_SYMBOLS, verbose_errors=False)
    try:
        text = _written(name, value)
    except RequestError:
        raise
    except Exception as error:  # converters raise what they like; RecursionError, too
        raise _refusal(name, value, str(error)) from error
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=limits)
    if not matcher.is_error():
        first = matcher.deep_copy()  # what allows no first token is refused now, not when it is asked for one
        mask = first.compute_bitmask()
        if not first.is_error() and any(mask):
            return matcher
        matcher = first
    raise _refusal(name, value, matcher.get_error() or "it allows no answer at all")


def _written(name: str, value: Any) -> str:
    """A parameter as llguidance's grammar."""
    from llguidance import LLMatcher

    if name == "json_schema":
        return LLMatcher.grammar_from_json_schema(json.dumps(plain_schema(value)), overrides=JSON_STYLE)
    if name == "calls":
        return LLMatcher.grammar_from_lark(value)
    if name == "regex":
        # Digits are 0 to 9, as in schemas: the newest of Unicode's are none to whoever reads the answer.
        return LLMatcher.grammar_from_regex(re.sub(r"(?<!\\)((?:\\\\)*)\\d", r"\1[0-9]", value))
    if name == "choice":
        return LLMatcher.grammar_from_regex("|".join(map(_literal, value)))
    if value in READY:
        return LLMatcher.grammar_from_lark(READY[value])
    _check_numbers(value)
    return LLMatcher.grammar_from_lark((_lark_of_gbnf(value) if _is_gbnf(value) else value) + _NO_FORCING)


def _check_numbers(text: str) -> None:
    """Refuse what ``checked_schema`` refuses in schemas that stand in a grammar."""
    for found in re.finditer(r"-\d{19}(?!\d)", text) if "%json" in text else ():
        if int(found[0]) in UNHELD:
            raise RequestError(f"grammar holds {found[0]}, which answers cannot be held to")


def _literal(text: str) -> str:
    """A regular expression that matches ``text`` alone."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _is_gbnf(text: str) -> bool:
    return re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE) is not None


def _lark_of_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if text.count("::=") > MAX_RULES:
        raise RequestError(f"grammar has {text.count('::='):,} rules in GBNF, the limit is {MAX_RULES:,}")
    depth = most = 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        most = max(most, depth)
    if most > MAX_BRACKETS:
        raise RequestError(f"grammar has {most} brackets inside one another, the limit is {MAX_BRACKETS}")
    # The converter drops the zeros of \u00e9, which Lark then does not read: it gets the character itself.
    return gbnf_to_lark(re.sub(r"(?<!\\)((?:\\\\)*)\\u([0-9a-fA-F]{4})", _character, text))


def _character(found: re.Match[str]) -> str:
    char = chr(int(found[2], 16))
    return found[1] + (char if char.isalnum() else f"\\x{ord(char):02x}" if char.isascii() else char)


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without what llguidance refuses and what says nothing, but programs write: uniqueItems: false,
    and that names are strings. Addresses end where mail ends them."""
    copy = json.loads(json.dumps(schema))
    for _, one in _schemas(copy, "#"):
        if one.get("uniqueItems") is False:
            del one["uniqueItems"]
        if one.get("propertyNames") in ({}, {"type": "string"}):
            del one["propertyNames"]
        longest = LONGEST.get(str(one.get("format")))
        if longest is not None and one.get("type") == "string":
            one.setdefault("maxLength", longest)
    return dict(copy)


def _refusal(name: str, value: Any, why: str) -> RequestError:
    where = f" at {place}" if name == "json_schema" and (place := _place(value, why)) else ""
    remedy = "see what is supported in docs/guide.md" if name == "json_schema" else ""
    return RequestError(f"{name}{where} cannot be followed: {line(why)}", remedy)


def line(text: str, most: int = 300) -> str:
    """A message of several lines, with pictures of places, as one."""
    text = text.replace("<non-verbose/>", "").replace(
        "NoExtensionBias", "no token of the model's would follow"
    )
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not re.fullmatch(r"\^+|(\d+ )?\|.*", line)]
    return shown(" ".join(kept), most)[1:-1] if kept else "no reason is given"


def _place(schema: Any, why: str) -> str:
    """Where in a schema that stands which a message names, as a JSON pointer; "" where that is not known."""
    named = re.match(r"Unimplemented keys: \[\"([^\"]+)\"", why)
    for pointer, one in _schemas(schema, "#"):
        if named and named[1] in one:
            return f"{pointer}/{named[1]}"
        for key in ("format", "pattern", "$ref", "type"):
            value = one.get(key)
            if isinstance(value, str) and value in why and (key != "type" or f"type: {value}" in why):
                return f"{pointer}/{key}"
        if "oneOf" in why and "oneOf" in one:
            return f"{pointer}/oneOf"
    return ""


def _schemas(schema: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and those inside it, with their places."""
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for key, value in [*schema.items()]:
        if key in _TABLES and isinstance(value, dict):
            for name, one in value.items():
                escaped = name.replace("~", "~0").replace("/", "~1")
                yield from _schemas(one, f"{pointer}/{key}/{escaped}")
        elif key in _LISTS and isinstance(value, list):
            for i, one in enumerate(value):
                yield from _schemas(one, f"{pointer}/{key}/{i}")
        elif key in _SINGLE:
            yield from _schemas(value, f"{pointer}/{key}")
