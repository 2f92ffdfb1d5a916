"""What ends an answer is found from the template, and known to all who ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from minicpm4.data.chat import ChatEncoder
from minicpm4.formats.gguf_write import write_gguf
from minicpm4.text import ChatTemplate, Tokenizer
from minicpm4.text.model_text import GENERATION, ModelText, tokenizer_files
from minicpm4.text.pieces import byte_of_char
from minicpm4.text.turn_ends import turn_ends, with_turn_ends
from tests.fixtures.byte_tokenizer import write_tokenizer

NAMES = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<turn|>", "</s>", "<s>", "<|user|>"),
    *("<|assistant|>", "<tool_end>", "<calls_end>", "<|eom_id|>"),
)
PLAIN = ("<|done|>", "<think>", "</think>")


def tokenizer() -> Tokenizer:
    backend = Backend(models.BPE(byte_of_char(), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    backend.add_tokens([AddedToken(name, normalized=False) for name in PLAIN])
    return Tokenizer(backend, eos_token_ids=[256])


def chat(turn: str, opening: str = "", head: str = "", tail: str = "") -> str:
    opening = "{% if add_generation_prompt %}" + opening + "{% endif %}"
    return head + "{% for m in messages %}" + turn + "{% endfor %}" + opening + tail


CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CALLS = (
    "{% if m.tool_calls %}<|assistant|>{% for c in m.tool_calls %}{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}<tool_end>{% endfor %}<calls_end><|eot|>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endif %}"
)
PHI = (
    "{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|im_end|>\n<|assistant|>\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (chat(CHATML), ["<|im_end|>"]),
        (chat("{{ m.role }}: {{ m.content }}\n"), []),
        (chat("{{ m.role }}: {{ m.content }}{{ eos_token }}"), ["</s>"]),
        (chat("{{ m.role }}: {{ m.content }}<turn|><|user|>"), ["<turn|>"]),
        (chat("<s>{{ m.role }}: {{ m.content }} <turn|> \n"), ["<turn|>"]),
        # What stands only at the end of a chat ends no turn where something else does.
        (
            chat(PHI, tail="{{ '<|endoftext|>' if not add_generation_prompt }}"),
            ["<|im_end|>", "<|endoftext|>"],
        ),
        (chat("{{ m.content }}{{ eos_token if loop.last }}{{ '<|user|>' if not loop.last }}"), ["</s>"]),
        # Tools end otherwise than answers do, and have control tokens of their own.
        (chat(CALLS), ["</s>", "<|eot|>"]),
        # Not special, but a token that stands right after the answer; others do not count.
        (chat("{{ m.role }}: {{ m.content }}\n<|done|>\n"), ["<|done|>"]),
        (chat("{{ m.role }}: {{ m.content }} end <|done|>\n"), []),
        (chat("{{ m.role }}: <think>\n\n</think>{{ m.content }}<|eot|>"), ["<|eot|>"]),
        # A name that says what it is, in chats that no probe makes.
        (chat("{% if builtin %}<|eom_id|>{% endif %}{{ m.content }}<|eot|>"), ["<|eot|>", "<|eom_id|>"]),
        # Only what another turn follows has an end: before that turn's own opening, which is none.
        (chat("<s>{{ m.role }}: {{ m.content }}{{ '<turn|>' if not loop.last }}\n"), ["<turn|>"]),
        (chat("{{ '<turn|>' if not loop.first }}<|user|>{{ m.content }}"), ["<turn|>"]),
        (chat("<|{{ m.role }}|>{{ m.content }}\n", head="{{ bos_token }}"), []),
        ("{{ raise_exception('never') }}", []),
        (chat("{{ m.content[:3] }}<|im_end|>", head="{% if 0 %}{% endif %}"), ["<|im_end|>"]),
    ],
)
def test_ends_are_what_the_template_writes(source: str, expected: list[str]) -> None:
    own = tokenizer()
    found = turn_ends(own, ChatTemplate(source, "<s>", "</s>"))
    assert [own.id_to_token(i) for i in found] == expected
    whole = with_turn_ends(own, ChatTemplate(source, "<s>", "</s>"))
    assert whole.eos_token_ids[0] == 256 and set(whole.eos_token_ids) == {256, *found}
    assert own.eos_token_ids == (256,)
    assert all(name in whole.control_tokens for name in expected)


def folder(path: Path, template: str, generation: dict | None = None) -> Path:
    """A tokenizer whose three files name </s> alone."""
    write_tokenizer(path, 300)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"eos_token_id": 257}))
    if generation is not None:
        (path / GENERATION).write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize("generation", [None, {"eos_token_id": 257, "temperature": 0.5}])
def test_reading_training_and_export_know_the_same_ends(tmp_path: Path, generation: dict | None) -> None:
    text = ModelText(folder(tmp_path, chat(CHATML, "<|im_start|>assistant\n"), generation))
    assert text.end_ids == (257, 259)
    files, ends = tokenizer_files(tmp_path)
    assert ends == text.end_ids and files == text.files()
    assert json.loads(files[GENERATION]) == {**(generation or {}), "eos_token_id": [257, 259]}
    (tmp_path / "copy").mkdir()
    for name, content in files.items():
        (tmp_path / "copy" / name).write_bytes(content)
    copy = ModelText(tmp_path / "copy")
    assert copy.end_ids == text.end_ids and copy.files() == files
    encoder = ChatEncoder(text.tokenizer, text.template)
    document = encoder.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert document.learn is not None
    assert document.tokens[document.learn].tolist() == [ord("b"), 259]


def test_a_call_is_learnt_up_to_its_own_end_and_its_result_is_not() -> None:
    encoder = ChatEncoder(tokenizer(), ChatTemplate(chat(CALLS, "<|assistant|>"), "<s>", "</s>"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "s"},
    ]
    document = encoder.encode(turns)
    assert document.learn is not None
    learnt = encoder.tokenizer.decode(document.tokens[document.learn].tolist(), skip_special_tokens=False)
    assert learnt == 'f {"a": 1}<tool_end><calls_end><|eot|>s</s>'


def test_a_gguf_file_knows_them_too(tmp_path: Path) -> None:
    tokens = [*byte_of_char(), "</s>", "<turn|>"]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.chat_template": chat("{{ m.role }}: {{ m.content }}<turn|>"),
    }
    tokens.append("ab")
    metadata["tokenizer.ggml.token_type"] = [1] * 256 + [3, 3, 1]
    write_gguf(tmp_path / "m.gguf", metadata, [])
    text = ModelText(tmp_path / "m.gguf")
    assert text.end_ids == (256, 257)
    assert json.loads(text.files()[GENERATION])["eos_token_id"] == [256, 257]


def test_files_that_name_all_ends_are_kept_as_they_are(tmp_path: Path) -> None:
    text = ModelText(folder(tmp_path, chat(CHATML), {"eos_token_id": [259, 257]}))
    assert text.files()[GENERATION] == (tmp_path / GENERATION).read_bytes()


def test_a_text_made_in_memory_knows_them_too() -> None:
    text = ModelText.of(tokenizer(), ChatTemplate(chat(CHATML)))
    assert [text.tokenizer.id_to_token(i) for i in text.end_ids] == ["<|endoftext|>", "<|im_end|>"]
