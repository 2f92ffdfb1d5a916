"""Formats by matrix, so that all matrices together take at most so many bits a weight: more bits for those
that it costs most to round.

What that costs is measured. Of each layer all matrices are rounded, no others, and some texts go on to the
end of the model beside those that nothing was done to: the divergence of the answers is the layer's. Its
matrices share it as the squared changes of the layer's output, each rounded alone, are to one another; a
finer format costs a matrix less as the squared error of its weights is less. Small errors of different
matrices point in different directions, so costs add up."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import read_json, write_json
from minicpm4.formats import Checkpoint
from minicpm4.formats.names import EMBED, HEAD, NORM, expected_tensors
from minicpm4.formats.packing import packed_if_exact, row_slices, unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.model.stored_prefix import StoredPrefix
from minicpm4.progress import Progress
from minicpm4.quantize.allot import Choices, allot
from minicpm4.quantize.divergence import kullback_leibler, log_probabilities
from minicpm4.quantize.ends import format_nbytes, written_nbytes
from minicpm4.quantize.grid import to_nearest
from minicpm4.quantize.layer import Layer, looked_up, read_layer, read_tensor
from minicpm4.quantize.options import QuantizeOptions, parse_format
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.smooth import may_change
from minicpm4.quantize.stored import original_prefix
from minicpm4.quantize.walk import Walk, as_floats

__all__ = [
    "TEXTS",
    "TOKENS",
    "Budget",
    "Choices",
    "allot",
    "budgeted",
    "choices_of",
    "measure_costs",
    "planned",
]

TEXTS, TOKENS = 4, 96  # that go through the model, for each of its layers
_FILE, _MAX_FILE = "formats.json", 1 << 20  # bytes
_ROWS = 1024  # of a matrix, of which the errors of formats are told

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Budget:
    """Where what was chosen is kept: in the work folder ``part`` of the conversion of ``key``, for one that
    goes on; and what ``layout`` it is for."""

    part: Path
    key: Mapping[str, Any]
    layout: str

    @property
    def ends(self) -> bool:
        """Whether embeddings and head can be rounded."""
        return self.layout in ("gguf", "mlx", "hf", "llama")

    @property
    def fives(self) -> bool:
        """Whether it has a place for int5: floats hold the same values."""
        return self.layout in ("gguf", "hf", "llama")

    def nbytes(self, shape: tuple[int, int], spec: QuantSpec) -> int:
        """What a matrix rounded to ``spec`` takes."""
        return format_nbytes(self.layout, shape, spec)

    def read(self) -> dict[str, QuantSpec] | None:
        """What an earlier run has chosen; None: there is nothing of this conversion."""
        with suppress(CheckpointError, ConfigError, AttributeError, TypeError, KeyError):
            kept = read_json(self.part / _FILE, _MAX_FILE, CheckpointError, optional=True)
            if kept.get("of") == dict(self.key):
                return {name: spec for name, text in kept["formats"].items() if (spec := parse_format(text))}
        return None

    def write(self, formats: Mapping[str, QuantSpec]) -> None:
        """Raises CheckpointError."""
        found = {name: str(spec) for name, spec in formats.items()}
        try:
            write_json(self.part / _FILE, {"of": dict(self.key), "formats": found})
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.part}: {error}", "check its free space") from error


def budgeted(
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: QuantizeOptions,
    texts: Sequence[Sequence[int]],
    ops: OpTable,
    place: Budget,
    progress: Progress | None = None,
) -> dict[str, QuantSpec]:
    """Formats of the matrices that ``options`` leave to a budget of ``options.bits``, by their full names.
    ``texts``: of calibration. Raises CheckpointError, ConfigError."""
    plan, kept = planned(checkpoint, config, options, place), place.read()
    # What its key does not say, damage may: a format that was not to choose from is no choice.
    same = kept is not None and plan.choices.keys() == kept.keys()
    if kept is not None and same and all(spec in plan.choices[name] for name, spec in kept.items()):
        return kept
    rotation = Rotation(config, options.seed) if options.rotate else None
    stored = original_prefix(checkpoint, config, options.stored_prefix, rotation, ops)
    costs = measure_costs(checkpoint, config, plan.choices, rotation, _some(texts), ops, progress, stored)
    found = plan.allot(costs, plan.choices)
    place.write(found)
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a budget has to give: see ``allot``."""

    choices: Choices
    shapes: Mapping[str, tuple[int, int]]
    fixed: int
    bits: float
    place: Budget

    def allot(self, costs: Mapping[str, Sequence[float]], choices: Choices) -> dict[str, QuantSpec]:
        place = self.place
        return allot(costs, choices, self.shapes, self.fixed, self.bits, place.nbytes, place.ends)


def planned(checkpoint: Checkpoint, config: ModelConfig, options: QuantizeOptions, place: Budget) -> _Plan:
    """What there is to choose from: before any work. Raises ConfigError where the coarsest formats take more
    than ``options.bits``."""
    assert options.bits is not None
    shapes = {
        name: (shape[0], shape[1])
        for name, shape in expected_tensors(Rotation.config(config) if options.rotate else config).items()
        if len(shape) == 2
    }
    choices, specs = choices_of(options, config, shapes, place), options.specs(config)
    codes = {*choices, *(name for name, spec in specs.items() if spec is not None and spec.row.group)}
    fixed = 0
    for name, shape in shapes.items():
        spec = specs[name]
        if name in choices:
            continue
        if spec is None:
            fixed += _kept_nbytes(checkpoint, name, shape, options, codes, place)
        else:
            fixed += place.nbytes(shape, spec)
    plan = _Plan(choices, shapes, fixed, options.bits, place)
    plan.allot(dict.fromkeys(choices, (0.0,)), {name: formats[:1] for name, formats in choices.items()})
    return plan


def choices_of(
    options: QuantizeOptions, config: ModelConfig, shapes: Mapping[str, tuple[int, int]], place: Budget
) -> dict[str, list[QuantSpec]]:
    """Formats by matrix: int4 in groups of ``options.group`` and of 32, int5 in those of 32, int8; of those
    that have no format said. Raises ConfigError."""
    said = {EMBED: options.embed, HEAD: options.head}
    found = {}
    for name, usual in options.specs(config).items():
        own = said.get(name) is not None or (name in said and not place.ends)
        if own or any(re.search(pattern, name) for pattern in options.overrides):
            continue
        group = options.group if usual is None else usual.group_size
        fives = [("int5", 32)] if place.fives else []
        wanted = dict.fromkeys((("int4", group), ("int4", min(32, group)), *fives, ("int8", group)))
        specs = [QuantSpec(kind=kind, group_size=size) for kind, size in wanted]
        if all(spec.fits(shapes[name][1]) for spec in specs):
            found[name] = specs
    return found


def _kept_nbytes(
    checkpoint: Checkpoint,
    name: str,
    shape: tuple[int, int],
    options: QuantizeOptions,
    codes: Collection[str],
    place: Budget,
) -> int:
    """At most so many bytes take a matrix that no format was asked for, in a model of which ``codes`` are
    rounded: in float32 where something may be folded into it."""
    own = name if name in checkpoint.tensors else EMBED  # rotation makes a head of tied embeddings
    plain = checkpoint.tensors[own].spec
    if name in (EMBED, HEAD):
        if not options.rotate:
            return written_nbytes(place.layout, name, packed_if_exact(checkpoint.load(own)))
        return packed_nbytes(shape, QuantSpec(kind="f32") if plain.row.group else plain)
    prefix = name[: name.index(".", len("model.layers.")) + 1]
    beside = {_short(one, prefix) for one in codes if one.startswith(prefix)}
    if options.rotate or (options.smoothed and _short(name, prefix) in may_change(beside)):
        return packed_nbytes(shape, QuantSpec(kind="f32"))
    return written_nbytes(place.layout, name, checkpoint.load(own))


def _some(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of calibration texts those that costs are measured on: evenly spread, their first tokens."""
    picked = sorted({int(i) for i in np.linspace(0, len(texts) - 1, min(TEXTS, len(texts)))})
    return [list(texts[i][:TOKENS]) for i in picked]


def measure_costs(
    checkpoint: Checkpoint,
    config: ModelConfig,
    choices: Choices,
    rotation: Rotation | None,
    texts: Sequence[Sequence[int]],
    ops: OpTable,
    progress: Progress | None = None,
    stored: StoredPrefix | None = None,
) -> dict[str, list[float]]:
    """What each format of ``choices`` costs, in nats a token of ``texts``, which begin with what is
    ``stored``: by matrix, in the order of its formats. Memory: two layers in float32, or the head and its
    answers to a text; the states of the texts once for each layer. Raises CheckpointError."""
    rows, ids = looked_up(checkpoint, texts)
    rows = rows if rotation is None else rotation.embed(rows)
    first = 0 if stored is None else len(stored.ids)
    walk, variants, count = Walk(ops, config, as_floats(rows), ids, first), list[str](), len(ids)
    errors, moved = dict[str, list[float]](), dict[str, dict[str, float]]()
    if EMBED in choices:
        errors[EMBED] = _errors(rows, choices[EMBED])
        walk.join(Walk(ops, config, to_nearest(rows, choices[EMBED][0]), ids))
        variants.append(EMBED)
    for index in range(config.num_hidden_layers):
        layer, prefix = read_layer(checkpoint, config, index), f"model.layers.{index}."
        if rotation is not None:
            rotation.layer(layer)
        layer.stored = None if stored is None else stored.layer(index)
        wanted = {name: formats for name, formats in choices.items() if name.startswith(prefix)}
        for name, formats in wanted.items():
            errors[name] = _errors(layer.floats[name.removeprefix(prefix)], formats)
        changed = walk.apart(count)
        walk.advance(index, layer.weights())
        if wanted:
            moved[prefix] = _alone(layer, index, prefix, wanted, changed, walk.x[:count])
            walk.join(changed)
            variants.append(prefix)
        if progress is not None:
            progress(index + 1, config.num_hidden_layers)
    del layer  # before the head is read
    norm = read_tensor(checkpoint, NORM)
    head = _head(checkpoint, config, rotation, norm)
    norm = norm if rotation is None else np.ones_like(norm)
    if HEAD in choices:
        errors[HEAD] = _errors(head, choices[HEAD])
        walk.join(walk.apart(count))
        variants.append(HEAD)
    own_head = HEAD in choices or rotation is not None or not config.tie_word_embeddings
    through = HEAD if HEAD in choices else EMBED if EMBED in choices and not own_head else ""
    small = to_nearest(head, choices[through][0]) if through else None
    totals = _divergences(ops, config, walk.x, norm, (as_floats(head), small), variants, count, through)
    return _shared_out(totals, moved, errors)


def _head(checkpoint: Checkpoint, config: ModelConfig, rotation: Rotation | None, norm: Floats) -> Floats:
    """The head in float32, of which some rows are turned at a time."""
    head = read_tensor(checkpoint, EMBED if config.tie_word_embeddings else HEAD)
    if rotation is not None:
        for some in row_slices(*head.shape):
            head[some] = rotation.head(head[some], norm)
    return head


def _shared_out(
    totals: Mapping[str, float],
    moved: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Sequence[float]],
) -> dict[str, list[float]]:
    """Costs by matrix and format: ``totals`` of layers, by what is ``moved`` in each, and of other
    matrices."""
    costs = {}
    for name, each in errors.items():
        layer = next((prefix for prefix in moved if name.startswith(prefix)), None)
        cost = totals[name if layer is None else layer]
        if layer is not None:
            cost *= moved[layer][name] / max(sum(moved[layer].values()), 1e-30)
        costs[name] = [cost * error / max(each[0], 1e-30) for error in each]
    return costs


def _errors(weights: Floats, formats: Sequence[QuantSpec]) -> list[float]:
    """Squared errors of some rows of a matrix in each of ``formats``."""
    rows = np.ascontiguousarray(weights[:: -(-len(weights) // _ROWS)])
    return [float(np.square(unpack(to_nearest(rows, spec)) - rows).sum()) for spec in formats]


def _alone(
    layer: Layer, index: int, prefix: str, wanted: Choices, walk: Walk, plain: Sequence[Floats]
) -> dict[str, float]:
    """By matrix how far it moves the layer's output from ``plain`` when it alone is rounded to its first
    format, squared; ``walk`` goes through the layer with all of them rounded."""
    packed = {
        name: to_nearest(layer.floats[name.removeprefix(prefix)], formats[0])
        for name, formats in wanted.items()
    }
    moved = {}
    for name in packed:
        layer.packed = {_short(name, prefix): packed[name]}
        tried = walk.apart(len(walk.x))
        tried.advance(index, layer.weights())
        moved[name] = float(sum(np.square(a - b).sum() for a, b in zip(tried.x, plain, strict=True)))
    layer.packed = {_short(name, prefix): one for name, one in packed.items()}
    walk.advance(index, layer.weights())
    return moved


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).removesuffix(".weight")


def _divergences(
    ops: OpTable,
    config: ModelConfig,
    states: Sequence[Floats],
    norm: Floats,
    heads: tuple[PackedTensor, PackedTensor | None],
    variants: Sequence[str],
    count: int,
    through: str,
) -> dict[str, float]:
    """By variant, ``count`` texts each behind those that nothing was done to, the mean divergence of its
    answers. ``heads``: the head, and rounded; the variant ``through`` goes through that."""
    totals = dict.fromkeys(variants, 0.0)

    def answers(x: Floats, head: PackedTensor | None) -> NDArray[np.float64]:
        assert head is not None
        hidden = np.asarray(ops.rms_norm(x, norm, config.rms_norm_eps)) * np.float32(config.logit_scale)
        return log_probabilities(np.array(ops.linear(hidden, Linear(weight=head))))

    for text in range(count):
        old = answers(states[text], heads[0])
        for number, name in enumerate(variants, 1):
            new = answers(states[number * count + text], heads[name == through])
            totals[name] += float(kullback_leibler(old, new).sum())
    tokens = sum(len(one) for one in states[:count])
    return {name: total / tokens for name, total in totals.items()}
