"""Settings of an engine, and what they mean for a given model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import ACTIVATIONS, ATTENTIONS, KV_FORMATS, MAX_CONTEXT, KVFormat
from minicpm4.config.sparse import AUTO
from minicpm4.config.strict import check_choice, check_integer, check_optional_integer, require, shown
from minicpm4.engine.drafters import check_draft, check_draft_vocab
from minicpm4.engine.sequence import MAX_DRAFTS
from minicpm4.errors import ConfigError
from minicpm4.machine import MAX_THREADS
from minicpm4.model.weight_plan import check_weights_choice

CHUNK = 512  # tokens of a prefill step, where neither caller nor calibration says otherwise
CACHE_SIZE = 10_000_000_000  # bytes of kept pages
MAX_MEMORY = 1 << 50  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Everything about an engine but its model; LLM documents each. Raises ConfigError."""

    weights: str = "auto"
    attention: str = "auto"
    backend: str = "auto"
    context: int | None = None
    threads: int | None = None
    sparse: SparseConfig | Mapping[str, Any] | str | None = None
    kv: KVFormat = "bf16"
    activations: str = "auto"
    max_batch: int = 8
    chunk: int | None = None
    memory: int | None = None
    prefix_cache: bool = True
    fair: bool = False
    isa: str | None = None
    cache_dir: str | Path | None = None
    cache_size: int = CACHE_SIZE
    seed: int | None = None
    draft: str = "auto"
    draft_tokens: int | None = None
    draft_vocab: str | int | None = None
    draft_ranks: str | Path | None = None
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_weights_choice(self.weights)
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("kv", self.kv, KV_FORMATS)
        check_choice("activations", self.activations, ACTIVATIONS)
        require(isinstance(self.backend, str), f"backend = {shown(self.backend)} is not a name")
        check_optional_integer("context", self.context, 1, MAX_CONTEXT)
        check_optional_integer("threads", self.threads, 1, MAX_THREADS)
        check_integer("max_batch", self.max_batch, 1, 4096)
        check_optional_integer("chunk", self.chunk, 1, 1 << 16)
        check_optional_integer("memory", self.memory, 1, MAX_MEMORY)
        check_draft(self.draft)
        check_optional_integer("draft_tokens", self.draft_tokens, 1, MAX_DRAFTS)
        require(
            self.draft_tokens is None or self.draft != "off",
            f"draft_tokens = {self.draft_tokens} is about drafts, and draft is 'off'",
            "choose a drafter, or leave it out",
        )
        check_draft_vocab(self.draft, self.draft_vocab, self.draft_ranks)
        check_integer("cache_size", self.cache_size, 1, MAX_MEMORY)
        require(
            self.cache_dir is None or (isinstance(self.cache_dir, str | Path) and str(self.cache_dir) != ""),
            f"cache_dir = {shown(self.cache_dir)} is not a folder's name",
        )
        require(
            self.cache_dir is None or self.prefix_cache,
            "cache_dir keeps the pages of the prefix cache, which prefix_cache = False switches off",
            "leave one of them out",
        )
        for name in ("prefix_cache", "fair"):
            value = getattr(self, name)
            require(type(value) is bool, f"{name} = {shown(value)} is not true or false")
        require(self.seed is None or type(self.seed) is int, f"seed = {shown(self.seed)} is not an integer")
        named = isinstance(self.ignore_fields, tuple | list) and all(
            type(f) is str for f in self.ignore_fields
        )
        require(named, f"ignore_fields = {shown(self.ignore_fields)} is not a list of names")
        require(
            not isinstance(self.sparse, str) or self.sparse == AUTO,
            f"sparse = {shown(self.sparse)} is no setting",
            'give "auto", a SparseConfig or a mapping',
        )
        if self.attention == "dense" and self.sparse is not None:
            raise ConfigError(
                "attention = 'dense' and settings of sparse attention exclude one another",
                "leave one of them out",
            )

    @property
    def max_rows(self) -> int:
        """Tokens that one step runs at most."""
        return max(self.chunk or CHUNK, self.max_batch)


def resolve_sparse(
    options: EngineOptions, config: ModelConfig, crossover: Callable[[SparseConfig], int | None] | None = None
) -> SparseConfig | None:
    """The sparse attention that an engine uses; None: dense always. Raises ConfigError.

    A SparseConfig replaces the checkpoint's, a mapping changes single settings of it. With
    attention = "sparse" no query is dense unless the caller set ``dense_len``. With attention = "auto",
    ``crossover(settings)`` may put the length from which sparse attention is used higher than the model
    does, never lower, and not where the caller set it. The result says its ``dense_len``.
    """
    if options.attention == "dense":
        return None
    given = options.sparse
    if given is None and config.sparse_config is None and options.attention == "auto":
        return None
    base = config.sparse_config or SparseConfig()
    if isinstance(given, SparseConfig):
        sparse, chosen = given, given.dense_len is not None
    else:
        known = dataclasses.asdict(base)
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"sparse is a {type(given).__name__}", "give a SparseConfig or a mapping")
        sparse = SparseConfig.from_mapping(known | dict(given or {}), "sparse")
        chosen = (given or {}).get("dense_len") is not None
    if options.attention == "sparse":
        return sparse if chosen else sparse.at_once
    pays = crossover(sparse) if crossover is not None and not chosen else None
    since = sparse.dense_below if pays is None else max(pays, sparse.dense_below)
    sparse = dataclasses.replace(sparse, dense_len=since)
    # A context that never reaches dense_len needs no compressed keys.
    longest = options.context or config.max_position_embeddings
    return sparse if longest >= sparse.dense_below else None
