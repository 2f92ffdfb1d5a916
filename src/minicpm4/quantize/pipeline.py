"""A model made small layer by layer, each written when it is done: a run that was killed goes on where it
was.

Memory: ``memory.planned_memory``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.config.strict import from_table
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import finite, read_json
from minicpm4.formats import Checkpoint, rounding
from minicpm4.formats.names import EMBED, HEAD, NORM, layer_tensors
from minicpm4.formats.packing import (
    packed_if_exact,
    row_slices,
    smallest_floats,
    unpack,
    unpack_rows,
)
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.progress import Bar, silent
from minicpm4.quantize.gptq import Hessian, gptq, importance, output_error
from minicpm4.quantize.grid import pack, rows_to_nearest, search_scales, to_nearest, values_error
from minicpm4.quantize.layer import (
    Layer,
    check_rows_finite,
    from_packed,
    looked_up,
    read_layer,
    read_tensor,
)
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.parts import ENDS, OWN_HEAD, stem_of
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.rounded import LayerReport, Rounded
from minicpm4.quantize.smooth import BEFORE, Reached, smooth
from minicpm4.quantize.stored import original_prefix, stored_tensors
from minicpm4.quantize.walk import STAGES, See, Walk, as_floats

__all__ = ["ENOUGH_ROWS", "quantize"]

ENOUGH_ROWS = 256  # of calibration: with fewer a matrix is rounded to nearest, and named
_MAX_REPORT = 1 << 20  # bytes


def quantize(
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: QuantizeOptions,
    texts: Sequence[Sequence[int]],
    ops: OpTable,
    folder: Path,
    key: Mapping[str, Any],
    bar: Bar = silent,
) -> Rounded:
    """Round the weights of an opened checkpoint as ``options`` say, into files of the work folder ``folder``.

    ``texts``: token ids to calibrate on; none for a method that needs none. ``key``: what a file in
    ``folder`` must have been made for, else it is made again. Raises CheckpointError, ConfigError."""
    specs = options.specs(config)
    rotation = Rotation(config, options.seed) if options.rotate else None
    made = Rounded(Rotation.config(config) if rotation else config, folder, dict(key))
    folder.mkdir(parents=True, exist_ok=True)
    made.rows += _ends(checkpoint, config, rotation, specs, made)
    stored = original_prefix(checkpoint, config, options.stored_prefix, rotation, ops)
    walk = None
    if options.calibrated:
        rows, numbers = looked_up(checkpoint, texts)
        embed = as_floats(rows if rotation is None else rotation.embed(rows))
        walk = Walk(ops, made.config, embed, numbers, len(options.stored_prefix))

    def one(index: int) -> None:
        prefix = f"model.layers.{index}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): spec
            for name, spec in specs.items()
            if name.startswith(prefix)
        }
        layer = _kept(made, index, config, own, len(options.stored_prefix))
        if layer is None:
            layer = read_layer(checkpoint, config, index)
            if rotation is not None:
                rotation.layer(layer)
            layer.stored = None if stored is None else stored.layer(index)
            reports = _round(layer, index, own, options, walk)
            made.rows += reports
            _write(made, index, layer, reports, checkpoint)
        elif walk is not None:
            walk.advance(index, layer.weights())

    # Apart, as texts go through a layer that is done much faster than it was rounded.
    count, before = config.num_hidden_layers, made.begun()
    for what, first, end in (("going through what is done", 0, before), ("rounding", before, count)):
        if first < end:
            with bar(what, "layers", before=first) as progress:
                for index in range(first, end):
                    one(index)
                    if progress is not None:
                        progress(index + 1, end)
    return made


def _round(
    layer: Layer,
    index: int,
    specs: Mapping[str, QuantSpec | None],
    options: QuantizeOptions,
    walk: Walk | None,
) -> list[LayerReport]:
    """Round all matrices of a layer, and take ``walk`` through it."""
    wanted = {name: spec for name, spec in specs.items() if spec is not None}
    prefix = f"model.layers.{index}."
    if walk is None:
        return _to_nearest(layer, prefix, wanted)
    # To floats there is one way to round. It comes after all that is folded in, and before texts go on: a run
    # that finds the layer done takes them through what was written.
    floats = {name: spec for name, spec in wanted.items() if not spec.row.group}
    wanted = {name: spec for name, spec in wanted.items() if name not in floats}
    rows = []
    for names, stage in zip(STAGES, walk.stages(index, layer.weights), strict=True):
        hessian, power = _seen(stage, layer, names, wanted, options, prefix)
        for name in names:
            if name in wanted:
                rows.append(_one(layer, prefix, name, wanted[name], hessian, options, power))
        before = BEFORE.get(names[0])
        settled = {name for name in names if name not in BEFORE.values()} | {before}
        rows += _to_nearest(layer, prefix, {name: spec for name, spec in floats.items() if name in settled})
        if names == STAGES[1] and (power or before in floats):
            walk.attend_again()
    order = {prefix + name: place for place, name in enumerate(specs)}
    return sorted(rows, key=lambda row: order[row.name])


def _to_nearest(layer: Layer, prefix: str, specs: Mapping[str, QuantSpec]) -> list[LayerReport]:
    rows = []
    for name, spec in specs.items():
        weights = layer.weight(name)
        packed = to_nearest(weights, spec)
        layer.round(name, packed)
        rows.append(LayerReport(prefix + name, str(spec), "rtn", _error(packed, weights)))
    return rows


def _error(packed: PackedTensor, weights: NDArray[np.float32]) -> float:
    return values_error(packed, lambda rows: weights[rows])


def _seen(
    stage: Callable[[See], None],
    layer: Layer,
    names: Sequence[str],
    specs: Mapping[str, QuantSpec],
    options: QuantizeOptions,
    prefix: str,
) -> tuple[Hessian, float]:
    """What reaches the matrices ``names``, smoothed where that helps, and the power of the factors."""
    hessian = Hessian(layer.floats[f"{names[0]}.weight"].shape[1], options.skip)
    reached = Reached(hessian, hold=options.smoothed and options.gptq)
    stage(reached.add)
    if not options.smoothed or reached.rows < ENOUGH_ROWS:  # of few rows nothing is told
        return reached.release(), 0.0
    with _named(prefix + names[0]):
        power, factors = smooth(layer, names, reached, specs, options.damping if options.gptq else None)
    reached.release()
    if power:
        hessian.divide(factors)
    return hessian, power


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors name the matrix."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error.condition}", error.remedy) from error


def _one(
    layer: Layer,
    prefix: str,
    name: str,
    spec: QuantSpec,
    hessian: Hessian,
    options: QuantizeOptions,
    power: float,
) -> LayerReport:
    weights = layer.weight(name)
    how = options.method if power or not options.gptq else options.method.removeprefix("s-")
    if hessian.rows < ENOUGH_ROWS:
        packed, how = to_nearest(weights, spec), "too few rows: rtn"
    elif options.gptq:
        with _named(prefix + name):
            packed = gptq(weights, hessian, spec, damping=options.damping, act_order=options.act_order)
    else:
        packed = _weighted(weights, hessian, spec)
    layer.round(name, packed)
    return LayerReport(prefix + name, str(spec), how, output_error(weights, unpack(packed), hessian))


def _weighted(weights: NDArray[np.float32], hessian: Hessian, spec: QuantSpec) -> PackedTensor:
    """Rounded to nearest, scales chosen with columns weighted by what reaches them."""
    groups = weights.reshape(len(weights), -1, spec.group_size)
    scales = search_scales(groups, importance(hessian).reshape(-1, spec.group_size), spec.row)
    numbers = rounding.whole_numbers(np, groups, scales, spec.row.least, spec.row.most)
    return pack(numbers.reshape(weights.shape), scales, spec)


def _kept(
    made: Rounded,
    index: int,
    config: ModelConfig,
    specs: Mapping[str, QuantSpec | None],
    prefix_tokens: int,
) -> Layer | None:
    """A layer that an earlier run has written, in ``specs``, with ``prefix_tokens`` stored; None: there is
    none of this conversion."""
    try:
        found, stored = made.layer(index), made.stored(index)
    except CheckpointError:
        return None
    prefix = f"model.layers.{index}."
    other = [name for name, spec in specs.items() if spec and found[f"{prefix}{name}.weight"].spec != spec]
    if other or (0 if stored is None else len(stored.keys)) != prefix_tokens:
        return None
    made.rows += _reports(made, index, specs)
    layer = from_packed(config, {name.removeprefix(prefix): one for name, one in found.items()}, stored)
    for name, spec in specs.items():
        if spec is None:  # floats, as texts went through it when it was made
            layer.packed[name] = as_floats(unpack(layer.packed[name]))
    return layer


def _reports(made: Rounded, index: int, specs: Mapping[str, QuantSpec | None]) -> list[LayerReport]:
    """What an earlier run said of the matrices that it rounded; where that cannot be read "as before"."""
    said: dict[str, LayerReport] = {}
    with suppress(CheckpointError, ConfigError, OSError, TypeError):
        report = read_json(_report_file(made, index), _MAX_REPORT, CheckpointError)
        rows = report.get("rows") if report.get("key") == dict(made.key) else ()
        said = {
            row.name: row for row in (from_table(LayerReport, one, "it", any_text=True) for one in rows or ())
        }
    prefix = f"model.layers.{index}."
    return [
        said.get(prefix + name) or LayerReport(prefix + name, str(spec), "as before", None)
        for name, spec in specs.items()
        if spec is not None
    ]


def _report_file(made: Rounded, index: int) -> Path:
    return made.folder / f"{stem_of(index)}.json"


def _write(
    made: Rounded, index: int, layer: Layer, rows: Sequence[LayerReport], checkpoint: Checkpoint
) -> None:
    tensors, prefix = {}, f"model.layers.{index}."
    for name, shape in layer_tensors(layer.config).items():
        packed = layer.packed.get(name.removesuffix(".weight"))
        if packed is None and len(shape) == 1:
            packed = as_floats(layer.floats[name][None])
        tensors[prefix + name] = packed or _unrounded(checkpoint.load(prefix + name), layer.floats[name])
    if layer.stored is not None:
        tensors |= stored_tensors(layer.stored, index)
    report = {"key": dict(made.key), "rows": [finite(asdict(row)) for row in rows]}
    made.save(stem_of(index), tensors, (_report_file(made, index), report))


def _unrounded(stored: PackedTensor, values: NDArray[np.float32]) -> PackedTensor:
    """A matrix that was not rounded: as it is ``stored`` unless something was folded into its ``values``."""
    if all(np.array_equal(unpack_rows(stored, rows), values[rows]) for rows in row_slices(*stored.shape)):
        return stored
    return smallest_floats(stored.shape, lambda rows: values[rows])


def _ends(
    checkpoint: Checkpoint,
    config: ModelConfig,
    rotation: Rotation | None,
    specs: Mapping[str, QuantSpec | None],
    made: Rounded,
) -> list[LayerReport]:
    """Embeddings, last norm and head, each in a file before the next is made."""
    norm = read_tensor(checkpoint, NORM)
    plain = as_floats((norm if rotation is None else np.ones_like(norm))[None])
    reports = []
    for name, stem in ((EMBED, ENDS), (HEAD, OWN_HEAD)):
        if stem in made.stems:
            tensor, error = _end(checkpoint, config, name, rotation, specs[name], norm)
            made.save(stem, {name: tensor} if name == HEAD else {NORM: plain, name: tensor})
            del tensor
            if error is not None:
                short = name.removesuffix(".weight")
                reports.append(LayerReport(short, str(specs[name]), "rtn", error))
    return reports


def _end(
    checkpoint: Checkpoint,
    config: ModelConfig,
    name: str,
    rotation: Rotation | None,
    spec: QuantSpec | None,
    norm: NDArray[np.float32],
) -> tuple[PackedTensor, float | None]:
    """Embeddings or head, rounded to nearest where that is asked for, with the error of that; else in the
    format that they are stored in, and rotated ones in the floats they were. Some rows are floats at a
    time."""
    own = EMBED if config.tie_word_embeddings else name
    stored = checkpoint.load(own)
    check_rows_finite(checkpoint, own, stored)
    if spec is None and rotation is None:
        return packed_if_exact(stored), None
    plain = QuantSpec(kind="f32" if stored.spec.row.group else stored.spec.kind)
    read = _reading(name, stored, rotation, norm)
    found = rows_to_nearest(stored.shape, spec or plain, read)
    error = None if spec is None else values_error(found, read)
    checkpoint.release(own)
    return found, error


def _reading(
    name: str, stored: PackedTensor, rotation: Rotation | None, norm: NDArray[np.float32]
) -> Callable[[slice], NDArray[np.float32]]:
    """What some rows of ``stored`` are as embeddings, or as a head."""
    if rotation is None:
        return partial(unpack_rows, stored)
    turned = rotation.embed if name == EMBED else partial(rotation.head, norm=norm)
    return lambda rows: turned(unpack_rows(stored, rows))
