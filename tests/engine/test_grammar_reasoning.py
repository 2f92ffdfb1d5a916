"""Constrained answers of models that think first: the grammar begins behind the thought."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from minicpm4 import SamplingParams
from minicpm4.engine.grammar import Grammars
from minicpm4.testing import EOS
from minicpm4.text.model_text import ModelText
from minicpm4.text.pieces import byte_of_char
from minicpm4.text.template import ChatTemplate
from minicpm4.text.tokenizer import Tokenizer
from tests.engine.test_grammar import NOISE, PERSON, allowed, drawn, scripted


@pytest.mark.parametrize("closing", ["</think>", "</think>\n\n", "</th</think>"])
def test_the_grammar_begins_after_the_reasoning_that_the_prompt_opens(closing: str) -> None:
    llm = scripted("hmm, {" + closing + NOISE)
    out = llm.generate("Question <think>\n", drawn(json_schema=PERSON))
    thought, mark, answer = out.text.partition("</think>")
    assert mark and thought.startswith("hmm, {") and out.finish_reason == "stop"
    jsonschema.validate(json.loads(answer), PERSON)
    reply = llm.parse_reply(out)
    assert reply.thought == thought and json.loads(reply.content) == json.loads(answer)


def test_reasoning_does_not_end_the_answer() -> None:
    llm = scripted("hmm")  # then it would say nothing but end tokens
    out = llm.generate("Question <think>", drawn(choice=["yes", "no"], max_tokens=50))
    assert out.finish_reason == "length" and out.text.startswith("hmm") and EOS not in out.token_ids


def thinker() -> ModelText:
    """ChatML of bytes, whose answers open a block of reasoning by themselves, with tokens for its marks."""
    backend = Backend(models.BPE({**byte_of_char(), "ĠĠ": 256, ">{": 257}, [("Ġ", "Ġ"), (">", "{")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    backend.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant:"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    return ModelText.of(Tokenizer(backend, eos_token_ids=[258]), ChatTemplate(template))


def test_the_grammar_waits_where_the_answer_opens_its_reasoning() -> None:
    text = thinker()
    grammars, params = Grammars(text, [258], 261), SamplingParams(regex="[xy]")
    question = [{"role": "user", "content": "q"}]
    for thinks in (None, True):
        grammar = grammars.start(params, text.encode_chat(question, enable_thinking=thinks))
        assert grammar is not None
        assert allowed(grammar, 261) == [ord("x"), ord("y"), 259] and grammar.forced() is None
        grammar.accept(259)  # <think>
        everything = allowed(grammar, 261)
        assert 258 not in everything and {257, 260} <= {*everything}
        for token in b"</think":
            grammar.accept(token)
        assert 257 not in allowed(grammar, 261)  # ">{" would close it and say more
        grammar.accept(ord(">"))
        assert allowed(grammar, 261) == [ord("x"), ord("y")]
        grammar.undo(9)
        assert allowed(grammar, 261) == [ord("x"), ord("y"), 259]
    for ids in (text.encode_chat(question, enable_thinking=False), text.encode("no chat")):
        grammar = grammars.start(params, ids)
        assert grammar is not None and allowed(grammar, 261) == [ord("x"), ord("y")]


@pytest.mark.parametrize("name", ["qwen3", "smollm2"])
def test_templates_tell_whether_answers_open_reasoning(name: str) -> None:
    from minicpm4.text.reasoning import unasked_reasoning

    source = Path(__file__).parents[1] / "text" / "templates" / f"{name}.jinja"
    found = unasked_reasoning(ChatTemplate(source.read_text(encoding="utf-8")))
    if name == "smollm2":
        assert found is None
    else:
        assert found is not None and found[1] == ("<think>", "</think>") and "assistant\n" in found[0]
