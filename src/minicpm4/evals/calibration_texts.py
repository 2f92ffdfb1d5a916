"""Texts that a conversion calibrates on: of files, or the model's own, which are kept until it is done."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4 import LLM
from minicpm4.config.strict import require
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.evals.fidelity import own_texts, windows
from minicpm4.files import file_sha256, read_json, read_text, write_json
from minicpm4.model.packed_cache import file_identity
from minicpm4.model.source import OpenModel
from minicpm4.progress import Bar
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.work import check_kept
from minicpm4.text.bounds import MAX_TEXT_BYTES
from minicpm4.text.manual import python_manual

__all__ = ["CORPUS", "Calibration", "check_texts", "kept_own", "read_windows", "texts_sha256"]

CORPUS = "corpus"
"""In the place of a file: the text that is there without one, unless a file has that name."""
logger = logging.getLogger("minicpm4")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """``files`` of text (one may be CORPUS), or none: the model's own; ``samples`` texts of ``length``
    tokens."""

    files: tuple[Path, ...] = ()
    samples: int = 32
    length: int = 512


def check_texts(files: Sequence[Path], test: Path | None) -> None:
    """Raise ConfigError for a text of calibration that is not there, or twice, and where ``test`` is one of
    them, under whatever name: on what a model was fitted to it looks better than it is."""
    seen: dict[str, Path] = {}
    for file in files:
        content = CORPUS if _is_corpus(file) else _content(file, f"--calibration takes files, or {CORPUS}")
        if content in seen:
            raise ConfigError(_same(file, seen[content], "given for calibration"), "give each text once")
        seen[content] = file
    if test is not None and (twin := seen.get(_content(test, "--test takes a file"))):
        raise ConfigError(_same(test, twin, "for calibration"), "test on another text")


def _is_corpus(file: Path) -> bool:
    return str(file) == CORPUS and not file.is_file()


def _content(file: Path, remedy: str) -> str:
    require(file.is_file(), f"there is no file {file}", remedy)
    try:
        return file_sha256(file)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", remedy) from error


def _same(file: Path, first: Path, what: str) -> str:
    if str(file) == str(first):
        return f"{file} is {what} already"
    return f"{file} is the same text as {first}, which is {what} already"


def read_windows(
    tokenizer: Any, files: Sequence[Path], count: int, length: int, begin: Sequence[int] = ()
) -> list[list[int]]:
    """``count`` texts of ``length`` tokens, evenly spread over ``files``; each begins with ``begin``, or with
    what the tokenizer puts before a text. Raises CheckpointError where they are too short for one,
    TextError."""
    ids: list[int] = []
    for file in files:
        text = python_manual() if _is_corpus(file) else read_text(file, MAX_TEXT_BYTES, CheckpointError)
        ids += tokenizer.encode(text, add_special_tokens=False)
    prefix = list(begin or tokenizer.with_prefix([]))
    if length <= len(prefix):
        raise CheckpointError(
            f"a text of {length:,} tokens has no room behind the {len(prefix):,} with which each begins",
            "give a larger --length",
        )
    found = [prefix + one for one in windows(ids, length - len(prefix), count)]
    if not found:
        raise CheckpointError(
            f"{', '.join(map(str, files))}: the text has {len(ids):,} tokens, one window takes {length:,}",
            "give more text, or a smaller --length",
        )
    return found


def kept_own(
    part: Path,
    opened: OpenModel,
    source: str,
    options: QuantizeOptions,
    calibration: Calibration,
    bar: Bar,
    ignore_fields: Sequence[str],
) -> list[list[int]]:
    """The model's own texts: those that an earlier run has written to the work folder, if they are of this
    model and these settings."""
    file = part / "texts.json"
    wanted = {
        "files": [file_identity(one) for one in opened.checkpoint.files],
        "config": hashlib.sha256(repr(opened.config).encode()).hexdigest(),
        "texts": [calibration.samples, calibration.length, options.seed, *options.stored_prefix],
    }
    other = False
    with suppress(CheckpointError):
        kept = read_json(file, MAX_TEXT_BYTES, CheckpointError, optional=True)
        texts = kept.get("ids")
        if kept.get("of") == wanted and kept.get("sha256") != texts_sha256(texts):
            logger.warning("the texts in %s are damaged: they are written anew", file)
        elif (
            kept.get("of") == wanted
            and isinstance(texts, list)
            and len(texts) == calibration.samples
            and all(_is_ids(one, calibration.length, opened.config.vocab_size) for one in texts)
        ):
            logger.warning("going on: the model's own texts are kept in %s", part)
            return texts
        other = kept.get("of") not in (None, wanted)
    if other:
        check_kept(part, {}, other="its texts were written otherwise (--samples, --length, --seed)")
    found = _own(source, options, calibration, bar, ignore_fields)
    try:
        write_json(file, {"of": wanted, "ids": found, "sha256": texts_sha256(found)})
    except OSError as error:
        raise CheckpointError(f"cannot write to {part}: {error}", "check its free space") from error
    return found


def texts_sha256(texts: Any) -> str:
    """Of token ids: a token that was changed on the disk is one of the vocabulary, too."""
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def _is_ids(text: Any, length: int, vocab_size: int) -> bool:
    whole = isinstance(text, list) and len(text) == length
    return whole and all(type(token) is int and 0 <= token < vocab_size for token in text)


def _own(
    source: str,
    options: QuantizeOptions,
    calibration: Calibration,
    bar: Bar,
    ignore_fields: Sequence[str],
) -> list[list[int]]:
    """Texts that the model writes."""
    llm = LLM(source, context=calibration.length + 8, ignore_fields=tuple(ignore_fields))
    found: list[list[int]] = []
    with bar("writing its own text to calibrate on", "texts") as progress, llm:
        step = 8
        for start in range(0, calibration.samples, step):
            count = min(step, calibration.samples - start)
            seed, begin = options.seed + start, options.stored_prefix
            found += own_texts(llm, count, calibration.length, seed, begin)
            if progress is not None:
                progress(len(found), calibration.samples)
    return found
