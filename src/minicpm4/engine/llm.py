"""The facade: a model in memory that answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, overload

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.engine.api import EngineAPI, Limits, Load, Text
from minicpm4.engine.collect import Collector, piece_of
from minicpm4.engine.driver import Driver, ThreadedDriver
from minicpm4.engine.load import Inspection, inspect
from minicpm4.engine.mailbox import Mailbox
from minicpm4.engine.options import CACHE_SIZE, EngineOptions
from minicpm4.engine.outputs import Piece, RequestOutput
from minicpm4.engine.params import FALLBACK, SamplingParams, nearest_or_sampling
from minicpm4.engine.plan import MemoryPlan
from minicpm4.engine.prompts import Messages, Params, Prompt, Prompts, one_each, split_chats, split_prompts
from minicpm4.engine.scoring import Scores
from minicpm4.engine.texts import Texts
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.formats import Checkpoint
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.machine import total_cores
from minicpm4.model.source import open_model
from minicpm4.model.weight_set import WeightSet
from minicpm4.progress import Progress, check_progress

logger = logging.getLogger("minicpm4")


@nearest_or_sampling
class LLM(Texts, Scores):
    """A model, loaded and planned, ready to answer. Any number of threads may use it: what they ask at the
    same time is answered together. (AsyncLLM is for asyncio.)

    ``model``: a name of ``minicpm4 models``, a folder, a .gguf file, or a hub repository. ``weights``: "auto"
    (as stored), "bf16", "int8", "int4", "ternary", or with a group, "int4-g64". ``attention``: "auto" (sparse
    from ``dense_len`` tokens on where the checkpoint has a sparse_config or ``sparse`` is given), "dense", or
    "sparse" (at every token unless ``sparse`` sets dense_len). ``sparse``: a SparseConfig, a mapping of
    single settings over the checkpoint's, or "auto": what was measured for this model (``minicpm4 eval
    sparse``). ``backend``: "auto", "cpu", "gpu" or "ref"; ``threads`` and ``isa`` are for the CPU.
    ``context``: tokens of prompt and answer together; None: the model's own, or what fits in memory. Rotary
    scalings that depend on the length (dynamic, longrope) are fixed for this length. ``kv``: "bf16", "int8"
    or "float32", the precision of cached keys and values. ``activations``: "auto" (at least 16 bits where
    they meet weights in 8 bits or fewer), or "int8", which is faster on long prompts and loses more
    (docs/guide.md has figures). ``max_batch``: sequences at a time; ``chunk``: prompt tokens a step (None: as
    calibrated, else 512); ``memory``: bytes that weights, cache and buffers may take together (None: what is
    available); ``prefix_cache``: keep what was read for later prompts that begin alike; ``cache_dir``: a
    folder for what was read, from which it is found again after a restart too (on the CPU; prompts are in
    it), ``cache_size``: bytes that it may take; what was used longest ago is removed first. ``fair``: prompts
    are read beside running answers in pieces so small that those keep half their speed, unless many short
    ones wait (for servers: measured times cut the work, so two runs cut it differently). ``seed``: of
    requests without one, None: random. ``draft``: what guesses tokens, several of which are then checked in
    one pass, which changes no answer where a row's bits are its own (else nearly tied tokens may differ):
    "off", "suffix" (from the text so far), "suffix:shared" (from ended requests, too), "model:NAME" (a
    smaller model of the same vocabulary), "eagle:PATH" (a head), "mtp", or "auto" (the suffix where it
    changes no bit, else nothing); ``draft_tokens``: so many each time (None: as many as gain time, by
    what was measured, which may be none); ``draft_vocab``: a head or model guesses among so many tokens
    ("25%", or a number), the most frequent ones of ``draft_ranks``, a file of `minicpm4 spec rank`.
    ``ignore_fields``: fields of config.json, or keys of GGUF metadata, that are read as null, though they
    may change what the model computes. ``threads``, too, are as calibrated where not given (``minicpm4
    doctor``). ``progress(done, total)`` is called while layers are loaded.

    Raises ModelNotFoundError, CheckpointError, ConfigError, UnsupportedError, MemoryPlanError,
    TextError.
    """

    _driver_type: ClassVar[type[Driver]] = Driver
    _inspection: Inspection | None
    _weights: WeightSet | None
    _suggestion: Mapping[str, Any]

    def __init__(
        self,
        model: str | Path,
        *,
        weights: str = "auto",
        attention: str = "auto",
        backend: str = "auto",
        context: int | None = None,
        threads: int | None = None,
        sparse: SparseConfig | Mapping[str, Any] | str | None = None,
        kv: KVFormat = "bf16",
        activations: str = "auto",
        max_batch: int = 8,
        chunk: int | None = None,
        memory: int | None = None,
        prefix_cache: bool = True,
        fair: bool = False,
        cache_dir: str | Path | None = None,
        cache_size: int = CACHE_SIZE,
        isa: str | None = None,
        seed: int | None = None,
        draft: str = "auto",
        draft_tokens: int | None = None,
        draft_vocab: str | int | None = None,
        draft_ranks: str | Path | None = None,
        ignore_fields: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        options = EngineOptions(
            weights=weights,
            attention=attention,
            backend=backend,
            context=context,
            threads=threads,
            sparse=sparse,
            kv=kv,
            activations=activations,
            max_batch=max_batch,
            chunk=chunk,
            memory=memory,
            prefix_cache=prefix_cache,
            fair=fair,
            cache_dir=cache_dir,
            cache_size=cache_size,
            isa=isa,
            seed=seed,
            draft=draft,
            draft_tokens=draft_tokens,
            draft_vocab=draft_vocab,
            draft_ranks=draft_ranks,
            ignore_fields=tuple(ignore_fields),
        )
        self._start(inspect(model, options), progress)

    @classmethod
    def from_inspection(cls, found: Inspection, progress: Progress | None = None) -> Self:
        """The model that ``engine.load.inspect`` has opened and planned; nothing is read a second time.

        Raises as the constructor does.
        """
        made = cls.__new__(cls)
        made._start(found, progress)
        return made

    @classmethod
    def over(cls, engine: EngineAPI, text: Text, *, name: str, description: str = "") -> Self:
        """An LLM over an engine that is there: a scripted one (``minicpm4.testing``), or another runtime.

        It has no ``config``, ``plan`` and ``sparse``: to ask for them raises UnsupportedError.
        """
        made = cls.__new__(cls)
        made._open(engine, text, name, description)
        return made

    def _start(self, found: Inspection, progress: Progress | None) -> None:
        check_progress(progress)
        engine, weights, description = found.build(progress)
        self._open(engine, found.text, found.source.name, description)
        self._inspection, self._weights, self._suggestion = found, weights, found.sampling
        logger.info("%s: %s", self.name, self.description)
        trained = self.config.max_position_embeddings
        if self.plan.context > trained:
            logger.warning(
                "context %d is beyond the model's %d: expect worse text past it", self.plan.context, trained
            )
        if (asked := found.asked.threads or 0) > total_cores():
            logger.warning("threads = %d, this machine has %d cores: fewer are faster", asked, total_cores())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.description}>"

    def refill(self, model: str | Path | Checkpoint) -> None:
        """Put other weights of the same model in the place of these, without a second copy of it: a name,
        folder or file as for the constructor, or a Checkpoint. From then on this is the LLM that loading
        ``model`` with the same settings would give, down to the bits; name and text stay.

        Requests under way go on with the new weights, from the tokens that they have. Raises as the
        constructor does, and CheckpointError where shapes or formats are others: then nothing has changed.
        After an error halfway (a damaged file) this LLM refuses to answer until it is refilled.
        """
        weights = self._weights
        if weights is None:
            raise UnsupportedError(f"the engine of {self.name} is not ours: its weights cannot be replaced")
        if isinstance(model, str | Path):
            source = open_model(model, self._found.asked.ignore_fields)
            source.refuse_stored("an engine that runs")
            checkpoint, config = source.checkpoint, source.config
            self.driver.call(lambda engine: weights.refill(checkpoint, config))
        elif isinstance(getattr(model, "tensors", None), Mapping):
            self.driver.call(lambda engine: weights.refill(model))
        else:
            raise ConfigError(f"a {type(model).__name__} is no model", "give a name, a path or a Checkpoint")

    def _open(self, engine: EngineAPI, text: Text, name: str, description: str) -> None:
        self.name, self.description, self._text = name, description, text
        self._inspection, self._weights, self._suggestion = None, None, {}
        self.driver = self._driver_type(engine)

    @property
    def _found(self) -> Inspection:
        if self._inspection is None:
            raise UnsupportedError(f"the engine of {self.name} is not ours: it has no configuration or plan")
        return self._inspection

    @property
    def config(self) -> ModelConfig:
        return self._found.config

    @property
    def origin(self) -> dict[str, Any]:
        """What tells the weights that were loaded from others of the same name. Raises CheckpointError."""
        return self._found.origin

    @property
    def plan(self) -> MemoryPlan:
        return self._found.plan

    @property
    def sparse(self) -> SparseConfig | None:
        """The sparse attention in use; None: dense always."""
        return self._found.sparse

    @property
    def limits(self) -> Limits:
        """What one request and the engine take at most: context, vocabulary, sequences at a time."""
        return self.driver.limits

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """How tokens are drawn where nobody says (SamplingParams): what the checkpoint suggests, else
        temperature 0.7 with top_p 0.7; the latter, with a warning, too where a suggestion cannot be used."""
        return dict(self._suggestion or FALLBACK)

    @property
    def load(self) -> Load:
        """What the engine has in hand just now. Raises RequestError when closed."""
        return self.driver.engine.load

    @property
    def engine(self) -> EngineAPI:
        """The engine beneath, for callers with a loop of their own, while nobody uses this LLM. Raises
        RequestError when closed."""
        return self.driver.call(lambda engine: engine)

    @overload
    def generate(
        self, prompts: Prompt, params: SamplingParams | None = None, *, progress: Progress | None = None
    ) -> RequestOutput: ...

    @overload
    def generate(
        self, prompts: Prompts, params: Params = None, *, progress: Progress | None = None
    ) -> list[RequestOutput]: ...

    def generate(
        self, prompts: Prompt | Prompts, params: Params = None, *, progress: Progress | None = None
    ) -> RequestOutput | list[RequestOutput]:
        """Answer one prompt (text or token ids) with a RequestOutput, or a list of them with a list.

        Prompts of a list are batched; ``params`` is one for all or one for each. ``progress(done,
        total)`` counts prompt tokens. Raises RequestError, TextError.
        """
        each, is_batch = split_prompts(prompts)
        outputs = self._complete([self.prompt_ids(prompt) for prompt in each], params, progress)
        return outputs if is_batch else outputs[0]

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Messages],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> list[RequestOutput]: ...

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation through the checkpoint's chat template; of the answer, ``tool_calls`` and
        ``reasoning`` are taken apart too. A list of conversations is answered with a list, batched;
        ``params`` is one for all or one for each.

        ``messages``: tables with role and content. Control tokens spelled in them stay text. Raises
        RequestError, TextError.
        """
        each, is_batch = split_chats(messages)
        ids = [self.chat_ids(one, tools=tools, enable_thinking=enable_thinking) for one in each]
        wanted = one_each(params, len(each))
        answers = self._complete(ids, wanted, progress)
        outputs = [self.with_replies(a, tools, p) for a, p in zip(answers, wanted, strict=True)]
        return outputs if is_batch else outputs[0]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, progress: Progress | None = None
    ) -> Iterator[Piece]:
        """Answer one prompt piece by piece; ``str(piece)`` is its text, the last has the metrics.

        Closing the iterator early ends the request. Several streams may be open at once. Raises
        RequestError, TextError, at the call.
        """
        return self._start_stream(self.prompt_ids(prompt), params, progress)

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """``chat``, piece by piece as ``stream``."""
        ids = self.chat_ids(messages, tools=tools, enable_thinking=enable_thinking)
        return self._start_stream(ids, params, progress)

    @property
    def _host_ops(self) -> OpTable:
        return RefOps() if self._inspection is None else self._found.host_ops

    def close(self) -> None:
        """Give the memory back, and end what is under way. The LLM cannot be used afterwards."""
        self.driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _complete(
        self, batch: list[list[int]], params: Params, progress: Progress | None
    ) -> list[RequestOutput]:
        check_progress(progress)
        collector, box = Collector(progress), Mailbox()
        try:
            for ids, wanted in self.checked(batch, params):
                collector.expect(self.driver.add(box, ids, wanted), ids, wanted)
            while not collector.complete:
                collector.take(self.driver.receive(box))
        finally:
            self.driver.drop(box)
        return collector.outputs()

    def checked(self, batch: list[list[int]], params: Params) -> list[tuple[list[int], SamplingParams]]:
        """Each prompt with the parameters that hold for it, all of which can be served. Raises RequestError,
        TextError."""
        each = [one.suggested(self._suggestion) for one in one_each(params, len(batch))]
        pairs = list(zip(batch, each, strict=True))
        for ids, wanted in pairs:
            self.driver.check(ids, wanted)
        return pairs

    def _start_stream(
        self, ids: list[int], params: SamplingParams | None, progress: Progress | None
    ) -> Iterator[Piece]:
        check_progress(progress)
        ((ids, wanted),) = self.checked([ids], params)
        return self._pieces(ids, wanted, progress)

    def _pieces(self, ids: list[int], params: SamplingParams, progress: Progress | None) -> Iterator[Piece]:
        box = Mailbox()
        try:
            self.driver.add(box, ids, params)
            last = False
            while not last:
                event = self.driver.receive(box)
                last = event.last
                if (piece := piece_of(event, progress)) is not None:
                    yield piece
        finally:
            self.driver.drop(box)


class ThreadedLLM(LLM):
    """An LLM whose engine has a thread of its own, for servers and AsyncLLM; it must be closed."""

    _driver_type = ThreadedDriver
