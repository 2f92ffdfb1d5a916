"""What an answer may be held to: what is no grammar, too large or beyond a vocabulary is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from minicpm4 import SamplingParams
from minicpm4.engine.grammar import Grammars
from minicpm4.errors import ConfigError, RequestError, UnsupportedError
from minicpm4.text.model_text import ModelText
from minicpm4.text.pieces import byte_of_char
from minicpm4.text.tokenizer import Tokenizer
from tests.engine.test_grammar import PERSON, allowed, scripted
from tests.text.vocabularies import train_sentencepiece


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json_schema": False}, "json_schema = False is not a JSON schema"),
        ({"json_schema": "{}"}, "json_schema = '{}' is not a JSON schema"),
        ({"json_schema": {"enum": [{1, 2}]}}, "json_schema.enum holds a set"),
        ({"json_schema": {"const": float("nan")}}, "json_schema is not JSON"),
        (
            {"json_schema": {"enum": [1, -9223372036854775807]}},
            "enum holds -9223372036854775807, which answers",
        ),
        ({"json_schema": {"not": {"const": [-(2**63)]}}}, "holds -9223372036854775808, which answers cannot"),
        ({"json_schema": {1: "x"}}, "json_schema has the key 1"),
        ({"regex": ""}, "regex = '' is not a text"),
        ({"regex": "a" * 200_000}, "regex has 200,000 characters, the limit is"),
        ({"grammar": 5}, "grammar = 5 is not a text"),
        ({"grammar": 'start: "\ud800"'}, "grammar holds a lone surrogate"),
        ({"choice": "yes"}, "choice = 'yes' is not a list of strings"),
        ({"choice": []}, "choice = [] is not a list"),
        ({"choice": ["a", 1]}, "choice[1] = 1 is not a text"),
        ({"choice": ["a"], "regex": "b"}, "regex and choice are given together"),
        ({"choice": ["a"], "min_tokens": 2}, "min_tokens = 2 is given together with choice"),
        ({"json_schema": True, "ignore_eos": True}, "ignore_eos = True is given together with json_schema"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SamplingParams(**given)


@pytest.mark.parametrize("value", [-(2**63) - 1, -(2**63) + 513, -(2**53) - 1, 2**64])
def test_other_large_integers_are_held(value: int) -> None:
    with scripted() as llm:
        llm.generate("x", SamplingParams(json_schema={"enum": [value]}, max_tokens=1))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_schemas_are_bounded_and_copied() -> None:
    with pytest.raises(ConfigError, match="json_schema is more than 64 levels deep"):
        SamplingParams(json_schema=nested(100))
    circle: dict[str, Any] = {}
    circle["items"] = circle
    with pytest.raises(ConfigError, match="levels deep"):
        SamplingParams(json_schema=circle)
    with pytest.raises(ConfigError, match=r"json_schema has \d+,\d+ characters"):
        SamplingParams(json_schema={"enum": ["x" * 1000] * 200})
    own = {"type": "object", "properties": {"a": {"type": "null"}}}
    params = SamplingParams(json_schema=own)
    own["properties"]["a"]["type"] = "string"  # type: ignore[index]
    assert params.json_schema["properties"]["a"] == {"type": "null"}  # type: ignore[index]
    assert SamplingParams(json_schema=True).json_schema == SamplingParams(json_schema={}).json_schema


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json_schema": {"properties": {"a/b": {"not": {}}}}}, "json_schema at #/properties/a~1b/not"),
        ({"json_schema": {"items": {"anyOf": [{}, {"format": "x-y"}]}}}, "at #/items/anyOf/1/format"),
        ({"json_schema": {"pattern": "(?=a)b"}}, "json_schema at #/pattern"),
        ({"json_schema": {"$ref": "http://x/y"}}, "json_schema at #/$ref"),
        ({"json_schema": {"type": "text"}}, "json_schema at #/type cannot be followed: Invalid type: text"),
        ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "minLength (3) is greater"),
        ({"json_schema": {"not": {}, "x-guidance": {"lenient": True}}}, "json_schema at #/not"),
        ({"json_schema": {"const": "\ud800"}}, "json_schema cannot be followed"),
        ({"regex": "(a"}, "regex cannot be followed: at 1(8)"),
        ({"regex": r"\bword"}, "regex cannot be followed"),
        ({"grammar": "start: foo"}, "grammar cannot be followed: at 1(8): unknown name"),
        ({"grammar": 'root ::= "a" ('}, "grammar cannot be followed: Expected"),
        ({"grammar": 'root ::= "a" | b'}, "grammar cannot be followed: Rule 'b' not found"),
        ({"grammar": "root ::= " + "(" * 99 + '"a"' + ")" * 99}, "99 brackets inside one another"),
        ({"grammar": 'start: %json {"const": -9223372036854775807}'}, "grammar holds -9223372036854775807"),
        ({"grammar": "sqlite"}, "grammar cannot be followed"),
    ],
)
def test_what_does_not_compile_is_refused_before_any_work(given: dict[str, Any], message: str) -> None:
    llm = scripted()
    with pytest.raises(RequestError, match=re.escape(message)):
        llm.stream("x", SamplingParams(**given))
    assert not llm.engine.has_work and not llm.engine.events


def test_without_the_package_a_request_is_refused_with_the_way_to_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(
        UnsupportedError, match=r"regex needs the package llguidance .*pip install -e '\.\[grammar\]'"
    ):
        scripted().generate("x", SamplingParams(regex="a"))
    assert scripted("ok").generate("x").text == "ok"


def letters(ends: list[int]) -> Grammars:
    """Of a model that has tokens for the letters a to z, and no others."""
    of_byte = {byte: char for char, byte in byte_of_char().items()}
    backend = Backend(models.BPE({of_byte[ord("a") + i]: i for i in range(26)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Grammars(ModelText.of(Tokenizer(backend, eos_token_ids=ends)), ends, 30)


@pytest.mark.parametrize("ends", [[], [25]])
def test_what_a_vocabulary_cannot_write_ends_by_name(ends: list[int]) -> None:
    grammars = letters(ends)
    with pytest.raises(RequestError, match="choice cannot be followed: no token of the model's would follow"):
        grammars.check(SamplingParams(choice=["é"]))
    grammar = grammars.start(SamplingParams(regex="aé"), [0])
    assert grammar is not None and allowed(grammar, 30) == [0]
    grammar.accept(0)
    with pytest.raises(RequestError, match="regex: the answer cannot go on: no token of the model's"):
        allowed(grammar, 30)
    whole = grammars.start(SamplingParams(regex="ab|ab?é?"), [0])
    assert whole is not None
    for token in (0, 1):
        assert not whole.complete
        whole.accept(token)
    assert whole.complete if not ends else allowed(whole, 30) == ends


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_vocabularies(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(kind))
    text = ModelText(tmp_path)
    size = text.tokenizer.vocab_size
    grammars, rng = Grammars(text, text.end_ids, size), np.random.default_rng(0)
    for wanted in ({"json_schema": PERSON}, {"choice": [" 今天", "日本語😀", "def f(x):\n  return"]}):
        grammar = grammars.start(SamplingParams(**wanted), text.encode("x"))
        ids: list[int] = []
        while grammar is not None and not grammar.complete:
            token = grammar.forced()
            known = allowed(grammar, size)
            assert token is None or known == [token]
            ids.append(int(rng.choice(known)) if token is None else token)
            grammar.accept(ids[-1])
        answer = text.tokenizer.decode(ids, continuation=True)
        if "choice" in wanted:
            assert answer in wanted["choice"]
        else:
            jsonschema.validate(json.loads(answer), PERSON)


def test_an_engine_without_grammars_refuses_them() -> None:
    from tests.engine.scripted import make_engine

    engine, _ = make_engine()
    with pytest.raises(RequestError, match="this engine cannot hold an answer to regex"):
        engine.ask([1, 2], SamplingParams(regex="a"))


def test_a_token_that_takes_what_should_follow_it_stops_nobody() -> None:
    # "y" for ever: llguidance would ask itself for all that follows without a choice.
    params = SamplingParams(grammar="start: a a\na: /y+/\n", max_tokens=50, temperature=1.0)
    with scripted() as llm:
        reply = llm.generate("x", params)
    assert reply.text == "y" * 50 and reply.finish_reason == "length"
