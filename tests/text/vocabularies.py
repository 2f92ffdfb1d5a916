"""SentencePiece models trained on the spot, and texts to try them on."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece

SAMPLES = [
    "",
    " ",
    "   ",
    "hello world",
    " leading space",
    "  two leading",
    "trailing ",
    "tab\tand\nnewline\n\n",
    "a  b   c    d",
    "naïve café, coöperate; Ünïcödé",
    "今天天气很好，我们去公园吧。",
    "日本語と한국어",
    "emoji 😀👩‍👩‍👧‍👦 🇫🇷!",
    "def f(x):\n    return x ** 2  # ok\n",
    "1234567890 3.14159",
    "<s> literal </s> <unk> <0x0A>",
    "====----....    aaaaaaaa",
    "zero\x00byte \x7f \u200b\u3000wide",
    "ﬁ ligature ½ ² Ａ",
]


@cache
def train_sentencepiece(
    model_type: str = "bpe", rule: str = "identity", byte_fallback: bool = True, symbols: str = "", **extra
) -> bytes:
    """A serialized model of about 700 pieces, trained on the standard library's json package."""
    folder = Path(json.__file__).parent
    lines = [line for f in sorted(folder.glob("*.py")) for line in f.read_text().splitlines() if line.strip()]
    lines += [s for s in SAMPLES if s.strip() and "\x00" not in s] * 5
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=900,
        normalization_rule_name=rule,
        byte_fallback=byte_fallback,
        user_defined_symbols=symbols,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
        **{"remove_extra_whitespaces": rule != "identity", **extra},
    )
    return model.getvalue()
