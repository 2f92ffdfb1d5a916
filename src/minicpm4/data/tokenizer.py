"""Tokenizers of training runs: a byte-level BPE for small models, trained by the `tokenizers` library, with
ChatML; or a checkpoint's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import json_text, write_file
from minicpm4.text.around import put_around
from minicpm4.text.library import library
from minicpm4.text.model_text import LAST, ModelText

__all__ = ["SPECIALS", "take_tokenizer", "train_tokenizer"]

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
    with library("no tokenizer can be trained on these texts", "leave out what is not valid Unicode"):
        backend.train_from_iterator(texts, trainer)
    put_around(backend, [SPECIALS.index("<s>")], [])
    settings = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    }
    text = json_text(settings, indent=1) + "\n"
    _write(folder, {"tokenizer.json": backend.to_str(pretty=False), LAST: text})


def take_tokenizer(text: ModelText | Path, folder: Path) -> None:
    """Write a model's tokenizer (``text``, or where it lies) with its chat templates and end tokens to
    ``folder``. Raises TextError,
    ConfigError for one that is not a byte-level BPE in a .gguf file."""
    _write(folder, (ModelText(text) if isinstance(text, Path) else text).files())


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write ``files``; tokenizer_config.json, by which a whole tokenizer is known, last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: name == LAST):
            (folder / name).parent.mkdir(exist_ok=True)
            write_file(folder / name, files[name], durable=True)
    except OSError as error:
        raise ConfigError(f"cannot write the tokenizer to {folder}: {error}", "free space there") from error
