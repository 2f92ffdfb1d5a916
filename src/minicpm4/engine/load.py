"""From a model's name to its parts: files, configuration, memory plan, weights, text.

``inspect`` opens and plans without reading weights; ``Inspection.build`` loads and returns an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from minicpm4 import zoo
from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.engine import calibration
from minicpm4.engine.engine import Engine, EngineLimits
from minicpm4.engine.memory import available_memory, resident_memory
from minicpm4.engine.options import CHUNK, PAGE_SIZE, EngineOptions, resolve_sparse
from minicpm4.engine.plan import Demand, MemoryPlan, describe, make_plan
from minicpm4.engine.request import NoText, TextStream
from minicpm4.engine.runner import Runner, StepRunner
from minicpm4.errors import TextError
from minicpm4.formats import Checkpoint, check_tensors, open_checkpoint
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.registry import host_table, machine, resolve
from minicpm4.model.cache import KVPool
from minicpm4.model.loader import load_weights, plan_weights, read_config
from minicpm4.model.packed_cache import weight_cache
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weights import ModelWeights
from minicpm4.text.chat import encode_chat
from minicpm4.text.load import load_tokenizer
from minicpm4.text.stream import StreamDecoder
from minicpm4.text.template import ChatTemplate, chat_template_from_gguf, load_chat_template
from minicpm4.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""``progress(done, total)``: layers while loading, tokens while reading a prompt."""

__all__ = ["Inspection", "ModelText", "Progress", "encode_chat", "inspect"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A model opened and planned, its weights still in the file. ``sparse`` None: dense always.
    ``options`` are those in use: what the caller left open is as calibrated; ``tuned`` says so."""

    path: Path
    checkpoint: Checkpoint
    config: ModelConfig
    options: EngineOptions
    sparse: SparseConfig | None
    ops: OpTable
    text: ModelText
    plan: MemoryPlan
    tuned: str

    def build(self, progress: Progress | None = None) -> tuple[Engine, str]:
        """Load the weights; return an engine, and one line that says what was chosen."""
        weights, ops = self.options.weights, self.ops
        loaded = load_weights(
            self.checkpoint,
            self.config,
            weights,
            progress,
            prepare=ops.prepare,
            cache=weight_cache(self.checkpoint, weights, ops.layout),
        )
        plan, options = self.plan, self.options
        runner = self._runner(loaded.weights)
        limits = EngineLimits(
            vocab_size=self.config.vocab_size,
            context=plan.context,
            num_pages=plan.num_pages,
            page_size=plan.page_size,
            max_rows=options.max_rows,
            max_sequences=options.max_batch,
            prefix_cache=options.prefix_cache,
        )
        ends = dict.fromkeys([*self.config.eos_token_ids, *self.text.end_ids])
        engine = Engine(
            runner,
            self.host_ops,
            limits,
            text_streams=self.text.stream,
            end_ids=[i for i in ends if i < self.config.vocab_size],
            sparse=self.sparse,
            seed=options.seed,
        )
        return engine, describe(self.ops, plan, self.sparse, f"{loaded.notes}; {self.tuned}")

    @property
    def host_ops(self) -> OpTable:
        """The table for what is done to logits, which are the host's."""
        return host_table() if self.ops.name == "gpu" else self.ops

    def _runner(self, weights: ModelWeights) -> StepRunner:
        """A runner with its cache, for the device of ``ops``."""
        plan, options = self.plan, self.options
        rotary = RotaryTable(self.config, plan.context)
        pages: Any = {
            "num_pages": plan.num_pages,
            "page_size": plan.page_size,
            "kv": options.kv,
            "sparse": self.sparse,
        }
        sizes: Any = {
            "max_rows": options.max_rows,
            "max_sequences": options.max_batch,
            "max_pages": -(-plan.context // plan.page_size),
        }
        if self.ops.name != "gpu":
            return Runner(self.ops, weights, KVPool(self.config, **pages), rotary, self.sparse, **sizes)
        from minicpm4.engine.gpu_runner import GpuRunner
        from minicpm4.model.gpu_cache import GpuPool

        ops: Any = self.ops
        pool = GpuPool(self.config, ops.device, **pages)
        return GpuRunner(ops, weights, pool, rotary, self.sparse, **sizes)


def inspect(model: str | Path, options: EngineOptions) -> Inspection:
    """Find a model, check its files, choose kernels and attention, and plan its memory.

    Raises ModelNotFoundError, CheckpointError, ConfigError, TextError, UnsupportedError,
    MemoryPlanError.
    """
    path = Path(zoo.resolve(str(model)))
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint)
    check_tensors(checkpoint, config)
    options, sparse, tuned = tune(options, checkpoint, config)
    ops = resolve(options.backend, threads=options.threads, isa=options.isa, activations=options.activations)
    text = ModelText(checkpoint)  # before the plan: what it takes is in the process already
    demand = Demand(
        config=config,
        sparse=sparse,
        kv=options.kv,
        page_size=sparse.block_size if sparse else PAGE_SIZE,
        weights=plan_weights(checkpoint, config, options.weights),
        context=options.context,
        max_batch=options.max_batch,
        max_rows=options.max_rows,
        process=resident_memory(),
        available=_available(ops),
    )
    return Inspection(
        path=path,
        checkpoint=checkpoint,
        config=config,
        options=options,
        sparse=sparse,
        ops=ops,
        text=text,
        plan=make_plan(demand),
        tuned=tuned,
    )


def _available(ops: OpTable) -> int | None:
    """Bytes left where ``ops`` computes."""
    here: Any = getattr(ops, "available_memory", available_memory)
    found: int | None = here()
    return available_memory() if found is None else found


def tune(
    options: EngineOptions, checkpoint: Checkpoint, config: ModelConfig
) -> tuple[EngineOptions, SparseConfig | None, str]:
    """Fill in what the caller left open from the calibration of this machine, else from the defaults.

    Returns the options, the sparse attention, and some words on what was chosen. Raises ConfigError.
    """
    there = machine(options.backend, options.isa, options.activations)
    found = None
    if there is not None:
        found = calibration.load(calibration.key(there, checkpoint, config, options.weights, options.kv))
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


class ModelText:
    """Tokenizer and chat template of a checkpoint. Either may be missing: token ids work without."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises TextError for a tokenizer or template that is there but cannot be read."""
        self._path = checkpoint.path
        metadata = checkpoint.metadata()
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        if metadata:
            if "tokenizer.ggml.tokens" in metadata:
                from minicpm4.text.gguf_vocab import tokenizer_from_gguf

                self._tokenizer = tokenizer_from_gguf(metadata)
                if metadata.get("tokenizer.chat_template"):
                    self._template = chat_template_from_gguf(metadata, self._tokenizer)
            return
        folder = self._path if self._path.is_dir() else self._path.parent
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            self._tokenizer = load_tokenizer(folder)
            self._template = _optional(partial(load_chat_template, folder))

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TextError when the checkpoint has none."""
        if self._tokenizer is None:
            raise TextError(
                f"{self._path} holds no tokenizer, so it reads and writes token ids only",
                "add tokenizer.json or tokenizer.model, or pass token ids",
            )
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate:
        """Raises TextError when the checkpoint has none."""
        if self._template is None:
            raise TextError(
                f"{self._path} has no chat template", "use generate with a raw prompt, or add the template"
            )
        return self._template

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._tokenizer.eos_token_ids if self._tokenizer is not None else ()

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt: BOS where the checkpoint wants it, never an end token after it."""
        before = self.tokenizer.prefix_ids
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ids if ids[: len(before)] == before else [*before, *ids]

    def stream(self, stop: Sequence[str], stop_token_ids: Collection[int]) -> TextStream:
        """A decoder for the tokens that follow a prompt. Raises TextError: stop strings need text."""
        if self._tokenizer is None and not stop:
            return NoText(stop_token_ids)
        return StreamDecoder(self.tokenizer, stop, stop_token_ids, continuation=True)


def _optional(load: Callable[[], ChatTemplate]) -> ChatTemplate | None:
    # A template that is there but broken is an error; one that is not there is not.
    try:
        return load()
    except TextError as error:
        if "has no chat template" in error.condition:
            return None
        raise
