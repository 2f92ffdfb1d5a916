"""Recipes: what to train, on what, in which stages, as TOML. Every key is known, every value checked.

A recipe needs no torch to be read, so that `minicpm4 train RECIPE --dry-run` explains one anywhere.
docs/training.md has the keys; ``recipes/`` has whole ones.
"""

from __future__ import annotations

import math
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.config.fields import KEYS, READ
from minicpm4.config.strict import from_table, require, shown, suggest
from minicpm4.data.corpora import PLAIN, Corpus
from minicpm4.errors import ConfigError, ModelNotFoundError
from minicpm4.files import read_text
from minicpm4.formats.kinds import rounded_kinds
from minicpm4.formats.quant import BlockSpec, QuantSpec
from minicpm4.train.settings import MAX_RATE, Adapter, Decay, OptimConfig, check_factor
from minicpm4.zoo import resolve

__all__ = [
    "Corpus",
    "Keep",
    "Model",
    "Recipe",
    "Stage",
    "TokenizerSettings",
    "read_recipe",
]

MAX_FILE = 1 << 20
MAX_STAGES = 32
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """``start``: a checkpoint to go on from (a folder, a .gguf file, a zoo name), of whose configuration
    ``ignore_fields`` are taken for null; else ``shape``: fields of config.json.

    ``mup_width``: the width at which the learning rate was found; 0: no muP scaling of rates and
    initialisation.
    """

    start: str = ""
    ignore_fields: tuple[str, ...] = ()
    shape: Mapping[str, Any] = field(default_factory=dict)
    mup_width: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.start) != bool(self.shape),
            "[model] needs exactly one of start and shape",
            "start = a checkpoint, or [model.shape] with the fields of a config.json",
        )
        for key in self.shape:  # a key that is not read would change nothing, in silence
            require(key in KEYS, f"[model.shape] has an unknown key {shown(key)}", suggest(key, list(KEYS)))
        require(0 <= self.mup_width < 1 << 20, f"model.mup_width = {self.mup_width} is out of range")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
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
        """Where ``path`` leads. Raises ModelNotFoundError."""
        try:
            return resolve(str(Path(self.path)))
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"tokenizer.path = {self.path!r} leads nowhere: {error.condition}", error.remedy
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """``steps`` of one kind of training; stages follow one another on the same weights.

    ``batch_tokens``: tokens of an optimiser step, over all processes; ``micro_tokens``: of one forward pass
    (0: all); ``context``: the longest document piece. ``data``: corpora and their shares of tokens.
    ``buckets``: bounds in tokens of lengths that get equal shares (docs/training.md). ``rate``:
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
    decay: Decay = field(default_factory=Decay)
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
        require(bool(self.name.strip()), "a stage has an empty name", "name it after what it does")
        where = f"stage {self.name!r}:"
        for name in ("steps", "batch_tokens", "context"):
            require(
                0 < getattr(self, name) < 1 << 40, f"{where} {name} = {getattr(self, name)} is out of range"
            )
        require(self.context > 1, f"{where} context = 1: one token has no next one to learn")
        require(
            0 <= self.micro_tokens <= self.batch_tokens,
            f"{where} micro_tokens = {self.micro_tokens} exceeds batch_tokens",
        )
        require(0 < self.rate < math.inf, f"{where} rate = {self.rate} is not positive")
        require(self.rate <= MAX_RATE, f"{where} rate = {self.rate} is above {MAX_RATE:g}")
        require(
            self.warmup >= 0 and self.warmup + self.decay.steps <= self.steps,
            f"{where} warmup = {self.warmup} and decay of {self.decay.steps} steps exceed "
            f"its {self.steps} steps",
        )
        require(
            self.attention in ("dense", "sparse"),
            f"{where} attention = {shown(self.attention)} is unknown",
            "use dense or sparse",
        )
        require(
            bool(self.data) and all(share > 0 for share in self.data.values()),
            f"{where} data needs corpora with shares above 0",
        )
        rising = list(self.buckets) == sorted(set(self.buckets)) and min(self.buckets, default=1) > 0
        require(rising, f"{where} buckets = {list(self.buckets)} do not rise from above 0")
        for name in ("mtp", "z_loss"):
            require(getattr(self, name) >= 0, f"{where} {name} = {getattr(self, name)} is negative")
            check_factor(f"{where} {name}", getattr(self, name))
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
    tokenizer: TokenizerSettings = TokenizerSettings()
    corpora: Mapping[str, Corpus]
    stages: tuple[Stage, ...]
    optimiser: OptimConfig = field(default_factory=OptimConfig)
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
        require(bool(self.output), "output is empty", "name the folder that the run is kept in")
        for name in self.corpora:
            plain = re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}", name)
            require(plain is not None, f"corpus {name!r} cannot be a folder's name", "use letters and digits")
        names = [stage.name for stage in self.stages]
        require(len(set(names)) == len(names), f"two stages share a name: {', '.join(names)}")
        require(
            self.precision in PRECISIONS,
            f"precision = {shown(self.precision)} is unknown",
            suggest(self.precision, list(PRECISIONS)),
        )
        for stage in self.stages:
            decay = stage.rate * self.optimiser.weight_decay
            require(
                decay <= 1,
                f"stage {stage.name!r}: its rate times optimiser.weight_decay is {decay:g}: above 1 a step "
                "turns the sign of every weight",
                "0.1 is a usual weight_decay",
            )
        require(0 <= self.seed < 1 << 63, f"seed = {self.seed} is out of range")
        require(self.validate >= 0, f"validate = {self.validate} is negative", "0: never")
        if not (self.tokenizer.path or self.tokenizer.vocab_size):
            require(
                bool(self.model.start),
                "[tokenizer] needs exactly one of path and vocab_size",
                "path = a folder with tokenizer.json, or vocab_size and corpora to train one",
            )
            object.__setattr__(self, "tokenizer", TokenizerSettings(path=self.model.start))
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

    @property
    def ends(self) -> list[int]:
        """Of each stage the number of steps after which it is done."""
        return list(accumulate(stage.steps for stage in self.stages))

    def at(self, step: int) -> tuple[int, int]:
        """The number of the stage that step ``step`` (from 0, of all) is in, and which of its steps it is;
        past the end: the last."""
        number = min(bisect_right(self.ends, step), len(self.stages) - 1)
        last = self.stages[number].steps - 1
        return number, min(step - (self.ends[number] - last - 1), last)


def parse_spec(text: str, where: str) -> QuantSpec:
    """Read a weight format such as ternary-g64, int4-g32, ternary-b128x128. Raises ConfigError."""
    rows = rounded_kinds()
    block = re.fullmatch(r"([a-z0-9]+)-b(\d{1,6})x(\d{1,6})", text)
    if block is not None and block[1] in rows and rows[block[1]].blocks:
        return BlockSpec(kind=block[1], rows=int(block[2]), group_size=int(block[3]))
    kind, _, group = text.partition("-g")
    if kind not in rows or not group.isdecimal() or len(group) > 6:
        known = [f"{name}-g{row.groups[0]}" for name, row in rows.items()]
        known += [f"{name}-b128x128" for name, row in rows.items() if row.blocks]
        raise ConfigError(f"{where} weight format {text!r} is not known", "as in " + ", ".join(known))
    return QuantSpec(kind=kind, group_size=int(group))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigError: what is wrong, where, and what would be right."""
    text = read_text(path, MAX_FILE, ConfigError)
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from error
    except ValueError as error:  # Python's own bound
        raise ConfigError(
            f"recipe {path} holds a number of too many digits", "no setting has 4,300"
        ) from error
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
    typed = ("scale_emb", "scale_depth", "dim_model_base", "attention_bias", "mlp_bias")
    kind = raw["model_type"]
    found = ModelConfig.from_hf({k: v for k, v in raw.items() if k not in typed or kind in [*READ[k]]})
    for name in typed:
        require(
            raw.get(name, getattr(found, name)) == getattr(found, name),
            f"[model.shape] {name} = {raw.get(name)} means nothing to model type {found.model_type!r}",
            "leave it out, or use a model type that has it",
        )
    return found
