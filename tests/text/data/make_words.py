"""Make words.json beside this file: how each kind of ``tokenizer.ggml.pre`` splits text into words.

Reference: the patterns of transformers 5.23 (integrations/gguf) where it has the kind, else those of
llama.cpp's src/llama-vocab.cpp (``BY_HAND``), run by the ``regex`` package: another engine than that of
tokenizers. For minicpm5 there is none but llama.cpp's copy of its tokenizer.json.

    python make_words.py        with transformers 5.23 and regex installed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import regex

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.text.families import texts  # noqa: E402

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CASED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
PUNCTUATION = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ONE_DIGIT = ("smollm", "starcoder", "refact", "command-r", "minerva-7b", "mellum2")
BY_HAND = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    **{kind: [GPT2] for kind in ("gpt-2", "mellum", "a.x-4.0", "trillion")},
    **{kind: [r"\p{N}", GPT2] for kind in ONE_DIGIT},
    **{kind: [CASED + r"\p{N}{1,3}" + TAIL] for kind in ("llama3", "llama-v3")},
    "minicpm5": [
        r"\p{N}{1,3}",
        CASED + r"\p{N}+" + TAIL,
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
        PUNCTUATION
        + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "seed-coder": [CASED + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "viking": [r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"],
}


def split(text: str, patterns: list[str]) -> list[str]:
    pieces = [text] if text else []
    for pattern in patterns:
        done: list[str] = []
        for piece in pieces:
            at = 0
            for found in regex.finditer(pattern, piece):
                done += [piece[at : found.start()], found[0]]
                at = found.end()
            done.append(piece[at:])
        pieces = [piece for piece in done if piece]
    return pieces


def main() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    patterns = BY_HAND | {kind: [one] for kind, one in GGUF_PRE_TOKENIZER_SPLITS.items()}
    # Patterns that differ in the last blanks of a text only: llama.cpp leaves those as they are.
    cases = texts(11, 160, ["HelloWorld", "XMLHttp", "don't", "l'été", "/path/to", "0x1F", "ABC", "'S", "।"])
    kinds = {
        kind: {
            "by": "transformers" if kind in GGUF_PRE_TOKENIZER_SPLITS else "llama.cpp",
            "lengths": [[len(word) for word in split(text, some)] for text in cases],
        }
        for kind, some in sorted(patterns.items())
    }
    (HERE / "words.json").write_text(
        json.dumps({"texts": cases, "kinds": kinds}, separators=(",", ":")), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
