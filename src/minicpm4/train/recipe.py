"""Recipes: what to train, on what, in which stages, as TOML. Every key is known, every value checked.

A recipe needs no torch to be read, so that `minicpm4 train RECIPE --dry-run` explains one anywhere.
docs/training.md has the keys; ``recipes/`` has whole ones.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.config.strict import from_table, require, suggest
from minicpm4.errors import ConfigError, ModelNotFoundError
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.rounding import BlockSpec
from minicpm4.train.corpora import PLAIN, Corpus
from minicpm4.zoo import resolve

__all__ = [
    "Adapter",
    "Corpus",
    "Decay",
    "Keep",
    "Model",
    "Optimiser",
    "Recipe",
    "Stage",
    "Tokenizer",
    "read_recipe",
]

MAX_FILE = 1 << 20
MAX_STAGES = 32
DECAYS = ("none", "linear", "cosine", "exponential", "sqrt")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """``start``: a checkpoint to go on from (a folder, a .gguf file, a zoo name), else ``shape``: fields of
    config.json.

    ``mup_width``: the width at which the learning rate was found; 0: no muP scaling of rates and
    initialisation.
    """

    start: str = ""
    shape: Mapping[str, Any] = field(default_factory=dict)
    mup_width: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.start) != bool(self.shape),
            "[model] needs exactly one of start and shape",
            "start = a checkpoint, or [model.shape] with the fields of a config.json",
        )
        require(0 <= self.mup_width < 1 << 20, f"model.mup_width = {self.mup_width} is out of range")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """``path``: a checkpoint (a folder, a .gguf file, a zoo name), or a folder with a tokenizer alone; or
    train one of ``vocab_size`` tokens on ``corpora``. Neither: that of the model to start from."""

    path: str = ""
    vocab_size: int = 0
    corpora: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            not (self.path and self.vocab_size),
            "[tokenizer] has both path and vocab_size",
            "path = a folder with tokenizer.json, or vocab_size and corpora to train one",
        )
        require(
            bool(self.vocab_size) or not self.corpora,
            "tokenizer.corpora is given, but no vocab_size",
            "corpora are what a tokenizer is trained on: give vocab_size, or leave them out",
        )
        if self.vocab_size:
            require(
                300 <= self.vocab_size <= 1 << 20,
                f"tokenizer.vocab_size = {self.vocab_size} is out of range",
                "256 bytes and the special tokens need 300 at least",
            )
            require(bool(self.corpora), "tokenizer.corpora is empty", "name the corpora to train it on")

    def source(self) -> Path:
        """Where ``path`` leads. Raises ConfigError."""
        try:
            return resolve(str(Path(self.path).expanduser()))
        except ModelNotFoundError as error:
            raise ConfigError(
                f"tokenizer.path = {self.path!r} leads nowhere: {error.condition}", error.remedy
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimiser:
    """``kind``: adamw, or muon (of the layers' matrices; AdamW of the rest, at ``adamw_rate`` times the
    rate)."""

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    momentum: float = 0.95
    adamw_rate: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.kind in ("adamw", "muon"),
            f"optimiser kind {self.kind!r} is unknown",
            suggest(self.kind, ["adamw", "muon"]),
        )
        for name in ("beta1", "beta2", "momentum"):
            require(
                0 <= getattr(self, name) < 1,
                f"optimiser.{name} = {getattr(self, name)} is not from 0 to below 1",
            )
        for name in ("eps", "adamw_rate"):
            require(getattr(self, name) > 0, f"optimiser.{name} = {getattr(self, name)} is not positive")
        require(self.weight_decay >= 0, f"optimiser.weight_decay = {self.weight_decay} is negative")
        require(self.clip_norm >= 0, f"optimiser.clip_norm = {self.clip_norm} is negative", "0: no clipping")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decay:
    """The last ``steps`` of a stage, in which the rate falls to ``final`` times the stage's."""

    kind: str = "none"
    steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        require(self.kind in DECAYS, f"decay kind {self.kind!r} is unknown", suggest(self.kind, list(DECAYS)))
        require(
            self.steps >= 0 and (self.kind == "none") == (self.steps == 0),
            f"decay.steps = {self.steps} does not fit decay kind {self.kind!r}",
        )
        require(0 <= self.final <= 1, f"decay.final = {self.final} is not from 0 to 1")
        require(
            self.kind != "exponential" or self.final > 0,
            "an exponential decay never reaches decay.final = 0",
            "MiniCPM's is final = 0.1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """LoRA: pairs of ``rank`` beside the matrices that ``targets`` fit are trained, by AdamW, and nothing
    else; they are merged at the stage's end. ``alpha`` 0: as large as the rank."""

    rank: int = 16
    alpha: float = 0.0
    targets: tuple[str, ...] = ("self_attn.*", "mlp.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """``steps`` of one kind of training; stages follow one another on the same weights.

    ``batch_tokens``: tokens of an optimiser step, over all processes; ``micro_tokens``: of one forward pass
    (0: all); ``context``: the longest document piece. ``data``: corpora and their shares of tokens.
    ``buckets``: bounds in tokens of lengths that get equal shares (infllm_v2.md, Training). ``rate``:
    learning rate after ``warmup`` steps, which begin at ``warmup_from`` times it (-1: where the stage before
    ended). ``attention`` sparse: with the model's sparse_config.
    ``rounding``: weight formats by name pattern, as in {"mlp.*" = "ternary-g64"}: quantisation-aware
    training (BitCPM4). ``mtp``: lambda of multi-token prediction. ``rope_scaling``,
    ``max_position_embeddings``: of the model from here on. ``fresh_optimiser``: drop the moments of the
    stage before. ``lora``: train pairs of narrow matrices only.
    """

    name: str
    steps: int
    batch_tokens: int
    context: int
    rate: float
    data: Mapping[str, float]
    micro_tokens: int = 0
    buckets: tuple[int, ...] = ()
    warmup: int = 0
    warmup_from: float = -1.0
    decay: Decay = Decay()
    attention: str = "dense"
    rounding: Mapping[str, str] = field(default_factory=dict)
    fp8: bool = False
    mtp: float = 0.0
    z_loss: float = 0.0
    rope_scaling: Mapping[str, Any] | None = None
    max_position_embeddings: int = 0
    fresh_optimiser: bool = False
    lora: Adapter | None = None

    def __post_init__(self) -> None:
        where = f"stage {self.name!r}:"
        for name in ("steps", "batch_tokens", "context"):
            require(
                0 < getattr(self, name) < 1 << 40, f"{where} {name} = {getattr(self, name)} is out of range"
            )
        require(
            0 <= self.micro_tokens <= self.batch_tokens,
            f"{where} micro_tokens = {self.micro_tokens} exceeds batch_tokens",
        )
        require(self.rate > 0, f"{where} rate = {self.rate} is not positive")
        require(
            self.warmup >= 0 and self.warmup + self.decay.steps <= self.steps,
            f"{where} warmup = {self.warmup} and decay of {self.decay.steps} steps exceed "
            f"its {self.steps} steps",
        )
        require(
            self.attention in ("dense", "sparse"),
            f"{where} attention = {self.attention!r} is unknown",
            "use dense or sparse",
        )
        require(
            bool(self.data) and all(share > 0 for share in self.data.values()),
            f"{where} data needs corpora with shares above 0",
        )
        require(
            list(self.buckets) == sorted(set(self.buckets)), f"{where} buckets = {self.buckets} do not rise"
        )
        for name in ("mtp", "z_loss"):
            require(getattr(self, name) >= 0, f"{where} {name} = {getattr(self, name)} is negative")
        require(
            self.warmup_from == -1 or 0 <= self.warmup_from <= 1,
            f"{where} warmup_from = {self.warmup_from} is neither -1 nor from 0 to 1",
        )
        for text in self.rounding.values():
            parse_spec(text, where)
        require(
            self.lora is None or not (self.rounding or self.mtp),
            f"{where} lora goes neither with rounding nor with mtp",
            "train the pairs in a stage of their own: they are merged at its end",
        )

    @property
    def specs(self) -> dict[str, QuantSpec]:
        """``rounding`` with its formats read."""
        return {pattern: parse_spec(text, self.name) for pattern, text in self.rounding.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Checkpoints: one each ``every`` steps, and at the end of a stage; of them the ``last`` and the
    stages' ends stay."""

    every: int = 200
    last: int = 2

    def __post_init__(self) -> None:
        require(self.every > 0, f"checkpoints.every = {self.every} is not positive")
        require(
            self.last > 0, f"checkpoints.last = {self.last} is not positive", "a run needs one to go on from"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole run. ``validate``: steps between looks at held-out documents (0: never)."""

    name: str
    output: str
    model: Model
    tokenizer: Tokenizer = Tokenizer()
    corpora: Mapping[str, Corpus]
    stages: tuple[Stage, ...]
    optimiser: Optimiser = Optimiser()
    checkpoints: Keep = Keep()
    seed: int = 0
    precision: str = "float32"
    checkpoint_activations: bool = False
    validate: int = 0

    def __post_init__(self) -> None:
        require(
            0 < len(self.stages) <= MAX_STAGES,
            f"a recipe has 1 to {MAX_STAGES} stages, this one {len(self.stages)}",
        )
        names = [stage.name for stage in self.stages]
        require(len(set(names)) == len(names), f"two stages share a name: {', '.join(names)}")
        require(
            self.precision in PRECISIONS,
            f"precision = {self.precision!r} is unknown",
            suggest(self.precision, list(PRECISIONS)),
        )
        require(0 <= self.seed < 1 << 63, f"seed = {self.seed} is out of range")
        if not (self.tokenizer.path or self.tokenizer.vocab_size):
            require(
                bool(self.model.start),
                "[tokenizer] needs exactly one of path and vocab_size",
                "path = a folder with tokenizer.json, or vocab_size and corpora to train one",
            )
            object.__setattr__(self, "tokenizer", Tokenizer(path=self.model.start))
        known = list(self.corpora)
        asked = [(name, f"stage {stage.name!r}") for stage in self.stages for name in stage.data]
        asked += [(name, "tokenizer.corpora") for name in self.tokenizer.corpora]
        hidden = {name: corpus.made for name, corpus in self.corpora.items() if corpus.made}
        asked += [(made.haystack, f"corpus {name!r}, haystack,") for name, made in hidden.items()]
        for name, where in asked:
            require(
                name in self.corpora,
                f"{where} names the corpus {name!r}, which is not defined",
                suggest(name, known),
            )
        for name in (*self.tokenizer.corpora, *(made.haystack for made in hidden.values())):
            kind = self.corpora[name].kind
            require(
                kind in PLAIN or (kind == "shards" and name not in self.tokenizer.corpora),
                f"corpus {name!r} is of kind {kind!r}: no plain text",
                "the tokenizer and needles need text: one of " + ", ".join(PLAIN),
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)


def parse_spec(text: str, where: str) -> QuantSpec:
    """Read a weight format such as ternary-g64, int4-g32, ternary-b128x128. Raises ConfigError."""
    block = re.fullmatch(r"ternary-b(\d{1,6})x(\d{1,6})", text)
    if block is not None:
        return BlockSpec(kind="ternary", rows=int(block[1]), group_size=int(block[2]))
    kind, _, group = text.partition("-g")
    if kind not in ("ternary", "int4", "int8") or not group.isdecimal() or len(group) > 6:
        raise ConfigError(
            f"{where} weight format {text!r} is not known",
            "as in ternary-g64, ternary-b128x128, int4-g32, int8-g64",
        )
    return QuantSpec(kind=kind, group_size=int(group))  # type: ignore[arg-type]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigError: what is wrong, where, and what would be right."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise ConfigError(f"recipe {path} has {size:,} bytes", f"at most {MAX_FILE:,} are read")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from error
    return parse_recipe(table)


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """A recipe from its parsed table. Raises ConfigError."""
    return from_table(Recipe, table, "")


def model_config(recipe: Recipe, vocab_size: int, special: Mapping[str, int]) -> ModelConfig:
    """The shape of a new model: ``[model.shape]`` as a config.json, with the tokenizer's size and ids.

    Raises ConfigError."""
    raw = dict(recipe.model.shape)
    raw.setdefault("model_type", "minicpm")
    raw.setdefault("vocab_size", vocab_size)
    for name, token in special.items():
        raw.setdefault(name, token)
    return ModelConfig.from_hf(raw)
