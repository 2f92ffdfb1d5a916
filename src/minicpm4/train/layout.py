"""What model, optimiser and stages of a recipe come to, known without torch: the trainer and its estimate
(``train/estimate.py``) read the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from types import MappingProxyType

from minicpm4.config import ModelConfig
from minicpm4.config.rope import parse_rope_scaling
from minicpm4.config.strict import suggest
from minicpm4.errors import ConfigError
from minicpm4.formats.names import EMBED, HEAD, expected_tensors
from minicpm4.train.recipe import Adapter, Stage

__all__ = [
    "CHUNK",
    "EXTRA_LAYER",
    "STATES",
    "accumulation",
    "extra_shapes",
    "fits",
    "fitting",
    "layer_shapes",
    "lengths",
    "pair_names",
    "pair_shapes",
    "rule_of",
    "stage_config",
]

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 27}  # logits that the loss holds at once, by device
EXTRA_LAYER = "layers.0."  # before the names of the extra layer's tensors (train/mtp.py)
STATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"adamw": ("first", "second"), "muon": ("momentum",)}
)
"""Moments that a rule keeps of each parameter, in its shape."""


def layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names (without "model.layers.0.") and shapes of one layer's tensors."""
    prefix = "model.layers.0."
    for name, shape in expected_tensors(config).items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), shape


def extra_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the extra layer of multi-token prediction (train/mtp.py)."""
    width = config.hidden_size
    found: dict[str, tuple[int, ...]] = {"fc.weight": (width, 2 * width)}
    found |= {"input_norm1.weight": (width,), "input_norm2.weight": (width,)}
    return found | {EXTRA_LAYER + name: shape for name, shape in layer_shapes(config)}


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


def pair_names(name: str) -> tuple[str, str]:
    """What the two low-rank matrices beside matrix ``name`` are called, as PEFT has it."""
    stem = name.removesuffix(".weight")
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def pair_shapes(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the low-rank matrices that ``adapter`` puts beside those of ``shapes``. Raises
    ConfigError."""
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    found: dict[str, tuple[int, ...]] = {}
    for name in fitting(matrices, adapter.targets, "lora target"):
        first, second = pair_names(name)
        rows, columns = shapes[name]
        found |= {first: (adapter.rank, columns), second: (rows, adapter.rank)}
    return found


def accumulation(stage: Stage, processes: int) -> int:
    """Micro-batches of a step in each process. Raises ConfigError when they do not come out whole."""
    size = stage.micro_tokens or stage.batch_tokens // processes
    if not size or stage.batch_tokens % (size * processes):
        raise ConfigError(
            f"stage {stage.name!r}: batch_tokens = {stage.batch_tokens} is not a multiple "
            f"of {size} tokens on {processes} processes",
            "choose micro_tokens so that it is",
        )
    return stage.batch_tokens // (size * processes)


def stage_config(config: ModelConfig, stage: Stage) -> ModelConfig:
    """``config`` with the context and rotary scaling that ``stage`` asks for. Raises ConfigError."""
    length = stage.max_position_embeddings or config.max_position_embeddings
    scaling = config.rope_scaling
    if stage.rope_scaling is not None:
        scaling = parse_rope_scaling(dict(stage.rope_scaling), length)
    if stage.context > length:
        raise ConfigError(
            f"stage {stage.name!r}: context = {stage.context} exceeds the model's {length} positions",
            "set the stage's max_position_embeddings",
        )
    return replace(config, max_position_embeddings=length, rope_scaling=scaling)


def lengths(stage: Stage) -> Iterator[tuple[float, int]]:
    """Shares of a stage's tokens and the lengths of their documents: the whole context, or with buckets the
    middle of each."""
    if not stage.buckets:
        yield 1.0, stage.context
        return
    bounds = [0, *(bound for bound in stage.buckets if bound < stage.context), stage.context]
    for low, high in pairwise(bounds):
        yield 1 / (len(bounds) - 1), (low + high) // 2
