"""The files of a folder that hold its tokenizer and chat templates: one list for reading, training, export.

Settings are spread over them. They are read as transformers reads them: special_tokens_map.json and
added_tokens.json count where tokenizer_config.json has no added_tokens_decoder (they are older than it), and
then the map wins; a class of tokenizers has default special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.config.model import read_generation_config, read_hf_config
from minicpm4.config.strict import shown
from minicpm4.errors import ConfigError, TextError
from minicpm4.files import read_json

__all__ = [
    "GENERATION",
    "LAST",
    "ROLES",
    "checked_text",
    "has_tokenizer",
    "model_settings",
    "own_roles",
    "read_settings",
    "spelling",
    "template_files",
    "text_files",
    "text_settings",
    "tokenizer_class",
]

MAX_SETTINGS = 16 << 20  # bytes
MAX_TEMPLATES = 64
GENERATION = "generation_config.json"
LAST = "tokenizer_config.json"
TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
# The first one there of these groups is the tokenizer; a Hugging Face folder often has several.
FORMS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_BESIDE = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")
ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_ROLE_NAMES = tuple(f"{role}_token" for role in ROLES)

# Special tokens that a class has where nothing is said of them.
_END = "<|endoftext|>"
_DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "CodeLlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
}
_CLASS_OF_TYPE = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}


def read_settings(file: Path) -> dict[str, Any]:
    """The table in ``file``; empty when there is no such file. Raises TextError."""
    # Such files may hold Infinity, under keys that are not ours.
    remedy = "fetch the file again: it may be damaged"
    return read_json(file, MAX_SETTINGS, TextError, remedy, optional=True, constants=True)


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` has the files of a tokenizer."""
    return any(all((folder / name).is_file() for name in form) for form in FORMS)


def text_files(folder: Path) -> dict[str, Path]:
    """The files of ``folder`` that say how its model reads and writes text, by their names in it;
    tokenizer_config.json last. Raises TextError for over 64 additional templates."""
    names = [*(name for form in FORMS for name in form), *_BESIDE, GENERATION]
    found = {name: folder / name for name in names if (folder / name).is_file()}
    found |= {f"{TEMPLATES}/{name}.jinja": file for name, file in template_files(folder).items()}
    return found | ({LAST: folder / LAST} if (folder / LAST).is_file() else {})


def template_files(folder: Path) -> dict[str, Path]:
    """The named chat templates that are files of their own. Raises TextError for over 64 of them."""
    found = sorted((folder / TEMPLATES).glob("*.jinja")) if (folder / TEMPLATES).is_dir() else []
    if len(found) > MAX_TEMPLATES:
        raise TextError(f"{folder / TEMPLATES} holds {len(found)} templates", f"{MAX_TEMPLATES} are read")
    return {file.stem: file for file in found}


def text_settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json, special_tokens_map.json and the tokenizer's class say. Raises TextError."""
    settings = read_settings(folder / LAST)
    if "added_tokens_decoder" not in settings:
        settings |= read_settings(folder / "special_tokens_map.json")
    return _DEFAULTS.get(tokenizer_class(folder, settings), {}) | settings


def tokenizer_class(folder: Path, settings: Mapping[str, Any]) -> str:
    """transformers' name of the kind of tokenizer, without "Fast"; "" where nothing says it."""
    named = settings.get("tokenizer_class") or _CLASS_OF_TYPE.get(
        str(model_settings(folder).get("model_type")), ""
    )
    if not named and (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        named = "LlamaTokenizer"  # the class that reads such a file
    return str(named).removesuffix("Fast")


def model_settings(folder: Path) -> dict[str, Any]:
    """config.json with generation_config.json, of what is there. Raises TextError."""
    whole = (folder / "config.json").is_file()
    try:
        return (read_hf_config if whole else read_generation_config)(folder)
    except ConfigError as error:
        raise TextError(f"the end tokens of {folder} cannot be read: {error}") from error


def own_roles(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens of roles that are a model's own, by their names, which chat templates may use. Raises
    TextError."""
    own = {name: value for name, value in settings.items() if name.endswith("_token")}
    saved, extra = (
        settings.get(key) or {} for key in ("model_specific_special_tokens", "extra_special_tokens")
    )
    if not isinstance(saved, Mapping):
        raise TextError(
            f"tokenizer_config.json model_specific_special_tokens is a {type(saved).__name__}, not a table"
        )
    named = extra if isinstance(extra, Mapping) else {}  # else a list of such without a role
    found = {**own, **saved, **own, **named}  # in this order, and the last has the word
    return {name: value for name, value in found.items() if name not in _ROLE_NAMES}


def spelling(settings: Mapping[str, Any], name: str) -> str | None:
    """The text of the special token ``name``: files have it as a string or as a table. Raises TextError."""
    value = settings.get(name)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TextError(f"tokenizer_config.json {name} = {shown(value)} is not a string")
    return None if value is None else checked_text(value, name)


def checked_text(text: str, name: str) -> str:
    """``text``, which the backend takes as UTF-8. Raises TextError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TextError(f"tokenizer_config.json {name} = {text!r} is not valid Unicode") from None
    return text
