"""A whole conversion: calibration texts, rounding, writing, reading again, and what it cost in quality."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4 import LLM
from minicpm4.config import ModelConfig
from minicpm4.config.strict import counted, require
from minicpm4.engine.load import suggestion
from minicpm4.engine.params import gguf_sampling
from minicpm4.errors import CheckpointError, MemoryPlanError, TextError
from minicpm4.evals.calibration_texts import Calibration, kept_own, read_windows
from minicpm4.evals.fidelity import Fidelity, compare
from minicpm4.evals.growth import expected, growth, may_grow, stored_nbytes
from minicpm4.evals.model_writer import Conversion, ModelWriter
from minicpm4.evals.source_remarks import source_remarks
from minicpm4.formats.names import EMBED, HEAD, expected_tensors
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.quantised_config import check_rows, one_format, refusals
from minicpm4.formats.target import require_free, require_new
from minicpm4.kernels.registry import host_table
from minicpm4.machine import available_memory, human
from minicpm4.model.packed_cache import file_identity
from minicpm4.model.source import OpenModel, open_model
from minicpm4.model.stored_prefix import fixed_angles
from minicpm4.progress import Bar
from minicpm4.quantize.budget import Budget, budgeted, planned
from minicpm4.quantize.ends import Fitting
from minicpm4.quantize.export import (
    KEEP_PREFIX,
)
from minicpm4.quantize.gguf_export import (
    GgufTypes,
)
from minicpm4.quantize.memory import least_disk, planned_memory
from minicpm4.quantize.options import QuantizeOptions, formats_by_pattern
from minicpm4.quantize.parts import Stored
from minicpm4.quantize.pipeline import ENOUGH_ROWS, quantize
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.rounded import LayerReport
from minicpm4.quantize.stored import prefix_ids
from minicpm4.quantize.work import check_kept, place_for, remove_work, work_folder
from minicpm4.text.model_text import ModelText

__all__ = ["Calibration", "Conversion", "convert", "measure", "read_windows"]

_WITHOUT = "leave --stored-prefix out"
logger = logging.getLogger("minicpm4")


def convert(
    source: str,
    target: Path,
    options: QuantizeOptions | None,
    layout: str,
    calibration: Calibration,
    bar: Bar,
    ignore_fields: Sequence[str] = (),
    test: Path | None = None,
    types: GgufTypes | None = None,
    without_scaling: bool = False,
    overrides: Mapping[str, str] | None = None,
    stored: str | None = None,
) -> Conversion:
    """Make ``source`` small and write it to ``target``, a folder or, for gguf, a file, which is whole or not
    there. What was done before a run was ended is in ``target`` with ".part" after its name, and is used by
    the same command. ``options``: None: weights stay as they are stored. ``test``: a text to be cut as those
    of calibration are; ``types``: of GGUF; ``without_scaling``: positions are written as plain ones;
    ``overrides``: where weights stay, formats of some by pattern; ``stored``: the text of a stored prefix, or
    "auto". Raises Minicpm4Error."""
    opened = open_model(source, ignore_fields)
    require_free(target)
    if options is not None:
        check_rows(layout, expected_tensors(opened.config))
    part = place_for(target, file=layout == "gguf")
    text = _text(opened)
    if text is None and (test is not None or stored is not None):
        raise CheckpointError(
            f"{source} has no tokenizer to read text with", "leave --test and --stored-prefix out"
        )
    options = _with_prefix(options, opened, text, stored, layout, calibration, without_scaling)
    begin = opened.stored.ids if opened.stored is not None else options.stored_prefix if options else ()
    _check_memory(opened.config, options, calibration.samples * calibration.length)
    tests = [] if text is None or test is None else _windows(text, (test,), calibration, begin)
    sampling = gguf_sampling(suggestion(opened))
    real = target.resolve()
    writer = ModelWriter(real, part, layout, text, types or GgufTypes(), sampling, without_scaling, bar)
    work = _Work(source, opened, text, target, part, layout, writer, bar)
    if options is None:
        return replace(_as_stored(work, overrides or {}), tests=tests)
    _check(work, options)
    _tell_ahead(work, options)
    _check_disk(opened, options.specs(opened.config), layout, part, writer.types)
    return replace(_rounded(work, options, calibration, begin, ignore_fields), tests=tests)


@dataclass(frozen=True)
class _Work:
    """What a conversion reads, and where it writes: ``target``, by ``part``, its work folder. ``text``: None:
    the source has no tokenizer."""

    source: str
    opened: OpenModel
    text: ModelText | None
    target: Path
    part: Path
    layout: str
    writer: ModelWriter
    bar: Bar


def _as_stored(work: _Work, overrides: Mapping[str, str]) -> Conversion:
    """Weights written as they are, some rounded to nearest."""
    opened, layout = work.opened, work.layout
    own = formats_by_pattern(opened.config, overrides)
    kept = Fitting(Stored(opened.checkpoint, opened.config, own), layout, {EMBED, HEAD} - {*own})
    rows = [LayerReport(name.removesuffix(".weight"), str(one), "rtn", None) for name, one in own.items()]
    _tell(refusals(layout, {EMBED: own.get(EMBED)}))
    with work_folder(work.part):
        require_new(work.target)  # which another run may have made before this one held the folder
        check_kept(work.part, {})
        done = replace(work.writer.write(kept, opened.stored), rows=rows)
        remove_work(work.part)
    return _compared(done, opened, work.target, layout)


def _check(work: _Work, options: QuantizeOptions) -> None:
    """Raise Minicpm4Error where the layout cannot hold what is asked for, or text is needed and none read."""
    work.writer.check(_becomes(work.opened, options), _grouped(options.specs(work.opened.config)))
    require(
        options.bits is None or not one_format(work.layout),
        f"{work.layout} holds all matrices in one format, --bits chooses one for each",
        "use --to compressed-tensors, mlx or gguf, or leave --bits out",
    )
    if work.text is None and options.calibrated:
        raise CheckpointError(
            f"{work.source} has no tokenizer to read or write text with", "use --method rtn, without --test"
        )


def _tell_ahead(work: _Work, options: QuantizeOptions) -> None:
    """Warn where the source is not one to be rounded so, where the model will become larger, or may, and
    where a reader will refuse it. Raises ConfigError for a budget that nothing meets."""
    opened, layout, rotated = work.opened, work.layout, options.rotate
    config, old = _becomes(opened, options), opened.checkpoint.tensors
    specs = options.specs(opened.config)
    _tell(source_remarks(opened.checkpoint, specs))
    if options.bits is None:
        becomes = expected(opened.checkpoint, config, specs, layout, rotated=rotated)
        larger = growth(old, becomes, layout, rotated=rotated, ahead=True)
        _tell(refusals(layout, specs))
    else:
        planned(opened.checkpoint, opened.config, options, Budget(work.part, {}, layout))
        larger = [] if layout in ("hf", "llama") else may_grow(old, config, options.bits)
    _tell(larger)


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        logger.warning("%s", line)


def _rounded(
    work: _Work,
    options: QuantizeOptions,
    calibration: Calibration,
    begin: Sequence[int],
    ignore_fields: Sequence[str],
) -> Conversion:
    """Weights rounded layer by layer, written, and read again."""
    opened, layout, part = work.opened, work.layout, work.part
    with work_folder(part):
        require_new(work.target)
        check_kept(part, _key(opened, options, layout, []), without=("texts",))
        texts = _texts(work, options, calibration, begin, ignore_fields)
        _say_few(options, calibration, texts)
        key = _key(opened, options, layout, texts)
        done_before = check_kept(part, key)
        if done_before:
            layers = opened.config.num_hidden_layers
            logger.warning("going on: %s of %s layers are kept in %s", done_before, layers, part)
        if options.bits is not None:
            options = _chosen(work, options, texts, key)
            _tell(refusals(layout, options.specs(opened.config)))
        specs = options.specs(opened.config)
        made = quantize(opened.checkpoint, opened.config, options, texts, host_table(), part, key, work.bar)
        free = {name for name, spec in specs.items() if spec is None}
        done = work.writer.write(Fitting(made, layout, free), made.stored_prefix(options.stored_prefix))
        made.remove()
    done = _compared(done, opened, work.target, layout, options.rotate)
    bits = done.written.bits
    if options.bits is not None and layout not in ("hf", "llama") and bits > options.bits + 0.005:
        done.notes.append(f"{layout} takes {bits:.2f} bits a weight, {options.bits:g} were asked for")
    tokens = sum(map(len, texts))
    return replace(done, rows=made.rows, texts=len(texts), tokens=tokens, options=options, formats=specs)


def _texts(
    work: _Work,
    options: QuantizeOptions,
    calibration: Calibration,
    begin: Sequence[int],
    ignore_fields: Sequence[str],
) -> list[list[int]]:
    """What is calibrated on: of files, or the model's own texts; none where nothing is."""
    if work.text is None or not options.calibrated:
        return []
    if calibration.files:
        return _windows(work.text, calibration.files, calibration, begin)
    return kept_own(work.part, work.opened, work.source, options, calibration, work.bar, ignore_fields)


def _chosen(
    work: _Work, options: QuantizeOptions, texts: list[list[int]], key: dict[str, Any]
) -> QuantizeOptions:
    """``options`` with the formats that its budget of bits chooses, which the layout can hold."""
    opened = work.opened
    with work.bar("weighing matrices", "layers") as progress:
        place = Budget(work.part, key, work.layout)
        found = budgeted(opened.checkpoint, opened.config, options, texts, host_table(), place, progress)
    options = options.chosen(found)
    work.writer.check(_becomes(opened, options), _grouped(options.specs(opened.config)))
    return options


def _becomes(opened: OpenModel, options: QuantizeOptions) -> ModelConfig:
    """The configuration of what is written."""
    return Rotation.config(opened.config) if options.rotate else opened.config


def _compared(
    done: Conversion, opened: OpenModel, target: Path, layout: str, rotated: bool = False
) -> Conversion:
    """``done`` with the size of what it was made of, and notes where it takes more than that."""
    old = opened.checkpoint.tensors
    told = growth(old, open_model(str(target)).checkpoint.tensors, layout, rotated=rotated)
    return replace(done, source_nbytes=stored_nbytes(old), notes=[*done.notes, *told])


def _check_memory(config: ModelConfig, options: QuantizeOptions | None, tokens: int) -> None:
    """Raise MemoryPlanError where what a conversion takes is not available."""
    needed, available = planned_memory(config, options, tokens), available_memory()
    if available is not None and needed > available:
        raise MemoryPlanError(
            f"the conversion takes {human(needed)} at its peak, {human(available)} are available",
            "lower --samples or --length, or use --method rtn, which looks at no text"
            if options is not None and options.calibrated
            else "end other programs, or use a machine with more memory",
        )


def _check_disk(
    opened: OpenModel,
    specs: Mapping[str, QuantSpec | None],
    layout: str,
    part: Path,
    types: GgufTypes,
) -> None:
    """Raise CheckpointError where matrices in ``specs`` alone, kept in ``part`` and written again, take more
    than is free."""
    kept = sum(file.stat().st_size for file in part.glob("*") if file.is_file())
    needed = least_disk(opened.config, specs, layout, types.of) - kept
    place = next(one for one in part.parents if one.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"the conversion takes at least {human(needed)} on the disk of {place}, {human(free)} are free",
            "free some, or name a target on another disk",
        )


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


def _windows(
    text: ModelText, files: Sequence[Path], calibration: Calibration, begin: Sequence[int]
) -> list[list[int]]:
    return read_windows(text.tokenizer, files, calibration.samples, calibration.length, begin)


def _say_few(options: QuantizeOptions, calibration: Calibration, texts: Sequence[Sequence[int]]) -> None:
    """Warn where there is less text to calibrate on than was asked for, or than anything is made of."""
    if not options.calibrated:
        return
    if len(texts) < calibration.samples:
        asked, found = counted(calibration.samples, "text"), counted(len(texts), "text")
        logger.warning(
            "%s of %s tokens were asked for, the files have %s", asked, f"{calibration.length:,}", found
        )
    rows = sum(len(text) - options.skip for text in texts)
    if rows < ENOUGH_ROWS:
        logger.warning(
            "%s to calibrate on are too few: all matrices will be rounded to nearest (%s or more: --samples, "
            "--length)",
            counted(max(rows, 0), "token"),
            ENOUGH_ROWS,
        )


def _with_prefix(
    options: QuantizeOptions | None,
    opened: OpenModel,
    text: ModelText | None,
    stored: str | None,
    layout: str,
    calibration: Calibration,
    without_scaling: bool,
) -> QuantizeOptions | None:
    """``options`` with the tokens of a stored prefix, if one is asked for. Raises ConfigError,
    UnsupportedError."""
    if options is None:
        require(stored is None, "weights stay as they are stored: they make their own", _WITHOUT)
        return None
    opened.refuse_stored("a conversion that rounds its weights again")
    if stored is None or text is None:
        return options
    require(
        layout in KEEP_PREFIX,
        f"{layout} has no place for a stored prefix",
        f"use --to {', '.join(KEEP_PREFIX)}, or {_WITHOUT}",
    )
    require(
        not without_scaling,
        "--plain-rope changes rotary positions, by which keys are stored",
        _WITHOUT,
    )
    fixed_angles(opened.config)
    ids = prefix_ids(text, stored, opened.config.vocab_size)
    require(
        calibration.length > len(ids) + 1,
        f"--length {calibration.length} leaves no text behind a stored prefix of {len(ids)} tokens",
    )
    return replace(options, stored_prefix=ids)


def _grouped(specs: Mapping[str, QuantSpec | None]) -> dict[str, QuantSpec | None]:
    """Formats of the matrices that are rounded to codes; None: floats."""
    return {name: spec if spec and spec.row.group else None for name, spec in specs.items()}


def _text(opened: OpenModel) -> ModelText | None:
    text = opened.text()
    try:
        text.tokenizer  # noqa: B018  (raises)
    except TextError:
        return None
    return text


def _key(
    opened: OpenModel, options: QuantizeOptions, layout: str, texts: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What a layer that was kept must have been made for."""
    digest = hashlib.sha256(repr([list(text) for text in texts]).encode()).hexdigest()
    settings = asdict(options) | {"overrides": dict(options.overrides)}
    settings.pop("stored_prefix")
    if options.bits is not None:  # which formats there are to choose from, and what each takes
        settings["layout"] = layout
    if options.stored_prefix:
        settings["stored_prefix"] = list(options.stored_prefix)
    files = [file_identity(file) for file in opened.checkpoint.files]
    # Beside the weights: config.json may have been changed, and the order of overrides counts.
    said = hashlib.sha256(repr((opened.config, list(options.overrides.items()))).encode()).hexdigest()
    return {"conversion": 5, "files": files, "config": said, "options": settings, "texts": digest}
