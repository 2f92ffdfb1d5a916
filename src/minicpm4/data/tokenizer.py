"""A byte-level BPE tokenizer for small models, trained by the `tokenizers` library, with ChatML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minicpm4.config.strict import require

__all__ = ["SPECIALS", "fingerprint", "train_tokenizer"]

SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
LEAST = len(SPECIALS) + 256
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train on ``texts`` and write tokenizer.json and tokenizer_config.json. Any UTF-8 text can be written
    in its bytes. The vocabulary may come out smaller than ``vocab_size`` where texts are short. Raises
    ConfigError."""
    require(
        LEAST <= vocab_size <= 1 << 20,
        f"vocab_size = {vocab_size} is out of range",
        f"bytes and special tokens alone are {LEAST}",
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    settings = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("tokenizer.json", backend.to_str(pretty=False)),
        ("tokenizer_config.json", json.dumps(settings, indent=1) + "\n"),
    ):
        part = folder / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)


def fingerprint(folder: Path) -> str:
    """A hash of a tokenizer's own file: what packed shards are held to. Raises ConfigError."""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
    require(False, f"{folder} holds no tokenizer", "it needs tokenizer.json or tokenizer.model")
    raise AssertionError
