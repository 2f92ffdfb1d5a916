"""Tokenizers of training runs: a byte-level BPE for small models, trained by the `tokenizers` library, with
ChatML; or a checkpoint's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minicpm4.config.strict import require
from minicpm4.formats import open_checkpoint
from minicpm4.text import chat_template_from_gguf, load_tokenizer, tokenizer_from_gguf

__all__ = ["SPECIALS", "TOKENIZER_FILES", "fingerprint", "take_tokenizer", "train_tokenizer"]

LAST = "tokenizer_config.json"
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    GENERATION,
    LAST,
)

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
    _write(folder, {"tokenizer.json": backend.to_str(pretty=False), LAST: _json(settings)})


def take_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer of a checkpoint (a folder, or a .gguf file) with its chat template and end tokens
    to ``folder``. Raises TextError, ConfigError for one that is not a byte-level BPE in a .gguf file."""
    metadata = {} if source.is_dir() else open_checkpoint(source).metadata()
    if not metadata:
        source = source if source.is_dir() else source.parent
        ends = load_tokenizer(source).eos_token_ids
        files = {name: source / name for name in TOKENIZER_FILES if (source / name).is_file()}
        found: dict[str, str | bytes] = {name: file.read_bytes() for name, file in files.items()}
        if ends and (source / "config.json").is_file():  # which may name some of them, and stays behind
            found.setdefault(GENERATION, _json({"eos_token_id": ends}))
        _write(folder, found)
        return
    own = tokenizer_from_gguf(metadata)
    require(
        own.is_plain,
        f"the tokenizer of {source} is a SentencePiece model, which a tokenizer.json does not hold",
        "give a folder with the tokenizer.model of the checkpoint",
    )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(own.prefix_ids),
        "add_eos_token": bool(own.suffix_ids),
    }
    if own.bos_token_id is not None:
        settings["bos_token"] = own.id_to_token(own.bos_token_id)
    ends = own.eos_token_ids
    if ends:
        settings["eos_token"] = own.id_to_token(ends[0])
    if metadata.get("tokenizer.chat_template"):
        sources = chat_template_from_gguf(metadata, own).sources
        named = [{"name": name, "template": text} for name, text in sources.items()]
        settings["chat_template"] = named if len(named) > 1 else named[0]["template"]
    texts = {"tokenizer.json": own.backend.to_str(pretty=False)}
    texts |= {GENERATION: _json({"eos_token_id": ends})} if ends else {}
    _write(folder, {**texts, LAST: _json(settings)})


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write ``files``; tokenizer_config.json, by which a whole tokenizer is known, last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == LAST):
        part, content = folder / f".{name}.part", files[name]
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(folder / name)


def fingerprint(folder: Path) -> str:
    """A hash of a tokenizer's own file: what packed shards are held to. Raises ConfigError."""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
    require(False, f"{folder} holds no tokenizer", "it needs tokenizer.json or tokenizer.model")
    raise AssertionError
