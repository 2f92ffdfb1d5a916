"""What model, optimiser and stages of a recipe come to, known without torch: the trainer and its estimate
(``train/estimate.py``) read the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.rope import RopeScaling, parse_rope_scaling
from minicpm4.config.strict import require, shown, suggest
from minicpm4.errors import ConfigError
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.quant import QuantSpec
from minicpm4.train.recipe import Stage
from minicpm4.train.settings import Adapter

__all__ = [
    "CHUNK",
    "Passes",
    "check_rounding",
    "fits",
    "fitting",
    "lengths",
    "pair_names",
    "pair_shapes",
    "passes",
    "rule_of",
    "sparse_of",
    "spec_of",
    "stage_config",
]

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 27}  # logits that the loss holds at once, by device


def rule_of(name: str, shape: Iterable[int], kind: str = "adamw") -> str:
    """Which rule moves a parameter under optimiser ``kind``: adamw or muon."""
    return "muon" if kind == "muon" and ".layers." in f".{name}" and len(tuple(shape)) == 2 else "adamw"


def fits(name: str, pattern: str) -> bool:
    """Whether matrix ``name`` is one that ``pattern`` means: shell style, of its name or the end of it
    ("self_attn.*", "down_proj"), with or without ".weight". Embeddings and head fit only what spells their
    name."""
    stem = name.removesuffix(".weight")
    if name in (EMBED, HEAD) and stem.rpartition(".")[2] not in pattern:
        return False
    return any(fnmatchcase(text, wanted) for text in (name, stem) for wanted in (pattern, f"*.{pattern}"))


def fitting(names: Sequence[str], patterns: Iterable[str], what: str) -> list[str]:
    """The matrices of ``names`` that fit ``patterns``, each once. Raises ConfigError, which calls a pattern
    ``what``, where one fits none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        fit = [name for name in names if fits(name, pattern)]
        if not fit:
            known = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names})
            raise ConfigError(f"{what} {pattern!r} fits no matrix", suggest(pattern, known))
        found |= dict.fromkeys(fit)
    return list(found)


def matrix_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Those of ``shapes`` that are matrices."""
    return [name for name, shape in shapes.items() if len(shape) == 2]


def spec_of(name: str, rounding: Mapping[str, QuantSpec]) -> QuantSpec | None:
    """The format that ``rounding`` gives to matrix ``name``, by the first pattern that fits; None: it stays
    as it is."""
    return next((spec for pattern, spec in rounding.items() if fits(name, pattern)), None)


def check_rounding(shapes: Mapping[str, tuple[int, ...]], rounding: Mapping[str, QuantSpec]) -> None:
    """Raise ConfigError for a pattern that fits no matrix of ``shapes``, and for a matrix whose columns its
    format does not divide."""
    for name in fitting(matrix_names(shapes), rounding, "rounding pattern"):
        spec, columns = spec_of(name, rounding), shapes[name][1]
        assert spec is not None
        require(
            spec.fits(columns),
            f"the {columns} columns of {name.removesuffix('.weight')} do not fit weight format {spec}",
            "choose a group size that divides them",
        )


def pair_names(name: str) -> tuple[str, str]:
    """What the two low-rank matrices beside matrix ``name`` are called, as PEFT has it."""
    stem = name.removesuffix(".weight")
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def pair_shapes(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the low-rank matrices that ``adapter`` puts beside those of ``shapes``. Raises
    ConfigError."""
    found: dict[str, tuple[int, ...]] = {}
    for name in fitting(matrix_names(shapes), adapter.targets, "lora target"):
        first, second = pair_names(name)
        rows, columns = shapes[name]
        found |= {first: (adapter.rank, columns), second: (rows, adapter.rank)}
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """How a step is taken in each process: ``count`` forward passes (micro-batches) of ``tokens`` tokens."""

    count: int
    tokens: int


def passes(stage: Stage, processes: int) -> Passes:
    """How ``stage`` takes a step on ``processes``. Without ``micro_tokens`` a pass is a process's part of the
    batch, so with another number documents are cut elsewhere, and of whole ones other batches are made.
    Raises ConfigError when it does not come out whole."""
    tokens = stage.micro_tokens or stage.batch_tokens // processes
    if not tokens or stage.batch_tokens % (tokens * processes):
        raise ConfigError(
            f"stage {stage.name!r}: batch_tokens = {stage.batch_tokens} is not a multiple "
            f"of {tokens} tokens on {processes} process{'es' if processes > 1 else ''}",
            "choose micro_tokens, or the number of processes (GPUs), so that it is",
        )
    return Passes(count=stage.batch_tokens // (tokens * processes), tokens=tokens)


def stage_config(config: ModelConfig, stage: Stage) -> ModelConfig:
    """``config`` with the context and rotary scaling that ``stage`` asks for. Raises ConfigError."""
    length = stage.max_position_embeddings or config.max_position_embeddings
    scaling = config.rope_scaling
    if stage.rope_scaling is not None:
        known = ["type", *RopeScaling.__dataclass_fields__]
        for key in stage.rope_scaling:
            require(
                key in known,
                f"stage {stage.name!r}: rope_scaling has an unknown key {shown(key)}",
                suggest(key, known),
            )
        scaling = parse_rope_scaling(dict(stage.rope_scaling), length)
    if stage.context > length:
        raise ConfigError(
            f"stage {stage.name!r}: context = {stage.context} exceeds the model's {length} positions",
            "set the stage's max_position_embeddings",
        )
    return replace(config, max_position_embeddings=length, rope_scaling=scaling)


def sparse_of(config: ModelConfig, stage: Stage) -> SparseConfig | None:
    """How ``stage`` chooses blocks; None: its attention is dense. Raises ConfigError."""
    if stage.attention == "dense":
        return None
    if config.sparse_config is None:
        raise ConfigError(
            f"stage {stage.name!r}: attention = 'sparse', yet the model has no sparse_config",
            "add [model.shape.sparse_config]",
        )
    return config.sparse_config


def lengths(stage: Stage) -> Iterator[tuple[float, int]]:
    """Shares of a stage's tokens and the lengths of their documents: the whole context, or with buckets the
    middle of each."""
    if not stage.buckets:
        yield 1.0, stage.context
        return
    bounds = [0, *(bound for bound in stage.buckets if bound < stage.context), stage.context]
    for low, high in pairwise(bounds):
        yield 1 / (len(bounds) - 1), (low + high) // 2
