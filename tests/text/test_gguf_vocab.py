"""GGUF metadata that is wrong, missing or unusual."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm4.errors import TextError
from minicpm4.text import tokenizer_from_gguf

GPT2 = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|im_end|>", "<|im_start|>", "Ġ", "[U]"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 1, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 4,
}
LLAMA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "[U]", "<|im_end|>"],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 4, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, 0.0, 0.0],
}


def test_arrays_do_as_well_as_lists():
    arrays = {
        **LLAMA,
        "tokenizer.ggml.token_type": np.array(LLAMA["tokenizer.ggml.token_type"], np.int32),
        "tokenizer.ggml.scores": np.array(LLAMA["tokenizer.ggml.scores"], np.float32),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
    }
    assert tokenizer_from_gguf(arrays).encode("ab") == tokenizer_from_gguf(LLAMA).encode("ab") == [1, 6, 5]


def test_llama_defaults_and_flags():
    tokenizer = tokenizer_from_gguf(LLAMA)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2, 8))
    assert tokenizer.encode("a[U]a") == [1, 6, 7, 6]  # as llama.cpp: the prefix again after [U]
    assert tokenizer.encode("a<|im_end|>") == [1, 6, 8]
    assert tokenizer.decode(tokenizer.encode("ab a")) == "ab a"
    flags = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    changed = tokenizer_from_gguf({**LLAMA, **{f"tokenizer.ggml.{k}": v for k, v in flags.items()}})
    assert changed.encode("a") == [4, 2]


def test_gpt2_defaults():
    tokenizer = tokenizer_from_gguf(GPT2)
    assert tokenizer.encode("ab[U]<|im_end|>") == [2, 6, 3]
    assert tokenizer.eos_token_ids == (3,)
    assert tokenizer.is_special(3) and not tokenizer.is_special(6)
    assert tokenizer_from_gguf({**GPT2, "tokenizer.ggml.pre": "llama-bpe"}).encode("ab") == [4, 2]


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (GPT2, {"model": None}, r"the GGUF file has no tokenizer\. gpt2"),
        (GPT2, {"model": "t5"}, r"tokenizer\.ggml\.model is 't5'\. gpt2 .* and llama"),
        (GPT2, {"pre": "smolm"}, r"pre is 'smolm', an unknown pre-tokenizer\. did you mean 'smollm'\?"),
        (GPT2, {"tokens": []}, "tokens is missing, empty or too long"),
        (GPT2, {"tokens": None}, "tokens is missing, empty or too long"),
        (GPT2, {"tokens": ["a", 5]}, r"tokens\[1\] is not a short string"),
        (GPT2, {"tokens": ["a" * 2000]}, r"tokens\[0\] is not a short string"),
        (GPT2, {"token_type": [1]}, r"token_type has 1 entries for 7 tokens"),
        (GPT2, {"token_type": ["x"] * 7}, "token_type is not a list of numbers"),
        (GPT2, {"merges": None}, "merges is missing"),
        (GPT2, {"merges": ["a b c"]}, "holds 'a b c', which is not a pair"),
        (GPT2, {"merges": [1]}, "holds an entry that is no string"),
        (GPT2, {"merges": ["a q"]}, "merges and tokens do not fit together"),
        (GPT2, {"eos_token_id": 7}, "eos_token_id = 7 is outside the 7 tokens"),
        (GPT2, {"bos_token_id": "x"}, "bos_token_id = 'x' is outside the 7 tokens"),
        (LLAMA, {"scores": None}, "lacks tokenizer.ggml.scores"),
        (LLAMA, {"scores": [0.5]}, "scores has 1 entries for 9 tokens"),
        (LLAMA, {"scores": [float("nan")] * 9}, "scores holds a number that is not finite"),
        (LLAMA, {"tokens": ["a"] * 9}, "the vocabulary holds the piece 'a' twice"),
    ],
)
def test_every_refusal_says_why(base, changes, message):
    metadata = {**base, **{f"tokenizer.ggml.{name}": value for name, value in changes.items()}}
    with pytest.raises(TextError, match=message) as raised:
        tokenizer_from_gguf(metadata)
    assert raised.value.remedy and raised.value.condition.count("GGUF") < 2, raised.value
