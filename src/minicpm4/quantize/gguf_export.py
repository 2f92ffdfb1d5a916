"""What was made small, or is stored, as one GGUF file: written, read again and compared."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.config.strict import check_pattern, require
from minicpm4.errors import CheckpointError, ConfigError, TextError
from minicpm4.formats.ggml_fit import (
    check_columns,
    distance,
    own_type,
    own_types,
    rounded_to,
    same_in,
    same_values,
    type_id,
)
from minicpm4.formats.ggml_types import GGML_TYPES, GgmlType, encoded
from minicpm4.formats.gguf import GgufCheckpoint, heads_in_pairs, pairs_of_rows
from minicpm4.formats.gguf_write import OutTensor, write_gguf
from minicpm4.formats.names import EMBED, HEAD, expected_tensors, gguf_name, no_matrix
from minicpm4.formats.quant import PackedTensor, QuantSpec, group_sizes
from minicpm4.model.gguf_metadata import gguf_metadata
from minicpm4.model.rotary import inverse_frequencies
from minicpm4.model.source import read_config
from minicpm4.quantize.grid import to_nearest
from minicpm4.quantize.parts import OnePart, Parts, is_vector, tell_layers
from minicpm4.text.gguf_write import differences
from minicpm4.text.model_text import ModelText

__all__ = ["GgufTypes", "InType", "check_gguf", "check_gguf_plan", "plan_gguf", "write_gguf_model"]

F32 = 0
_TELL = "nothing is kept of it; please tell us which model that was"
# llama.cpp's numbers of whole files, by the type that most of their matrices have: a label.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 15}
_FILE_TYPES |= {"Q5_K": 17, "Q6_K": 18, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "Q2_0": 41}


@dataclass(frozen=True, kw_only=True)
class GgufTypes:
    """Types that were asked for: (regular expression, or None: see ``of``; number of a type), the last that
    fits counts. A matrix of which none was asked for gets one that holds it as it is."""

    asked: tuple[tuple[str | None, int], ...] = ()

    @classmethod
    def parse(cls, given: Sequence[str]) -> GgufTypes:
        """Of "q4_k" and "PATTERN=q8_0". Raises ConfigError."""
        found: list[tuple[str | None, int]] = []
        for text in given:
            pattern, equals, name = text.rpartition("=")
            require(
                bool(pattern) or not equals,
                f"--gguf-type {text!r} is not TYPE or PATTERN=TYPE",
                "such as q4_k, or 'embed_tokens=q6_k'",
            )
            check_pattern(pattern)
            found.append((pattern if equals else None, type_id(name)))
        return cls(asked=tuple(found))

    def of(self, name: str) -> int | None:
        """The type asked for: without a pattern one of floats is for all matrices, others are for those of
        layers."""
        found = None
        for pattern, number in self.asked:
            ends = name in (EMBED, HEAD) and GGML_TYPES[number].spec.group_size
            if re.search(pattern, name) if pattern is not None else not ends:
                found = number
        return found


@dataclass(frozen=True, slots=True)
class InType:
    """A matrix of the file: the name of its type, and how far it is from what it was made of, as a share of
    that (root of mean squares); 0: every value as it was."""

    name: str
    type: str
    error: float


@dataclass(slots=True, eq=False)
class _Plan:
    """A file to be: types by name of matrix, metadata, tensors beside the model's own."""

    made: Parts
    asked: GgufTypes
    metadata: dict[str, Any]
    vectors: dict[str, NDArray[np.float32]]
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)  # by part and name
    notes: list[str] = field(default_factory=list)
    _part: OnePart = field(init=False)

    def __post_init__(self) -> None:
        self._part = OnePart(self.made)

    def tensor(self, stem: str, name: str) -> PackedTensor:
        """As it is in ``made``."""
        return self._part.tensor(stem, name)

    def fitted(self, stem: str, name: str) -> PackedTensor:
        """A matrix as its type holds it."""
        kind = GGML_TYPES[self.types[name]]
        try:
            return rounded_to(self.tensor(stem, name), kind)
        except CheckpointError as error:
            raise CheckpointError(f"{name} as {kind.name}: {error.condition}", error.remedy) from error


@dataclass(slots=True, eq=False)
class AsTyped:
    """The model of a plan, every matrix as its type holds it."""

    plan: _Plan

    @property
    def config(self) -> ModelConfig:
        return self.plan.made.config

    @property
    def stems(self) -> list[str]:
        return self.plan.made.stems

    def part(self, stem: str) -> dict[str, PackedTensor]:
        make = {True: self.plan.tensor, False: self.plan.fitted}
        return {name: make[is_vector(name)](stem, name) for name in self.plan.shapes[stem]}


def check_gguf_plan(
    config: ModelConfig, specs: Mapping[str, QuantSpec | None], asked: GgufTypes, text: ModelText | None
) -> None:
    """Raise ConfigError, TextError for what no GGUF file can say, or has no type for: before any work.
    ``specs``: the format of every matrix, None: floats."""
    gguf_metadata(config)
    _text_keys(config, text)
    _check_used(asked, list(specs))
    shapes = expected_tensors(config)
    _check_columns(config, asked)
    for name, spec in specs.items():
        columns = shapes[name][1]
        number = asked.of(name)
        if number is not None:
            _check_once(name, spec, GGML_TYPES[number], columns)
        elif spec is not None and not own_types(spec, columns):
            others = [
                QuantSpec(kind=spec.kind, group_size=size) for size in group_sizes(spec.kind, {columns})
            ]
            sizes = [str(one.group_size) for one in others if own_types(one, columns)]
            raise ConfigError(
                f"no GGML type holds {name} as {spec}",
                f"choose a group of {' or '.join(sizes)}" if sizes else "leave it as it is (float)",
            )


def _check_columns(config: ModelConfig, asked: GgufTypes) -> None:
    """Raise ConfigError where a type that is asked for does not fit all matrices that are to have it."""
    found: dict[int, dict[str, int]] = {}
    for name, shape in expected_tensors(config).items():
        number = asked.of(name) if len(shape) == 2 else None
        if number is not None:
            found.setdefault(number, {})[name] = shape[1]
    for number, columns in found.items():
        check_columns(columns, GGML_TYPES[number])


def _check_once(name: str, spec: QuantSpec | None, kind: GgmlType, columns: int) -> None:
    """Raise ConfigError where a matrix that is rounded to ``spec`` would be rounded once more to ``kind``."""
    if spec is None or _holds(spec, kind):
        return
    sizes = dict.fromkeys([*group_sizes(spec.kind, {columns}), kind.block])
    others = [QuantSpec(kind=spec.kind, group_size=size) for size in sizes if size % spec.row.group == 0]
    held = [f"--group {one.group_size}" for one in others if _holds(one, kind)]
    raise ConfigError(
        f"{name} would be rounded twice: to {spec}, and from that to {kind.name}",
        (f"{kind.name} holds {spec.kind} with {' or '.join(held)}; or " if held else "")
        + "leave --gguf-type out, or --weights: the type alone rounds once",
    )


@cache
def _holds(spec: QuantSpec, kind: GgmlType) -> bool:
    """Whether a type holds what is rounded to ``spec``: told by a row of it."""
    columns = math.lcm(spec.group_size, kind.block, spec.row.columns)
    row = np.random.default_rng(0).standard_normal((1, columns), np.float32)
    return same_in(to_nearest(row, spec), kind) is not None


def _check_used(asked: GgufTypes, names: Sequence[str]) -> None:
    for pattern, _ in asked.asked:
        if pattern is not None and not any(re.search(pattern, name) for name in names):
            raise no_matrix(pattern, names)


def plan_gguf(
    made: Parts, text: ModelText | None, asked: GgufTypes, general: Mapping[str, Any] | None = None
) -> _Plan:
    """Choose a type for every matrix; ``general``: more metadata. Raises CheckpointError, ConfigError,
    TextError."""
    keys, vectors = gguf_metadata(made.config)
    _check_columns(made.config, asked)
    words = _text_keys(made.config, text)
    plan = _Plan(made, asked, {"general.architecture": made.config.model_type, **(general or {})}, vectors)
    for stem in made.stems:
        part = made.part(stem)
        plan.shapes[stem] = {one: part[one].shape[is_vector(one) :] for one in part}
        plan.types |= {one: _type_of(one, part[one], asked) for one in part if not is_vector(one)}
        part.clear()  # before the next one is made
    _check_used(asked, list(plan.types))
    most = Counter(GGML_TYPES[number].name for number in plan.types.values()).most_common(1)[0][0]
    plan.metadata |= (
        {"general.quantization_version": 2, "general.file_type": _FILE_TYPES[most]} | keys | words
    )
    if made.config.sparse_config is not None:
        said = asdict(made.config.sparse_config) | {"dense_len": made.config.sparse_config.dense_below}
        plan.notes.append(
            "GGUF has no key for sparse attention: run it with --sparse "
            + ",".join(f"{key}={json.dumps(value)}" for key, value in said.items())
        )
    return plan


def _type_of(name: str, tensor: PackedTensor, asked: GgufTypes) -> int:
    number = asked.of(name)
    if number is not None:
        check_columns({name: tensor.shape[1]}, GGML_TYPES[number])
        return number
    number = own_type(tensor)
    if number is not None:
        return number
    raise CheckpointError(
        f"no GGML type holds {name} as {tensor.spec} to the bit",
        "name the type to round it to, such as --gguf-type q8_0",
    )


def _text_keys(config: ModelConfig, text: ModelText | None) -> dict[str, Any]:
    if text is None:
        found: dict[str, Any] = {"tokenizer.ggml.model": "no_vocab"}
    else:
        found = text.gguf_keys(config.vocab_size)
    if config.bos_token_id is not None and config.bos_token_id < config.vocab_size:
        found.setdefault("tokenizer.ggml.bos_token_id", config.bos_token_id)
    roles = [f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom")]
    named = {found.get(role) for role in roles}
    free = [role for role in roles if role not in found]
    for role, token in zip(free, [i for i in config.eos_token_ids if i not in named], strict=False):
        found[role] = token
    return found


def write_gguf_model(plan: _Plan, file: Path) -> tuple[int, int, int]:
    """Write the file; return bytes of all tensors, weights of matrices, and their bytes. Raises
    CheckpointError, OSError."""
    tensors, weights = [], 0
    for stem in plan.made.stems:
        for name, shape in plan.shapes[stem].items():
            number = plan.types.get(name, F32)
            weights += math.prod(shape) if name in plan.types else 0
            data = partial(_bytes, plan, stem, name)
            tensors.append(OutTensor(name=gguf_name(name), shape=shape, type_id=number, data=data))
    tensors += [
        OutTensor(name=name, shape=values.shape, type_id=F32, data=values)
        for name, values in plan.vectors.items()
    ]
    write_gguf(file, plan.metadata, tensors)
    matrices = sum(tensor.nbytes for tensor in tensors if len(tensor.shape) == 2)
    return sum(tensor.nbytes for tensor in tensors), weights, matrices


def _bytes(plan: _Plan, stem: str, name: str) -> NDArray:
    config = plan.made.config
    vector = is_vector(name)
    tensor = plan.tensor(stem, name) if vector else plan.fitted(stem, name)
    heads = heads_in_pairs(config.model_type, name)
    if heads is not None:
        count = config.num_attention_heads if heads.endswith("count") else config.num_key_value_heads
        rows = tensor.shape[1] if vector else tensor.shape[0]
        order = np.argsort(pairs_of_rows(rows, count))
        if vector:
            return np.ascontiguousarray(tensor.codes[0][order])
        parts: dict[str, Any] = {part: array[order] for part, array in tensor.parts.items()}
        tensor = PackedTensor(spec=tensor.spec, shape=tensor.shape, **parts)
    return tensor.codes[0] if vector else encoded(tensor, GGML_TYPES[plan.types[name]])


def check_gguf(
    plan: _Plan,
    file: Path,
    text: ModelText | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[InType]:
    """Open what was written and compare all of it with what it was made of: tensors value for value,
    configuration, text. What another reader may take otherwise is noted in ``plan``. Raises CheckpointError
    that names what differs."""
    checkpoint = GgufCheckpoint(file)
    found = read_config(checkpoint)
    _check_config(plan.made.config, found)
    ends = {*found.eos_token_ids}
    if text is not None:
        ends.update(_check_text(plan, checkpoint, text))
    _note_lost_ends(plan, ends, text)
    rows: list[InType] = []
    for stem in plan.made.stems:
        for name in plan.shapes[stem]:
            if is_vector(name):
                same = np.array_equal(checkpoint.load_vector(name), plan.tensor(stem, name).codes[0])
            else:
                written, fitted = checkpoint.load(name), plan.fitted(stem, name)
                same = written.shape == fitted.shape and same_values(written, fitted)
                error = distance(written, plan.tensor(stem, name))
                rows.append(InType(name, GGML_TYPES[plan.types[name]].name, error))
                checkpoint.release(name)
                same = same and (error == 0 or plan.asked.of(name) is not None)
            if not same:
                raise CheckpointError(
                    f"{name} as written to {file} is not what it was made of",
                    "nothing is kept of it; check the disk and do the same again, or tell us which model "
                    "that was",
                )
        tell_layers(plan.made.config, stem, progress)
    return rows


def _check_config(config: ModelConfig, found: ModelConfig) -> None:
    """Raise CheckpointError unless the file, which is read as ``found``, describes the same model."""
    skipped = {"rope_scaling", "sparse_config", "bos_token_id", "eos_token_ids", "windows"}
    for item in fields(config):
        one, other = getattr(config, item.name), getattr(found, item.name)
        close = isinstance(one, float) and math.isclose(one, other, rel_tol=1e-6)
        if item.name not in skipped and one != other and not close:
            raise CheckpointError(f"{item.name} = {one!r} is read again as {other!r}", _TELL)
    original = config.rope_scaling.original_max_position_embeddings if config.rope_scaling else None
    for context in {original or config.max_position_embeddings, config.max_position_embeddings}:
        ours, theirs = inverse_frequencies(config, context), inverse_frequencies(found, context)
        if not np.allclose(ours[0], theirs[0], rtol=1e-6, atol=0) or not math.isclose(
            ours[1], theirs[1], rel_tol=1e-6
        ):
            raise CheckpointError(f"rotary positions at {context:,} tokens are read again as others", _TELL)


def _check_text(plan: _Plan, checkpoint: GgufCheckpoint, text: ModelText) -> tuple[int, ...]:
    """Raise TextError where the file's text is another; return what ends an answer by it."""
    written = ModelText(checkpoint)
    plain, special = differences(text.tokenizer, written.tokenizer)
    if plain is not None:
        raise TextError(
            f"the tokenizer as a GGUF file has it reads {plain[:40]!r} as other tokens",
            "write a folder (--to hf), which keeps the tokenizer's own files",
        )
    if special is not None:
        plan.notes.append(
            f"beside added tokens text is read otherwise from the file, such as {special!r:.60}"
        )
    return written.end_ids


def _note_lost_ends(plan: _Plan, ends: Collection[int], text: ModelText | None) -> None:
    """Note which end tokens are not among ``ends``, those that the file has."""
    own = () if text is None else text.end_ids
    lost = sorted({*own, *plan.made.config.eos_token_ids} - {*ends})
    if lost:
        names = ", ".join(f"token {i}" if text is None else str(text.tokenizer.id_to_token(i)) for i in lost)
        plan.notes.append(f"GGUF has no key for so many end tokens: {names} is none to its readers")
