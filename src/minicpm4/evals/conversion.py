"""A whole conversion: calibration texts, rounding, writing, reading again, and what it cost in quality."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minicpm4 import LLM
from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, TextError
from minicpm4.evals.fidelity import Fidelity, compare, own_texts, windows
from minicpm4.files import read_json, read_text, write_json, writing_folder
from minicpm4.formats.hf_write import hf_config
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.target import require_free
from minicpm4.kernels.registry import host_table
from minicpm4.model.packed_cache import file_identity
from minicpm4.model.source import OpenModel, open_model
from minicpm4.progress import Progress
from minicpm4.quantize.export import Written, check_again, check_layout, write_model
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.pipeline import LayerReport, Rounded, quantize
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.work import place_for, work_folder
from minicpm4.text.model_text import ModelText

__all__ = ["Calibration", "Conversion", "convert", "measure", "read_windows"]

Bar = Callable[[str, str], AbstractContextManager[Progress | None]]
MAX_TEXT = 64 << 20  # bytes of a file of text


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """``files`` of text, or none: the model's own; ``samples`` texts of ``length`` tokens."""

    files: tuple[Path, ...] = ()
    samples: int = 32
    length: int = 512


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What ``convert`` did: ``written`` (see there), a report of each matrix, how many texts of how many
    tokens were looked at, and the texts to test with."""

    written: Written
    rows: list[LayerReport]
    texts: int
    tokens: int
    tests: list[list[int]] = field(default_factory=list)


def convert(
    source: str,
    target: Path,
    options: QuantizeOptions,
    layout: str,
    calibration: Calibration,
    bar: Bar,
    ignore_fields: Sequence[str] = (),
    test: Path | None = None,
) -> Conversion:
    """Make ``source`` small and write it to the folder ``target``, which is whole or not there. What was done
    before a run was ended is in ``target`` with ".part" after its name, and is used by the same command.
    ``test``: a text to be cut as those of calibration are. Raises Minicpm4Error."""
    opened = open_model(source, ignore_fields)
    require_free(target)
    part = place_for(target)
    config = Rotation.config(opened.config) if options.rotate else opened.config
    check_layout(layout, options.specs(opened.config), _shapes(config))
    hf_config(config)  # raises where no config.json can say it
    text = _text(opened)
    if text is None and (options.calibrated or test is not None):
        raise CheckpointError(
            f"{source} has no tokenizer to read or write text with", "use --method rtn, without --test"
        )
    tests = [] if text is None or test is None else _windows(text, (test,), calibration)
    texts: list[list[int]] = []
    with work_folder(part):
        if text is not None and options.calibrated:
            texts = (
                _windows(text, calibration.files, calibration)
                if calibration.files
                else _kept_own(part, opened, source, options, calibration, bar, ignore_fields)
            )
        key = _key(opened, options, texts)
        with bar("rounding", "layers") as progress:
            made = quantize(
                opened.checkpoint, opened.config, options, texts, host_table(), part, key, progress
            )
        written = _write(made, target, layout, text, bar)
        made.remove()
    return Conversion(
        written=written, rows=made.rows, texts=len(texts), tokens=sum(map(len, texts)), tests=tests
    )


def _write(made: Rounded, target: Path, layout: str, text: ModelText | None, bar: Bar) -> Written:
    """Write and check a new folder, then give it its name."""
    try:
        with writing_folder(target.resolve(), durable=True) as new:
            written = write_model(made, new, layout, text)
            with bar("checking", "layers") as progress:
                check_again(made, new, progress)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error}", "check the place and its free space, then do the same again"
        ) from error
    return written


def measure(
    source: str, target: Path, texts: list[list[int]], bar: Bar, ignore_fields: Sequence[str] = ()
) -> Fidelity:
    """Read ``texts`` with both models: activations and products in float32 where the machine has such
    kernels. ``ignore_fields``: of the first."""
    context = max(map(len, texts)) + 8
    with (
        LLM(source, context=context, max_batch=1, ignore_fields=tuple(ignore_fields)) as before,
        LLM(str(target), context=context, max_batch=1) as after,
        bar("comparing", "windows") as progress,
    ):
        return compare(before, after, texts, progress)


def read_windows(tokenizer: Any, files: Sequence[Path], count: int, length: int) -> list[list[int]]:
    """``count`` texts of ``length`` tokens, evenly spread over ``files``. Raises CheckpointError where they
    are too short for one."""
    ids: list[int] = []
    for file in files:
        ids += tokenizer.encode(read_text(file, MAX_TEXT, CheckpointError), add_special_tokens=False)
    prefix = list(tokenizer.with_prefix([]))
    found = [prefix + one for one in windows(ids, length - len(prefix), count)]
    if not found:
        raise CheckpointError(
            f"{', '.join(map(str, files))}: the text has {len(ids):,} tokens, one window takes {length:,}",
            "give more text, or a smaller --length",
        )
    return found


def _windows(text: ModelText, files: Sequence[Path], calibration: Calibration) -> list[list[int]]:
    return read_windows(text.tokenizer, files, calibration.samples, calibration.length)


def _kept_own(
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
        "texts": [calibration.samples, calibration.length, options.seed],
    }
    with suppress(CheckpointError):
        kept = read_json(file, MAX_TEXT, CheckpointError, optional=True)
        texts = kept.get("ids")
        if (
            kept.get("of") == wanted
            and isinstance(texts, list)
            and all(_is_ids(one, opened.config.vocab_size) for one in texts)
        ):
            return texts
    found = _own(source, options, calibration, bar, ignore_fields)
    try:
        write_json(file, {"of": wanted, "ids": found})
    except OSError as error:
        raise CheckpointError(f"cannot write to {part}: {error}", "check its free space") from error
    return found


def _is_ids(text: Any, vocab_size: int) -> bool:
    whole = isinstance(text, list) and len(text) > 0
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
            found += own_texts(llm, count, calibration.length, options.seed + start)
            if progress is not None:
                progress(len(found), calibration.samples)
    return found


def _text(opened: OpenModel) -> ModelText | None:
    text = opened.text()
    try:
        text.tokenizer  # noqa: B018  (raises)
    except TextError:
        return None
    return text


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}


def _key(opened: OpenModel, options: QuantizeOptions, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What a layer that was kept must have been made for."""
    digest = hashlib.sha256(repr([list(text) for text in texts]).encode()).hexdigest()
    settings = asdict(options) | {"overrides": dict(options.overrides)}
    files = [file_identity(file) for file in opened.checkpoint.files]
    # Beside the weights: config.json may have been changed, and the order of overrides counts.
    said = hashlib.sha256(repr((opened.config, list(options.overrides.items()))).encode()).hexdigest()
    return {"conversion": 2, "files": files, "config": said, "options": settings, "texts": digest}
