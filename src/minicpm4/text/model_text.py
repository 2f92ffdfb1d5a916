"""Tokenizer and chat template of any checkpoint: a folder, a .gguf file, or a folder with one .gguf file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from minicpm4.config.gguf import SAMPLING_KEYS
from minicpm4.config.model import read_generation_config
from minicpm4.errors import CheckpointError, ConfigError, TextError
from minicpm4.files import json_text, read_bytes
from minicpm4.formats import Checkpoint, open_checkpoint
from minicpm4.formats.open import gguf_of
from minicpm4.text.around import around, put_around
from minicpm4.text.chat import encode_chat
from minicpm4.text.files import (
    GENERATION,
    LAST,
    has_tokenizer,
    read_settings,
    spelling,
    text_files,
    text_settings,
)
from minicpm4.text.gguf_vocab import tokenizer_from_gguf
from minicpm4.text.gguf_write import gguf_templates, gguf_vocabulary, padded
from minicpm4.text.library import library
from minicpm4.text.load import MAX_FILE_BYTES, load_tokenizer, of_training, read_backend
from minicpm4.text.replies import ReplyReader
from minicpm4.text.sp_model import parse_sentencepiece
from minicpm4.text.stream import NoText, StreamDecoder, TextStream
from minicpm4.text.template import ChatTemplate, chat_template_from_gguf, load_chat_template
from minicpm4.text.tokenizer import Tokenizer
from minicpm4.text.turn_ends import with_turn_ends

__all__ = ["GENERATION", "LAST", "ModelText", "tokenizer_files"]

_WRITTEN = "minicpm4_tokenizer"  # in a tokenizer_config.json of ours: what its tokenizer.json was made of


def tokenizer_files(folder: Path | None) -> tuple[dict[str, bytes], tuple[int, ...]]:
    """What an export takes from the tokenizer in ``folder``: its files by name (``ModelText.files``), and its
    end tokens; nothing where that is None. Raises CheckpointError, TextError."""
    if folder is None:
        return {}, ()
    if not has_tokenizer(folder):
        raise CheckpointError(f"{folder} holds no tokenizer", "it needs tokenizer.json or tokenizer.model")
    text = ModelText(folder)
    return text.files(), text.end_ids


class ModelText:
    """Reads and writes a model's text. Tokenizer and template may be missing: token ids work without."""

    def __init__(self, source: Path | Checkpoint) -> None:
        """``source``: an open checkpoint, or a path; the latter needs no weights beside the tokenizer.

        Raises TextError for a tokenizer or template that is there but cannot be read, CheckpointError for a
        .gguf file that cannot.
        """
        path = source if isinstance(source, Path) else source.path
        self.path = path
        self._metadata = _metadata(source)
        self._folder = path if path.is_dir() else path.parent
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        if self._metadata:
            if "tokenizer.ggml.tokens" in self._metadata:
                self._tokenizer = tokenizer_from_gguf(self._metadata)
                if self._metadata.get("tokenizer.chat_template"):
                    self._template = chat_template_from_gguf(self._metadata, self._tokenizer)
        elif has_tokenizer(self._folder):
            self._tokenizer = load_tokenizer(self._folder)
            self._template = load_chat_template(self._folder)
        if self._tokenizer is not None:
            self._tokenizer = with_turn_ends(self._tokenizer, self._template)

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> ModelText:
        """A text without a checkpoint: of a tokenizer that was made in memory."""
        made = cls.__new__(cls)
        made.path = made._folder = Path("memory")
        made._metadata, made._template = {}, template
        made._tokenizer = with_turn_ends(tokenizer, template)
        return made

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TextError when the checkpoint has none."""
        if self._tokenizer is None:
            raise TextError(
                f"{self.path} holds no tokenizer, so it reads and writes token ids only",
                "add tokenizer.json or tokenizer.model, or pass token ids",
            )
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def chat_template(self) -> str | None:
        """The source of the template that chats without tools take."""
        if self._template is None:
            return None
        sources = self._template.sources
        return sources.get("default", next(iter(sources.values())))

    @property
    def template(self) -> ChatTemplate:
        """Raises TextError when the checkpoint has none."""
        if self._template is None:
            raise TextError(
                f"{self.path} has no chat template", "use generate with a raw prompt, or add the template"
            )
        return self._template

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._tokenizer.eos_token_ids if self._tokenizer is not None else ()

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt: BOS where the checkpoint wants it, never an end token after it."""
        return self.tokenizer.with_prefix(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Ids of a chat's prompt: ``text.chat.encode_chat``, with its options and errors."""
        return encode_chat(self.tokenizer, self.template, messages, **options)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """A chat's prompt as text: ``ChatTemplate.render``, with its options and errors."""
        return self.template.render(messages, **options)

    def stream(
        self,
        stop: Sequence[str],
        stop_token_ids: Collection[int],
        skip_special_tokens: bool = True,
        shows_marks: bool = False,
    ) -> TextStream:
        """A decoder for the tokens that follow a prompt. ``shows_marks``: of special tokens that are skipped,
        the marks of thoughts and calls stand in the text. Raises TextError: stop strings need text."""
        if self._tokenizer is None and not stop:
            return NoText(stop_token_ids)
        return StreamDecoder(
            self.tokenizer,
            stop,
            stop_token_ids,
            skip_special_tokens=skip_special_tokens,
            shown=self.replies.marks_left_out if shows_marks else (),
            continuation=True,
        )

    @cached_property
    def replies(self) -> ReplyReader:
        """Takes replies apart as this model marks their parts. Raises TextError: it needs a tokenizer."""
        return ReplyReader(self.tokenizer, self._template)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer: what packed data is held to. It is that of the file it was first read
        from: a .gguf file has that of a tokenizer.json made of it, whatever stands around a text; what
        ``files`` wrote has that of its source. Raises ConfigError as ``files`` does."""
        own = self.tokenizer
        if self._metadata:
            return _hash(_backend_json(self.path, own).encode())
        found = text_files(self._folder)
        first = next(iter(found))
        content = read_bytes(found[first], MAX_FILE_BYTES, TextError)
        made = read_settings(self._folder / LAST).get(_WRITTEN)
        if isinstance(made, dict) and made.get("is") == _hash(content):
            return str(made.get("of"))
        if first == "vocab.json":
            content += read_bytes(found["merges.txt"], MAX_FILE_BYTES, TextError)
        return _hash(content)

    @library("the tokenizer cannot be written", "")
    def files(self) -> dict[str, bytes]:
        """What a folder that holds this tokenizer, template and end tokens holds, by file name.

        Of a tokenizer.json, other libraries read what ``tokenizer`` does, from that file alone: what stands
        around a text, added tokens, and nothing of a training run. Raises TextError where there is no
        tokenizer, ConfigError for a .gguf file with one that no tokenizer.json can hold.
        """
        own = self.tokenizer
        found: dict[str, bytes]
        if self._metadata:
            found, settings, generation = {}, self._settings_of_gguf(own), _sampling(self._metadata)
            if generation:
                found[GENERATION] = _json(generation)
        else:
            files = text_files(self._folder).items()
            found = {name: read_bytes(file, MAX_FILE_BYTES, TextError) for name, file in files}
            settings, generation = read_settings(self._folder / LAST), read_generation_config(self._folder)
        # config.json may name some of the end tokens, and stays behind; the template others.
        named, ends = generation.get("eos_token_id"), own.eos_token_ids
        if ends and {*(named if isinstance(named, list) else [named])} != {*ends}:
            found[GENERATION] = _json({**generation, "eos_token_id": ends})
        if self._metadata or self._says_less(found.get("tokenizer.json"), own):
            whole = Backend.from_str(_backend_json(self.path, own))
            put_around(whole, own.prefix_ids, own.suffix_ids)
            found["tokenizer.json"] = whole.to_str(pretty=False).encode()
            made = {_WRITTEN: {"is": _hash(found["tokenizer.json"]), "of": self.fingerprint}}
            found.pop(LAST, None)
            found[LAST] = _json(settings | made)
        return found

    @library("the tokenizer cannot be written", "")
    def gguf_keys(self, rows: int) -> dict[str, Any]:
        """What the metadata of a GGUF file say of this tokenizer and template, of a model with ``rows``
        tokens; of a .gguf file what it says itself. Raises TextError where they cannot say it."""
        if self._metadata:
            return padded(self._metadata, rows)
        settings = text_settings(self._folder)
        model = self._folder / "tokenizer.model"
        pieces = None
        if self.tokenizer.codec.kind == "sentencepiece" and model.is_file():
            pieces = parse_sentencepiece(read_bytes(model, MAX_FILE_BYTES, TextError), str(model))
        unknown, padding = (spelling(settings, f"{role}_token") for role in ("unk", "pad"))
        found = gguf_vocabulary(self.tokenizer, rows, pieces, unknown, padding)
        return found | ({} if self._template is None else gguf_templates(self._template.sources))

    @staticmethod
    def _says_less(content: bytes | None, own: Tokenizer) -> bool:
        """Whether a tokenizer.json alone gives other ids than the folder."""
        if content is None:
            return False
        alone = read_backend(content, as_is=True)
        same = alone.get_added_tokens_decoder() == own.backend.get_added_tokens_decoder()
        same = same and _words(alone) == _words(own.backend)
        return not same or of_training(alone) or around(alone) != (own.prefix_ids, own.suffix_ids)

    def _settings_of_gguf(self, own: Tokenizer) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": bool(own.prefix_ids),
            "add_eos_token": bool(own.suffix_ids),
        }
        if own.bos_token_id is not None:
            settings["bos_token"] = own.id_to_token(own.bos_token_id)
        if own.eos_token_ids:
            settings["eos_token"] = own.id_to_token(own.eos_token_ids[0])
        if self._template is not None:
            named = [{"name": name, "template": text} for name, text in self._template.sources.items()]
            settings["chat_template"] = named if len(named) > 1 else named[0]["template"]
        return settings


def _backend_json(path: Path, own: Tokenizer) -> str:
    """What a tokenizer.json of it holds. Raises ConfigError."""
    if not own.is_plain:
        raise ConfigError(
            f"the tokenizer of {path} is a SentencePiece model, which a tokenizer.json does not hold",
            "give a folder with the tokenizer.model of the checkpoint",
        )
    return str(own.backend.to_str(pretty=False))


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json says of the sampling that the metadata of a GGUF file suggest."""
    found = {name: metadata[key] for key, name in SAMPLING_KEYS.items() if metadata.get(key) is not None}
    # float32 there: 0.8 is 0.800000011920929.
    found = {name: float(f"{one:.7g}") if isinstance(one, float) else one for name, one in found.items()}
    return {"do_sample": found.get("temperature") != 0, **found} if found else {}


def _words(backend: Backend) -> bytes:
    """How it splits text."""
    split = backend.pre_tokenizer
    return b"" if split is None else bytes(split.__getstate__())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _metadata(source: Path | Checkpoint) -> Mapping[str, Any]:
    if not isinstance(source, Path):
        return source.metadata()
    gguf = gguf_of(source)
    return {} if gguf is None else open_checkpoint(gguf).metadata()


def _json(value: Any) -> bytes:
    return (json_text(value, indent=1) + "\n").encode()
