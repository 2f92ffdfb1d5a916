"""Constrained answers: valid whatever is drawn, never anything else."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.grammar import SQL, Grammars
from minicpm4.engine.held import Grammar
from minicpm4.errors import RequestError
from minicpm4.testing import EOS, VOCAB_SIZE, ScriptedEngine, byte_text
from tests.engine.schemas import COUNT, SCHEMAS, TEXT, table

MAIL = {"type": "string", "format": "email"}
NOISE = "\0" * 4000
"""What no grammar here allows: a scripted model that says it draws evenly among all that is allowed."""
PERSON = table(full_name=TEXT, age_in_years=COUNT, favourite_animal={"enum": ["cat", "dog"]})
PET = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}


def scripted(*answers: Any, **sizes: Any) -> LLM:
    engine = ScriptedEngine(answers or (NOISE,), **sizes)
    return LLM.over(engine, engine.text, name="scripted")


@pytest.fixture(scope="module")
def noisy() -> Iterator[LLM]:
    with scripted() as llm:
        yield llm


def steps_of(llm: LLM) -> list[int]:
    """How many rows each step runs from now on."""
    rows: list[int] = []
    runner = llm.engine._runner  # type: ignore[attr-defined]
    execute = runner.execute
    runner.execute = lambda plan: (rows.append(plan.num_rows), execute(plan))[1]
    return rows


def drawn(**given: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "seed": 1, "max_tokens": 1500, **given})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_answer_is_held_to_its_grammar_whatever_the_model_says(temperature: float) -> None:
    llm = scripted("Sure! Here is no JSON.")

    def ask(**given: Any) -> Any:
        return llm.generate("x", SamplingParams(temperature=temperature, seed=1, **given))

    pet = ask(json_schema=PET)
    assert set(json.loads(pet.text)) == {"name", "kind"} and pet.finish_reason == "stop"
    assert re.fullmatch("[a-c]{2,4}-[0-9]", ask(regex="[a-c]{2,4}-[0-9]").text)
    assert ask(choice=["yes", "no"]).text in ("yes", "no")
    assert ask(grammar='start: "a" | "b" start').text.strip("b") == "a"
    assert re.fullmatch("[xy]é{2}", ask(grammar='root ::= [xy] "\\u00e9"{2}').text)
    cut = ask(json_schema=PET, max_tokens=5)
    assert cut.finish_reason == "length" and '{"name": "'.startswith(cut.text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_fits_its_schema_whatever_is_drawn(noisy: LLM, name: str) -> None:
    schema = SCHEMAS[name]
    check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    samples = noisy.generate("x", drawn(json_schema=schema, n=6)).outputs
    whole = [one.text for one in samples if one.finish_reason == "stop"]
    assert len(whole) >= 5, "cut by length"
    for text in whole:
        check.validate(json.loads(text))
        assert text == text.strip()


def test_any_json_object(noisy: LLM) -> None:
    for any_object in (True, {}):
        samples = noisy.generate("x", drawn(json_schema=any_object, n=8, max_tokens=4000)).outputs
        whole = [json.loads(one.text) for one in samples if one.finish_reason == "stop"]
        assert len(whole) > 3 and all(isinstance(value, dict) for value in whole)


@pytest.mark.parametrize(
    "pattern",
    ["[a-z]{3,6}", "a/b|a\\\\b", "^(yes|no)[!?]*$", r"\d+\.\d{2}", "(ab|cd){2}", '"[^"\\n]{0,5}"', "é+"],
)
def test_a_regular_expression_matches_all_of_the_answer(noisy: LLM, pattern: str) -> None:
    samples = noisy.generate("x", drawn(regex=pattern, n=8, max_tokens=300)).outputs
    whole = [one.text for one in samples if one.finish_reason == "stop"]
    assert len(whole) > 3 and all(re.fullmatch(pattern, text) for text in whole)


def test_a_choice_is_one_of_its_texts(noisy: LLM) -> None:
    texts = [
        "yes",
        "yes, but",
        'a "quote"',
        "C:\\dir",
        "{}[](|)*",
        "line\nbreak",
        "日本",
        "é",
        "🎉",
        "e\u0301",
    ]
    answers = {one.text for one in noisy.generate("x", drawn(choice=texts, n=80)).outputs}
    assert answers <= set(texts) and len(answers) > 7


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('start: "f(" NAME ("," NAME)* ")"\nNAME: /[a-c]{1,2}/', r"f\([a-c]{1,2}(,[a-c]{1,2})*\)"),
        ('start: %json {"enum": ["a", 1]}', r'"a"|1'),
        (
            'root ::= item (", " item)* # comment\nitem ::= [0-9]{2} | "x" [^a-z"\\\\]',
            r"(\d\d|x[^a-z\"\\]).*",
        ),
        (
            'root ::= foo-bar "\\\\u003d\\\\x41"\nfoo-bar ::= "caf\\u00e9" | foo-bar "!"',
            r"café!*\\u003d\\x41",
        ),
        ('root ::= "caf\\u00e9\\u003d\\u0022" [\\u00e0-\\u00e9]', '(?s)café="[à-é]'),
    ],
)
def test_lark_and_gbnf(noisy: LLM, grammar: str, pattern: str) -> None:
    samples = noisy.generate("x", drawn(grammar=grammar, n=8, max_tokens=200)).outputs
    whole = [one.text for one in samples if one.finish_reason == "stop"]
    assert len(whole) > 3 and all(re.fullmatch(pattern, text) for text in whole), whole


def test_sql_is_sql(noisy: LLM) -> None:
    assert noisy.generate("x", drawn(grammar="sql")).text == noisy.generate("x", drawn(grammar=SQL)).text
    base, read = sqlite3.connect(":memory:"), 0
    for one in noisy.generate("x", drawn(grammar="sql", n=40, max_tokens=600)).outputs:
        if one.finish_reason == "stop":
            read += 1
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                base.execute(one.text)
    base.close()
    assert read > 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "given", [{"json_schema": PERSON}, {"grammar": "sql"}, {"choice": ["left", "right", "lift"]}]
)
def test_forced_tokens_change_nothing_and_cost_no_pass(temperature: float, given: dict[str, Any]) -> None:
    for seed in range(5):
        llm, params = scripted(), drawn(temperature=temperature, seed=seed, max_tokens=60, **given)
        rows = steps_of(llm)
        fast = llm.generate("x", params)
        taken = len(rows)
        slow = llm.generate("x", replace(params, logprobs=0))  # each token by itself
        assert (fast.text, fast.token_ids) == (slow.text, slow.token_ids)
        assert fast.finish_reason == slow.finish_reason
        assert len(rows) - taken == len(slow.token_ids) and taken <= len(fast.token_ids)
        if "json_schema" in given:
            assert taken < len(fast.token_ids) / 2 and max(rows) > 10
        assert all(entry.sampling_logprob <= 0 for entry in slow.logprobs or [])


class Counted:
    """A matcher that counts how often it is asked for what it leaves no choice about."""

    def __init__(self, matcher: Any) -> None:
        self._matcher, self.asked = matcher, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def compute_ff_tokens(self) -> list[int]:
        self.asked += 1
        return list(self._matcher.compute_ff_tokens())


def test_a_long_stretch_without_a_choice_is_asked_for_once() -> None:
    """Asked anew at each of its tokens, 100,000 letters held everybody up for minutes."""
    grammars = Grammars(THINKING, [EOS], VOCAB_SIZE)
    grammar = grammars.start(drawn(regex="(a{3000}|b{3000})c"), [0])
    assert grammar is not None and grammar.forced() is None
    counted = grammar._phase.matcher = Counted(grammar._phase.matcher)
    grammar.accept(ord("b"))
    for _ in range(500):
        assert allowed(grammar) == [ord("b")] and grammar.forced() == ord("b")
        grammar.accept(ord("b"))
    grammar.undo(400)
    assert grammar.forced() == ord("b") and counted.asked == 1
    grammar.undo(101)
    assert allowed(grammar) == [ord("a"), ord("b")]
    grammar.accept(ord("a"))
    assert grammar.forced() == ord("a") and allowed(grammar) == [ord("a")] and counted.asked == 3


def test_a_batch_in_little_room_answers_as_each_request_alone() -> None:
    kinds: list[dict[str, Any]] = [{"json_schema": PERSON}, {"regex": "(ab|cd){40}"}, {"grammar": "sql"}, {}]
    each = [drawn(seed=i, max_tokens=150, n=1 + i % 2, **kinds[i % 4]) for i in range(8)]
    prompts = ["word " * (4 * i) for i in range(1, 9)]
    alone = [scripted("plain text").generate(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
    llm = scripted("plain text", max_sequences=4, max_rows=24)
    llm.engine.limits = replace(llm.engine.limits, num_pages=6)  # type: ignore[misc, type-var]
    llm.engine.start_over()  # type: ignore[attr-defined]
    together = llm.generate(prompts, each)
    assert [[s.text for s in out.outputs] for out in together] == [
        [s.text for s in out.outputs] for out in alone
    ]
    assert llm.engine.scheduler.num_preemptions > 0  # type: ignore[attr-defined]
    again = llm.generate(prompts, each)
    assert [out.text for out in again] == [out.text for out in alone]


def test_streams_are_the_same_text(noisy: LLM) -> None:
    params = drawn(json_schema=PERSON)
    pieces = list(noisy.stream("x", params))
    whole = noisy.generate("x", params)
    assert "".join(map(str, pieces)) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
    assert pieces[-1].finish_reason == "stop" and pieces[-1].metrics is not None


def test_other_settings_stay_within_the_grammar(noisy: LLM) -> None:
    wild: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 2.0, "top_p": 0.4, "top_k": 3}
    out = noisy.generate("x", drawn(json_schema=PERSON, logit_bias={0: 1e4, ord("z"): 5.0}, **wild))
    jsonschema.validate(json.loads(out.text), PERSON)
    assert noisy.generate("x", drawn(regex="abcd", stop="c")).text == "ab"
    cut = noisy.generate("x", drawn(regex="(ab)+", max_tokens=5))
    assert (cut.text, cut.finish_reason) == ("ababa", "length")
    for forbidden in ("a", "c"):  # before a choice, and where the next token is forced
        with pytest.raises(RequestError, match="logit_bias forbids every token that regex allows here"):
            noisy.generate("x", drawn(regex="a[b]c", logit_bias={ord(forbidden): float("-inf")}))


def test_numbers_end() -> None:
    llm = scripted('{"a": ' + "1" * 300, '{"a": 0.' + "3" * 300, '{"a": "' + "1" * 40 + '"}', "9" * 40)
    number, text = table(a={"type": "number"}), table(a={"type": "string"})
    assert llm.generate("x", drawn(json_schema=number)).text.startswith('{"a": ' + "1" * 20)
    out = llm.generate("x", drawn(json_schema=number, temperature=0.0))
    assert out.text == '{"a": 0.' + "3" * 19 + "E33}" and out.finish_reason == "stop"
    assert llm.generate("x", drawn(json_schema=text)).text == '{"a": "' + "1" * 40 + '"}'
    assert llm.generate("x", drawn(json_schema={"const": 10**29})).text == "1" + "0" * 29
    assert len(json.loads(scripted('"' + "a" * 400).generate("x", drawn(json_schema=MAIL)).text)) <= 254


def test_end_tokens_come_only_where_the_answer_is_whole() -> None:
    grammars = Grammars(byte_text(), [EOS], VOCAB_SIZE)
    grammar = grammars.start(SamplingParams(regex="ab?"), [1])
    assert grammar is not None and allowed(grammar) == [ord("a")]
    grammar.accept(ord("a"))
    assert allowed(grammar) == [ord("b"), EOS] and not grammar.complete
    grammar.accept(EOS)
    grammar.undo(1)
    grammar.accept(ord("b"))
    assert grammar.complete and grammar.forced() is None


def test_what_followed_without_a_choice_is_forgotten_where_another_way_is_taken() -> None:
    grammar = Grammars(THINKING, [EOS], VOCAB_SIZE).start(SamplingParams(regex="(ab|cd)x"), [0])
    assert grammar is not None
    grammar.accept(ord("a"))
    assert grammar.forced() == ord("b")
    grammar.undo(1)
    grammar.accept(ord("c"))
    assert grammar.forced() == ord("d") and allowed(grammar) == [ord("d")]


def test_a_token_beside_the_known_way_has_what_follows_it(smollm: LLM) -> None:
    """A shorter token of the same text, as a draft may hold: what was known counts whole tokens."""
    text = smollm._text
    grammar = Grammars(text, text.end_ids, smollm.config.vocab_size).start(
        SamplingParams(regex="(Hello world again)"), [0]
    )
    assert grammar is not None
    known, tokens = [], text.tokenizer
    while (token := grammar.forced()) is not None and not grammar.complete and len(known) < 3:
        known.append(token)
        grammar.accept(token)
    assert tokens.decode(known) == "Hello world again"
    grammar.undo(3)
    assert grammar.forced() == known[0]
    (letter,) = tokens.encode("H", add_special_tokens=False)
    grammar.accept(letter)
    said = tokens.decode([grammar.forced() or 0])
    assert said and "ello world again".startswith(said)


def allowed(grammar: Grammar, size: int = VOCAB_SIZE) -> list[int]:
    logits = np.zeros(size, np.float32)
    grammar.adjust(logits)
    return [int(i) for i in np.flatnonzero(np.isfinite(logits))]


def walk(grammar: Grammar, choices: list[int]) -> list[list[int]]:
    """What is allowed on the way: of the allowed tokens, that of each number is accepted."""
    seen = []
    for number in choices:
        if grammar.complete:
            break
        seen.append(allowed(grammar))
        grammar.accept(seen[-1][number % len(seen[-1])])
    return seen


numbers = st.lists(st.integers(0, 999), max_size=12)
THINKING = byte_text()  # its prompts may open a block of reasoning


@settings(max_examples=60)
@given(numbers, numbers, numbers, st.sampled_from(["x", "Q <think>\n"]))
def test_what_is_undone_was_never_accepted(
    kept: list[int], undone: list[int], later: list[int], prompt: str
) -> None:
    grammars = Grammars(THINKING, [EOS], VOCAB_SIZE)
    params = SamplingParams(json_schema=PERSON)
    grammar, straight = (grammars.start(params, THINKING.encode(prompt)) for _ in range(2))
    assert grammar is not None and straight is not None
    if "think" in prompt:
        undone = [*b"</think>", *undone]  # of all allowed bytes those numbers are the bytes
    walk(grammar, kept)
    walk(straight, kept)
    grammar.undo(len(walk(grammar, undone)))
    assert walk(grammar, later) == walk(straight, later)


def test_a_random_model_and_a_real_one_answer_in_json(make_llm: Any, smollm: LLM) -> None:
    for llm in (make_llm(), smollm):
        prompts = ["A person: ", "Somebody else: "]
        params = drawn(json_schema=PERSON, n=2, max_tokens=120)
        together = llm.generate(prompts, params)
        for out in together:
            for one in out.outputs:
                assert one.finish_reason == "stop"
                jsonschema.validate(json.loads(one.text), PERSON)
    greedy = SamplingParams(json_schema=PERSON, temperature=0.0)
    rows = steps_of(smollm)
    fast = smollm.chat([{"role": "user", "content": "Describe a person."}], greedy)
    taken = len(rows)
    slow = smollm.chat([{"role": "user", "content": "Describe a person."}], replace(greedy, logprobs=0))
    assert fast.text == slow.text and taken < len(fast.token_ids) / 2
