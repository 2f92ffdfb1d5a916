"""From a model's name to its parts: files, configuration, memory plan, weights, text.

``inspect`` opens and plans without reading weights; ``Inspection.build`` loads and returns an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.model import read_generation_config
from minicpm4.engine import calibration
from minicpm4.engine.draft_model import ModelDrafter, some_logits
from minicpm4.engine.draft_plan import draft_demand, plan_draft_head, ranked_tokens
from minicpm4.engine.drafter import Drafter
from minicpm4.engine.drafters import check_vocabularies, draft_model, make_drafting
from minicpm4.engine.engine import Engine, EngineLimits
from minicpm4.engine.executors import Executor
from minicpm4.engine.grammar import Grammars
from minicpm4.engine.head_drafter import HeadDrafter
from minicpm4.engine.kept_pages import KeptPages
from minicpm4.engine.options import CHUNK, EngineOptions, resolve_sparse
from minicpm4.engine.pace import Pace
from minicpm4.engine.page_files import BUFFERS, PageFiles, check_folder
from minicpm4.engine.params import suggested_by_gguf, suggested_sampling
from minicpm4.engine.plan import Demand, MemoryPlan, describe, make_plan, memory_demand
from minicpm4.engine.runner import Runner
from minicpm4.engine.sparse_presets import with_sparse
from minicpm4.errors import CheckpointError, ConfigError, MemoryPlanError
from minicpm4.files import json_text
from minicpm4.formats import Checkpoint
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.registry import host_table, resolve, speed_key
from minicpm4.kernels.step import Ints
from minicpm4.machine import human
from minicpm4.model.head_files import HeadPlan
from minicpm4.model.loader import load_weights
from minicpm4.model.packed_cache import file_identity, weight_cache
from minicpm4.model.ranks import FewTokens, few_nbytes, few_tokens
from minicpm4.model.source import OpenModel, open_model
from minicpm4.model.stored_prefix import StoredPrefix
from minicpm4.model.weight_plan import WeightPlan, plan_weights
from minicpm4.model.weight_set import WeightSet
from minicpm4.model.weights import ModelWeights
from minicpm4.progress import Progress
from minicpm4.text.model_text import ModelText

logger = logging.getLogger("minicpm4")

__all__ = ["Inspection", "inspect", "plan_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A model opened and planned, its weights still in the file. ``sparse`` None: dense always.
    ``asked``: the caller's options, with what sparse = "auto" stands for; ``options``: those in use, in which
    what the caller left open is as calibrated; ``tuned`` says so."""

    source: OpenModel
    asked: EngineOptions
    options: EngineOptions
    sparse: SparseConfig | None
    ops: OpTable
    text: ModelText
    weights: WeightPlan
    demand: Demand
    plan: MemoryPlan
    tuned: str
    draft: Inspection | None
    """The model that drafts, where another does."""
    head: HeadPlan | None
    """The head that drafts, where one does."""
    ranked: Ints | None
    """The tokens that it guesses among; None: all."""
    sampling: Mapping[str, Any]
    """Settings of SamplingParams that the checkpoint suggests; empty where it suggests none."""

    @property
    def checkpoint(self) -> Checkpoint:
        return self.source.checkpoint

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    def build(self, progress: Progress | None = None) -> tuple[Engine, WeightSet, str]:
        """Load the weights; return an engine, the weights that it runs, and one line that says what was
        chosen."""
        plan, options = self.plan, self.options
        loaded, executor, runner = self._load(progress)
        drafter = self._drafter(loaded.weights, progress)
        limits = EngineLimits(
            vocab_size=self.config.vocab_size,
            context=plan.context,
            num_pages=plan.num_pages,
            page_size=plan.page_size,
            max_rows=options.max_rows,
            max_sequences=options.max_batch,
            prefix_cache=options.prefix_cache,
            attentions=attentions_of(self.sparse),
            num_layers=self.config.num_hidden_layers if self.ops.on_host else 0,
            stored=0 if self.source.stored is None else len(self.source.stored.ids),
        )
        ends = dict.fromkeys([*self.config.eos_token_ids, *self.text.end_ids])
        end_ids = [i for i in ends if i < self.config.vocab_size]
        engine = Engine(
            runner,
            self.host_ops,
            limits,
            text_streams=self.text.stream,
            end_ids=end_ids,
            grammars=Grammars(self.text, end_ids, self.config.vocab_size),
            sparse=self.sparse,
            seed=options.seed,
            pace=Pace() if options.fair else None,
            kept=self._kept(executor, runner.version),
            drafting=make_drafting(self.ops, options.draft, options.draft_tokens, drafter),
        )
        return engine, loaded, describe(self.ops, plan, self.sparse, f"{loaded.notes}; {self.tuned}")

    def _drafter(self, weights: ModelWeights, progress: Progress | None) -> Drafter | None:
        """What drafts with weights of its own, if anything does."""
        if self.draft is not None:
            return self.draft._model_drafter(self.config.vocab_size, self.ranked, progress)
        if self.head is None:
            return None
        return HeadDrafter(
            self.ops,
            self.head.read(weights, self.ops, self._few(self.ranked)),
            max_rows=self.options.max_rows,
            kv=self.options.kv,
            **self._pages,
        )

    def _model_drafter(self, vocab_size: int, ranked: Ints | None, progress: Progress | None) -> ModelDrafter:
        """This model as what drafts for one of ``vocab_size`` tokens; it guesses ``ranked`` alone."""
        loaded, _, runner = self._load(progress)
        few = self._few(ranked)
        return ModelDrafter(
            runner,
            self.host_ops,
            max_rows=self.options.max_rows,
            vocab_size=min(vocab_size, self.config.vocab_size),
            few=None if few is None else some_logits(self.ops, loaded.weights, few),
            **self._pages,
        )

    @property
    def _pages(self) -> dict[str, int]:
        plan = self.plan
        return {"num_pages": plan.num_pages, "page_size": plan.page_size, "context": plan.context}

    def _few(self, ranked: Ints | None) -> FewTokens | None:
        """The rows of this model's head for ``ranked``."""
        if ranked is None:
            return None
        return few_tokens(self.checkpoint, self.weights, self.config, self.ops, ranked)

    def _load(self, progress: Progress | None) -> tuple[WeightSet, Executor, Runner]:
        """The weights, and what runs them."""
        stored = self.source.stored
        loaded = load_planned(self.checkpoint, self.config, self.weights, self.ops, progress, stored)
        executor = self._executor()
        sizes = {"max_rows": self.options.max_rows, "max_sequences": self.options.max_batch}
        return loaded, executor, executor.runner(loaded.weights, self.sparse, **sizes)

    def needed(self, context: int) -> int:
        """Bytes that it takes as what drafts beside a model that has ``context`` tokens."""
        return self.demand.whole(self._within(context)).needed

    def drafting(self, context: int) -> Inspection:
        """It as what drafts beside a model that has ``context`` tokens."""
        return replace(self, plan=make_plan(replace(self.demand, context=self._within(context))))

    def _within(self, context: int) -> int:
        return min(context, self.config.max_position_embeddings)

    @property
    def origin(self) -> dict[str, Any]:
        """What tells its weights from others of the same name: values of JSON. Raises CheckpointError."""
        try:
            files = [{**file_identity(file), "path": file.name} for file in self.checkpoint.files]
        except OSError as error:
            raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
        stored = self.source.stored
        return {
            "files": files,
            "config": repr(self.config),
            **({} if stored is None else {"stored prefix": stored.digest}),
        }

    def check_room(self) -> None:
        """Raise MemoryPlanError unless there still is room for the plan: for one made a while ago."""
        room = self.ops.available_memory()
        if room is not None and room < self.plan.needed:
            raise MemoryPlanError(
                f"{self.source.name} needs {human(self.plan.needed)}, by now {human(room)} are available",
                "end what else takes memory, or ask again later",
            )

    @property
    def host_ops(self) -> OpTable:
        """The table for what is done to logits, which are the host's."""
        return self.ops if self.ops.on_host else host_table()

    def _executor(self) -> Executor:
        """The cache, for the device of ``ops``."""
        plan = self.plan
        return Executor(
            self.ops,
            self.config,
            context=plan.context,
            num_pages=plan.num_pages,
            page_size=plan.page_size,
            kv=self.options.kv,
            sparse=self.sparse,
        )

    def _kept(self, executor: Executor, version: int) -> KeptPages | None:
        """What is kept of pages in files, if they are to be. Raises ConfigError, CheckpointError."""
        place = self.options.cache_dir
        if place is None:
            return None
        key = self._pages_key(executor).encode()
        return KeptPages(PageFiles(Path(place), key, executor.pool, self.options.cache_size), version)

    def _pages_key(self, executor: Executor) -> str:
        """All that the numbers of a page hang on beside its tokens. Raises CheckpointError."""
        options, rotary = self.options, executor.rotary
        there = speed_key(options.backend, options.isa, options.activations) or {"kernels": self.ops.name}
        parts = {
            "version": 1,
            **self.origin,
            "sparse": repr(self.sparse),
            "weights": options.weights,
            "layout": self.ops.layout,
            "kernels": {name: there[name] for name in ("kernels", "build") if name in there},
            "kv": options.kv,
            "page_size": self.plan.page_size,
            "rotary": [rotary.inverse.tobytes().hex(), rotary.attention_factor],
        }
        return json_text(parts, sort_keys=True)


def attentions_of(sparse: SparseConfig | None) -> tuple[str, ...]:
    """What a request may ask for of an engine that attends like this."""
    return ("auto", "dense") if sparse is None else ("auto", "dense", "sparse")


def inspect(model: str | Path, options: EngineOptions) -> Inspection:
    """Find a model, check its files, choose kernels and attention, and plan its memory.

    Raises ModelNotFoundError, CheckpointError, ConfigError, TextError, UnsupportedError,
    MemoryPlanError.
    """
    source = open_model(model, options.ignore_fields)
    return plan_model(source, source.text(), options)


def plan_model(source: OpenModel, text: ModelText, asked: EngineOptions) -> Inspection:
    """``inspect`` for a model that is open. ``text`` was read before: what it takes is no part of the plan.

    Raises ConfigError, UnsupportedError, MemoryPlanError.
    """
    config = source.config
    if asked.cache_dir is not None:
        check_folder(Path(asked.cache_dir))
    weights = plan_weights(source.checkpoint, config, asked.weights)
    settings, chosen = with_sparse(asked, source.checkpoint, config, source.name)
    options, sparse, tuned = tune(settings, config, weights)
    ops = resolve(options.backend, threads=options.threads, isa=options.isa, activations=options.activations)
    weights = weights.on(ops)
    sizes: Any = {"context": options.context, "max_batch": options.max_batch, "max_rows": options.max_rows}
    draft = plan_draft(asked, text)
    head = plan_draft_head(asked, source, ops)
    ranked = ranked_tokens(asked, source if draft is None else draft.source, text, config.vocab_size)
    lent = (weights, config) if draft is None else (draft.weights, draft.config)  # whose head is cut
    few = 0 if ranked is None else few_nbytes(*lent, len(ranked))
    model = None if draft is None else draft.needed
    sizes |= {"draft": draft_demand(options, ops, config, head=head, model=model, few=few)}
    sizes |= {"memory": options.memory, "kept_pages": BUFFERS + 1 if options.cache_dir is not None else 0}
    sizes |= {"stored": 0 if source.stored is None else source.stored.nbytes}
    demand = memory_demand(ops, config, weights, sparse, options.kv, **sizes)
    plan = make_plan(demand)
    return Inspection(
        source=source,
        asked=settings,
        options=options,
        sparse=sparse,
        ops=ops,
        text=text,
        weights=weights,
        demand=demand,
        plan=plan,
        tuned=tuned + chosen,
        draft=None if draft is None else draft.drafting(plan.context),
        head=head,
        ranked=ranked,
        sampling=suggestion(source),
    )


def plan_draft(asked: EngineOptions, text: ModelText) -> Inspection | None:
    """The model that drafts for one of ``text``, opened and planned by itself; None where none does.

    Raises as ``inspect`` does, ConfigError for one of another vocabulary.
    """
    name = draft_model(asked.draft)
    if name is None:
        return None
    source = open_model(name)
    own = source.text()
    check_vocabularies(text.tokenizer, own.tokenizer, name)
    longest = source.config.max_position_embeddings
    context = None if asked.context is None else min(asked.context, longest)
    changes: dict[str, Any] = {"weights": "auto", "attention": "auto", "sparse": None, "ignore_fields": ()}
    changes |= {"draft": "off", "draft_vocab": None, "draft_ranks": None, "draft_tokens": None}
    changes |= {"cache_dir": None, "context": context}
    return plan_model(source, own, replace(asked, **changes))


def plan_memory(*given: Any, **sizes: Any) -> MemoryPlan:
    """Plan what ``memory_demand`` says of the same arguments. Raises as that does, MemoryPlanError."""
    return make_plan(memory_demand(*given, **sizes))


def load_planned(
    checkpoint: Checkpoint,
    config: ModelConfig,
    weights: WeightPlan,
    ops: OpTable,
    progress: Progress | None = None,
    stored: StoredPrefix | None = None,
) -> WeightSet:
    """Load weights for ``ops``, with what earlier starts have converted. Raises CheckpointError."""
    kept = weight_cache(checkpoint, weights.weights, ops.layout)
    return load_weights(checkpoint, config, weights, progress, ops, kept, stored)


def suggestion(source: OpenModel) -> dict[str, Any]:
    """Settings of SamplingParams that a checkpoint suggests; with a warning none where they are unusable."""
    try:
        if source.is_gguf:  # what lies beside the file is not its own
            return suggested_by_gguf(source.checkpoint.metadata())
        return suggested_sampling(read_generation_config(source.path))
    except ConfigError as error:
        logger.warning("the suggested sampling of %s is ignored: %s", source.name, error)
        return {}


def tune(
    options: EngineOptions, config: ModelConfig, weights: WeightPlan
) -> tuple[EngineOptions, SparseConfig | None, str]:
    """Fill in what the caller left open from the calibration of this machine, else from the defaults.

    Returns the options, the sparse attention, and some words on what was chosen. Raises ConfigError.
    """
    there = speed_key(options.backend, options.isa, options.activations)
    found = None
    if there is not None:
        found = calibration.load(calibration.key(there, config, weights, options.kv))
    if found is None:
        options = replace(options, chunk=options.chunk or CHUNK)
        hint = "not calibrated" if there is None else "not calibrated (see minicpm4 doctor --calibrate)"
        return options, resolve_sparse(options, config), f"chunk {options.chunk:,}, {hint}"
    tuned = replace(
        options,
        chunk=options.chunk or found.chunk or CHUNK,
        threads=options.threads or found.threads,
    )
    return tuned, resolve_sparse(tuned, config, found.crossover), f"chunk {tuned.chunk:,}, calibrated"
