"""A model made small layer by layer, each written when it is done: a run that was killed goes on where it
was.

Memory: ``memory.planned_memory``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.config.strict import from_table
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import finite, read_json, write_json
from minicpm4.formats import Checkpoint, rounding
from minicpm4.formats.names import EMBED, HEAD, layer_tensors
from minicpm4.formats.packing import (
    exact_float,
    pack_from_float,
    packed_if_exact,
    row_slices,
    unpack,
    unpack_rows,
)
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import StoredKV
from minicpm4.model.arena import Arena
from minicpm4.model.packed_file import PackedFile, write
from minicpm4.model.stored_prefix import StoredPrefix
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
from minicpm4.quantize.options import QuantizeOptions, parse_format
from minicpm4.quantize.parts import ENDS, stem_of
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.smooth import BEFORE, Reached, smooth
from minicpm4.quantize.stored import is_stored, original_prefix, stored_of, stored_tensors
from minicpm4.quantize.walk import STAGES, See, Walk, as_floats
from minicpm4.quantize.work import remove_work

__all__ = ["ENOUGH_ROWS", "LayerReport", "Rounded", "quantize"]

ENOUGH_ROWS = 256  # of calibration: with fewer a matrix is rounded to nearest, and named
_MAX_REPORT = 1 << 20  # bytes


@dataclass(slots=True)
class LayerReport:
    """What became of a matrix: its format, how (a method, of GPTQ's with "s-" where smoothing helped; "too
    few rows: rtn"), and its output error (see ``output_error``; None where nothing was calibrated), of
    embeddings and head the error of their values."""

    name: str
    format: str
    how: str
    error: float | None

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        spec = parse_format(self.format)
        assert spec is not None
        columns = max(1, spec.group_size) * spec.row.columns
        return 8 * packed_nbytes((1, columns), spec) / columns


@dataclass(slots=True, eq=False)
class Rounded:
    """A model that was made small, on disk in ``folder``, a file a layer."""

    config: ModelConfig
    folder: Path
    key: Mapping[str, Any]
    rows: list[LayerReport] = field(default_factory=list)

    @property
    def stems(self) -> list[str]:
        """Names of its files, without their ending."""
        return [ENDS, *(stem_of(index) for index in range(self.config.num_hidden_layers))]

    def part(self, stem: str) -> dict[str, PackedTensor]:
        """Tensors of one file by their full names, vectors as matrices of a row. Raises CheckpointError."""
        return {name: one for name, one in self._read(stem).items() if not is_stored(name)}

    def _read(self, stem: str) -> dict[str, PackedTensor]:
        file = self.folder / f"{stem}.safetensors"
        try:
            with file.open("rb") as data:
                found = PackedFile(data, file)
                if found.key != dict(self.key):
                    raise CheckpointError(f"{file} belongs to another conversion", "remove the folder")
                return found.read(Arena(), lambda name, spec, shape: True)
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error}") from error

    def begun(self) -> int:
        """How many layers, the first and those that follow, an earlier run seems to have written: nothing of
        them is read."""
        for index in range(self.config.num_hidden_layers):
            file = self.folder / f"{stem_of(index)}.safetensors"
            try:
                with file.open("rb") as data:
                    if PackedFile(data, file).key != dict(self.key):
                        return index
            except (CheckpointError, OSError):
                return index
        return self.config.num_hidden_layers

    def layer(self, index: int) -> dict[str, PackedTensor]:
        """Tensors of a layer, by their full names. Raises CheckpointError."""
        return self.part(stem_of(index))

    def ends(self) -> dict[str, PackedTensor]:
        """Embeddings, last norm and head. Raises CheckpointError."""
        return self.part(ENDS)

    def stored(self, index: int) -> StoredKV | None:
        """What is stored of a layer's prefix. Raises CheckpointError."""
        return stored_of(self._read(stem_of(index)), self.config)

    def stored_prefix(self, ids: Sequence[int]) -> StoredPrefix | None:
        """The stored prefix of the tokens ``ids``; None where there are none. Raises CheckpointError."""
        if not ids:
            return None
        each = [self.stored(index) for index in range(self.config.num_hidden_layers)]
        keys, values = (np.stack([getattr(one, name) for one in each]) for name in ("keys", "values"))
        return StoredPrefix(ids=tuple(ids), keys=keys, values=values)

    def remove(self) -> None:
        """Nothing of it is needed any more."""
        remove_work(self.folder)


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
        layer = _kept(made, index, config, own)
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
    for name, spec in specs.items():
        layer.round(name, to_nearest(layer.weight(name), spec))
    return [LayerReport(prefix + name, str(spec), "rtn", None) for name, spec in specs.items()]


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
    made: Rounded, index: int, config: ModelConfig, specs: Mapping[str, QuantSpec | None]
) -> Layer | None:
    """A layer that an earlier run has written, in ``specs``; None: there is none of this conversion."""
    try:
        found, stored = made.layer(index), made.stored(index)
    except CheckpointError:
        return None
    prefix = f"model.layers.{index}."
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
    _save(made, stem_of(index), tensors, (_report_file(made, index), report))


def _unrounded(stored: PackedTensor, values: NDArray[np.float32]) -> PackedTensor:
    """A matrix that was not rounded: as it is ``stored`` unless something was folded into its ``values``."""
    if all(np.array_equal(unpack_rows(stored, rows), values[rows]) for rows in row_slices(*stored.shape)):
        return stored
    return pack_from_float(values, QuantSpec(kind=exact_float(values)))


def _save(
    made: Rounded, stem: str, tensors: Mapping[str, PackedTensor], report: tuple[Path, Any] | None = None
) -> None:
    try:
        if report is not None:  # first: of a layer that is there, its report is, too
            write_json(*report)
        write(made.folder / f"{stem}.safetensors", made.key, tensors)
    except OSError as error:
        raise CheckpointError(f"cannot write to {made.folder}: {error}", "check its free space") from error


def _ends(
    checkpoint: Checkpoint,
    config: ModelConfig,
    rotation: Rotation | None,
    specs: Mapping[str, QuantSpec | None],
    made: Rounded,
) -> list[LayerReport]:
    """Embeddings, last norm and head, rounded to nearest where that is asked for; else in the format that
    they are stored in, and rotated ones in the floats they were. Some rows are floats at a time."""
    norm = read_tensor(checkpoint, "model.norm.weight")
    tensors = {"model.norm.weight": as_floats((norm if rotation is None else np.ones_like(norm))[None])}
    names = [EMBED] if config.tie_word_embeddings and rotation is None else [EMBED, HEAD]
    reports = []
    for name in names:
        own = HEAD if name == HEAD and not config.tie_word_embeddings else EMBED
        stored = checkpoint.load(own)
        check_rows_finite(checkpoint, own, stored)
        spec = specs[name]
        if spec is None and rotation is None:
            tensors[name] = packed_if_exact(stored)
            continue
        plain = "f32" if stored.spec.row.group else stored.spec.kind
        read = _reading(name, stored, rotation, norm)
        tensors[name] = rows_to_nearest(stored.shape, spec or QuantSpec(kind=plain), read)
        if spec is not None:
            error = values_error(tensors[name], read)
            reports.append(LayerReport(name.removesuffix(".weight"), str(spec), "rtn", error))
        checkpoint.release(own)
    _save(made, ENDS, tensors)
    return reports


def _reading(
    name: str, stored: PackedTensor, rotation: Rotation | None, norm: NDArray[np.float32]
) -> Callable[[slice], NDArray[np.float32]]:
    """What some rows of ``stored`` are as embeddings, or as a head."""
    if rotation is None:
        return partial(unpack_rows, stored)
    turned = rotation.embed if name == EMBED else partial(rotation.head, norm=norm)
    return lambda rows: turned(unpack_rows(stored, rows))
