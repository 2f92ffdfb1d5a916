"""Folders that transformers 5 and 4 saved answer chats as there: ids of prompts, greedy text, and stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4 import LLM, SamplingParams
from tests.fixtures import transformers_folders as theirs
from tests.fixtures.byte_tokenizer import IM_END

CASES = [(version, name) for version in theirs.VERSIONS for name in theirs.read(f"answers-{version}.json")]
NEW = 24


def test_there_are_answers_that_end_and_some_that_do_not() -> None:
    chats = [c for version, name in CASES for c in theirs.read(f"answers-{version}.json")[name]["chats"]]
    types = {name.partition("_")[0] for _, name in CASES}
    assert types == {"llama", "mistral", "qwen2", "qwen3", "minicpm"} and len(chats) > 100
    assert sum(answer[-1] == IM_END for _, _, answer, _ in chats) > 20
    assert sum(len(answer) == NEW for _, _, answer, _ in chats) > 20


@pytest.mark.parametrize(("version", "name"), CASES)
def test_answers_are_those_of_transformers(version: str, name: str, tmp_path: Path) -> None:
    folder, chats = theirs.make_chatty(tmp_path / "m", version, name)
    greedy = SamplingParams(max_tokens=NEW, temperature=0.0)
    with LLM(folder, isa="scalar", kv="float32", threads=1) as llm:
        for messages, prompt, answer, text in chats:
            assert llm.chat_ids(messages) == prompt
            out = llm.chat(messages, greedy)
            assert (list(out.token_ids), out.text) == (answer, text)
            ended = answer[-1] in llm.tokenizer.eos_token_ids
            assert out.finish_reason == ("stop" if ended else "length") and ended == (len(answer) < NEW)
