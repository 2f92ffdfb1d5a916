"""Readers of what answers are held to: regular expressions, grammars, JSON schemas, calls of tools."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from minicpm4 import SamplingParams
from minicpm4.engine.calls import Calls
from minicpm4.engine.grammar import SQL, Grammars
from minicpm4.testing import EOS, VOCAB_SIZE, byte_text
from tests.engine.schemas import SCHEMAS
from tests.fuzz.mutate import mutated_bytes, mutated_json
from tests.fuzz.reader import Reader

# fmt: off
_ATOMS = [
    "a", "é", ".", r"\d", r"\w", r"\s", r"\pL", r"\x{41}", r"\u0041", "[a-z]", "[^a]", "[z-a]", "[[:alpha:]]",
    r"\b", "^", "$", "(?i)", "(?s)", "(?=a)", "(?P<n>", "(?:", "(", ")", "|", "{", "}", "[", "]", r"\\", "\\",
    r"\1", "\0", "\u2028", "\U0001f600", "[&&a]", "[a--b]", "~", "&",
]
_COUNTS = ["", "", "", "*", "+", "?", "{2}", "{0}", "{2,}", "{1,50}", "{50}", "{999}"]
_COUNTS += ["{100000}", "{99999999999}"]
_LARK = [
    "start: a b\n", "start: \"x\" start | \"y\"\n", "start: start\n", "start:\n", "a: \"x\"\n", "b: /y+/\n",
    "A: \"x\" B\n", "B: A\n", "B: /[a-z]{1,900}/\n", "start: A{1,100000}\n", "start: (\"a\" | a)*\n",
    "start: %json {\"type\": \"object\"}\n", "start: %json {\n",
    "start: %regex {\"substring_words\": \"a b\"}\n",
    "%ignore /\\s+/\n", "%import common.INT\n", "%llguidance {\"no_forcing\": true}\n", "start: @x\n",
    "start: <[1-9]>\n", "start: <|end|>\n", "start[lazy]: /a*/\n", "A: /a/ & ~/b/\n", "start: A b?\n",
    "start[max_tokens=3]: /.*/\n", "start[capture]: a\n", "a: b b\n", "b: a a\n", "// comment\n",
    "\"\\u00e9\"\n",
]
_GBNF = [
    "root ::= a | b\n", "a ::= \"x\" a | \"\"\n", "b ::= [0-9]{2,900} b?\n", "root ::= root\n", "root ::=\n",
    "a ::= (b | a)*\n",
    "b ::= [^\\n\\x41]\n", "root ::= (\"x\" | (a))+ \"\\u00e9\"\n", "a-b ::= \"\\\"\"\n", "# comment\n",
    "b ::= a{3}\n",
    "root ::= [\n", "a ::= \"\n", "b ::= a{99999}\n", "c ::= . \"x\"\n", "root ::= a b c\n", "a ::= ((((((\n",
]
# fmt: on


@cache
def _grammars() -> Grammars:
    return Grammars(byte_text(), [EOS], VOCAB_SIZE)


def _draw_expression(rng: Random) -> str:
    return "".join(rng.choice(_ATOMS) + rng.choice(_COUNTS) for _ in range(rng.randint(1, 9)))


def _draw_grammar(rng: Random) -> bytes:
    way = rng.random()
    if way < 0.3:
        return b"regex\n" + _draw_expression(rng).encode()
    if way < 0.5:
        return b"json_schema\n" + mutated_json(rng, SCHEMAS[rng.choice(list(SCHEMAS))])
    if way < 0.65:
        tools = [_tool(f"f{i}", SCHEMAS[rng.choice(list(SCHEMAS))]) for i in range(rng.choice([1, 1, 2]))]
        return rng.choice([b"calls", b"forced"]) + b"\n" + mutated_json(rng, tools)
    if way < 0.7:
        return b"choice\n" + mutated_json(rng, ["yes", "no", "a b", "é"])
    pieces = _LARK if way < 0.85 else _GBNF
    text = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
    if rng.random() < 0.1:
        text = SQL
    content = text.encode()
    return b"grammar\n" + (mutated_bytes(rng, content, len(content)) if rng.random() < 0.4 else content)


def _tool(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema}}


def _read_grammar(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    value: Any = content.decode("utf-8", "surrogateescape")
    if kind not in (b"regex", b"grammar"):
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return
    if kind in (b"calls", b"forced"):
        given: dict[str, Any] = {"calls": Calls(tools=value, forced=kind == b"forced")}
    else:
        given = {kind.decode(): value}
    params, grammars = SamplingParams(**given), _grammars()
    grammars.check(params)
    grammar = grammars.start(params, [0])
    if grammar is None:
        return
    rng = Random(case)
    for _ in range(12):
        if grammar.complete:
            return
        logits = np.zeros(VOCAB_SIZE, np.float32)
        grammar.adjust(logits)
        forced = grammar.forced()
        allowed = np.flatnonzero(np.isfinite(logits))
        grammar.accept(int(rng.choice(allowed)) if forced is None else forced)
    grammar.undo(5)


READERS = []
if find_spec("llguidance") is not None:
    READERS.append(Reader(name="grammars", draw=_draw_grammar, read=_read_grammar, share=0.3))
