"""Tools, engines whose answers are scripted, and what tests of calls look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.calls import Calls
from minicpm4.engine.grammar import Grammars
from minicpm4.engine.held import Grammar
from minicpm4.testing import ScriptedEngine
from tests.text.call_templates import MINICPM5_TOKENS, source_of
from tests.text.chats import tool

ASK = [{"role": "user", "content": "Do."}]
BOOK = tool(
    "book",
    "Book.",
    ["city", "nights", "kind"],
    city={"type": "string", "maxLength": 9},
    nights={"type": "integer", "minimum": 1, "maximum": 9},
    kind={"enum": ["a <b>", 'it\'s "c"']},
    late={"type": "boolean"},
    note={"anyOf": [{"type": "string"}, {"type": "null"}]},
    guests={"type": "array", "items": {"$ref": "#/$defs/guest"}, "maxItems": 2},
    day={"type": "string", "pattern": "^[0-9]{2}$"},
    code={"type": "string", "format": "date"},
)
BOOK["function"]["parameters"] |= {
    "additionalProperties": False,
    "$defs": {
        "guest": {"type": "object", "properties": {"age": {"type": "integer"}}, "additionalProperties": False}
    },
}
NOW = tool("now", "The time.", [])
NOW["function"]["parameters"]["additionalProperties"] = False
UNFOLLOWED = tool("odd", "", [], a={"not": {}})
TOOLS = [BOOK, NOW]
NOISE = "\0" * 3000
"""What no call holds: the model draws evenly among all that is allowed."""


HELD = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def engine_of(name: str, *answers: str, **options: Any) -> ScriptedEngine:
    tokens = {
        "minicpm5": MINICPM5_TOKENS,
        "llama3_1": ("<|eot_id|>", "<|python_tag|>"),
        "xlam": ("<|end|>",),
        "named": ("[TOOL_CALLS]", "[ARGS]"),
        "mistral_v3": ("[TOOL_CALLS]",),
        "pythonic": ("<|python_start|>", "<|python_end|>"),
    }
    if name != "none":
        options["chat_template"] = source_of(name)
    return ScriptedEngine(answers or ("ok",), tokens=tokens.get(name, ()), **options)


def llm_of(name: str, *answers: str) -> LLM:
    engine = engine_of(name, *answers)
    return LLM.over(engine, engine.text, name=name)


def params(calls: Calls | None, **given: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "max_tokens": 2900, "calls": calls, **given})


def check(name: str, arguments: dict[str, Any]) -> None:
    (schema,) = [one["function"]["parameters"] for one in TOOLS if one["function"]["name"] == name]
    jsonschema.validate(arguments, schema)


def opening(name: str) -> str:
    form = engine_of(name).text.replies.form
    assert form is not None
    return form.before + "now" + form.middle[:1] if form.is_bare else form.opening


def masks(grammar: Grammar, size: int) -> np.ndarray:
    logits = np.zeros(size, np.float32)
    if grammar.active:
        grammar.adjust(logits)
    return logits


def check_undo(
    name: str, asked: SamplingParams, script: Callable[[int], bytes], *, turns: int, far: float
) -> int:
    """Give a grammar tokens, those of ``script(turn)`` where it allows them, and take some back at random, a
    share ``far`` of the times many: after each turn it must be as one that only saw what is left. Returns the
    most tokens there were."""
    text = engine_of(name).text
    size = text.tokenizer.vocab_size
    grammars, prompt = Grammars(text, text.end_ids, size), text.encode_chat(ASK)
    grammar, rng = grammars.start(asked, prompt), np.random.default_rng(5)
    assert grammar is not None
    tokens: list[int] = []
    longest = 0
    for turn in range(turns):
        wanted = script(turn)
        allowed = np.setdiff1d(np.flatnonzero(masks(grammar, size) == 0), text.end_ids)
        if len(allowed):
            wish = wanted[len(tokens)] if len(tokens) < len(wanted) else -1
            token = wish if wish in allowed else int(rng.choice(allowed))
            grammar.accept(token)
            tokens.append(token)
        longest = max(longest, len(tokens))
        if not len(allowed) or rng.random() < 0.3:
            back = int(rng.integers(1, len(tokens) + 1)) if rng.random() < far else 1
            grammar.undo(back)
            del tokens[-back:]
        other = grammars.start(asked, prompt)
        assert other is not None
        for one in tokens:
            other.accept(one)
        assert (masks(grammar, size) == masks(other, size)).all() and grammar.complete == other.complete
    return longest
