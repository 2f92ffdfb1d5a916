"""A whole conversion: calibration texts, rounding, writing, reading again, and what it cost in quality."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minicpm4 import LLM
from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, TextError
from minicpm4.evals.fidelity import Fidelity, compare, own_texts, windows
from minicpm4.files import read_text
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.target import require_free
from minicpm4.kernels.registry import host_table
from minicpm4.model.packed_cache import file_identity
from minicpm4.model.source import OpenModel, open_model
from minicpm4.progress import Progress
from minicpm4.quantize.export import Written, check_again, check_layout, write_model
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.pipeline import LayerReport, quantize
from minicpm4.quantize.rotate import Rotation
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
    """What ``convert`` did: ``written`` (see there), a report of each matrix, and how many texts of how
    many tokens were looked at."""

    written: Written
    rows: list[LayerReport]
    texts: int
    tokens: int


def convert(
    source: str,
    target: Path,
    options: QuantizeOptions,
    layout: str,
    calibration: Calibration,
    bar: Bar,
    ignore_fields: Sequence[str] = (),
) -> Conversion:
    """Make ``source`` small and write it to the folder ``target``. What was done before a run was ended is in
    ``target`` with ".part" after its name, and is used by the same command. Raises Minicpm4Error."""
    opened = open_model(source, ignore_fields)
    require_free(target)
    config = Rotation.config(opened.config) if options.rotate else opened.config
    check_layout(layout, options.specs(opened.config), _shapes(config))
    text = _text(opened)
    texts = (
        _texts(opened, source, text, options, calibration, bar, ignore_fields) if options.calibrated else []
    )
    key = _key(opened, options, texts)
    part = target.with_name(f"{target.name}.part")
    with bar("rounding", "layers") as progress:
        made = quantize(opened.checkpoint, opened.config, options, texts, host_table(), part, key, progress)
    written = write_model(made, target, layout, text)
    with bar("checking", "layers") as progress:
        check_again(made, target, progress)
    made.remove()
    return Conversion(written=written, rows=made.rows, texts=len(texts), tokens=sum(map(len, texts)))


def measure(source: str, target: Path, file: Path, count: int, length: int, bar: Bar) -> Fidelity:
    """Read ``file`` with both models: activations and products in float32 where the machine has such
    kernels."""
    before, after = (LLM(name, context=length + 8, max_batch=1) for name in (source, str(target)))
    texts = read_windows(before.tokenizer, (file,), count, length)
    with bar("comparing", "windows") as progress:
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
            f"the text has {len(ids):,} tokens, one window takes {length:,}", "give more text"
        )
    return found


def _texts(
    opened: OpenModel,
    source: str,
    text: ModelText | None,
    options: QuantizeOptions,
    calibration: Calibration,
    bar: Bar,
    ignore_fields: Sequence[str],
) -> list[list[int]]:
    if calibration.files:
        if text is None:
            raise CheckpointError(f"{source} has no tokenizer to read text with", "use --method rtn")
        return read_windows(text.tokenizer, calibration.files, calibration.samples, calibration.length)
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
    return {"conversion": 1, "files": files, "options": settings, "texts": digest}
