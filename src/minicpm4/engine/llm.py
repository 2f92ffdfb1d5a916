"""The facade: a model in memory that answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.model import read_generation_config
from minicpm4.engine.collect import Collector
from minicpm4.engine.engine import Engine
from minicpm4.engine.load import Inspection, Progress, encode_chat, inspect
from minicpm4.engine.memory import available_memory
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.outputs import Event, Failed, Piece, Prefilled, RequestOutput
from minicpm4.engine.params import SamplingParams, suggested_sampling
from minicpm4.engine.plan import MemoryPlan, check_score
from minicpm4.errors import ConfigError, RequestError
from minicpm4.kernels.pages import KVFormat
from minicpm4.text.tokenizer import Tokenizer

logger = logging.getLogger("minicpm4")

Prompt = str | Sequence[int]
Prompts = list[str] | list[list[int]] | list[Prompt]
Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model, loaded and planned, ready to answer. Not for use from several threads at once.

    ``model``: a name of ``minicpm4 models``, a folder, a .gguf file, or a hub repository.
    ``weights``: "auto" (as stored), "bf16", "int8", "int4" or "ternary".
    ``attention``: "auto" (sparse from ``dense_len`` tokens on where the checkpoint has a sparse_config
    or ``sparse`` is given), "dense", or "sparse" (at every token unless ``sparse`` sets dense_len).
    ``sparse``: a SparseConfig, or a mapping of single settings over the checkpoint's.
    ``backend``: "auto", "cpu", "gpu" or "ref"; ``threads`` and ``isa`` are for the CPU.
    ``context``: tokens of prompt and answer together; None: the model's own, or what fits in memory.
    Rotary scalings that depend on the length (dynamic, longrope) are fixed for this length.
    ``kv``: "bf16", "int8" or "float32", the precision of cached keys and values.
    ``activations``: "auto" (at least 16 bits where they meet weights in 8 bits or fewer), or "int8", which is
    faster on long prompts and loses more (docs/guide.md has figures).
    ``max_batch``: sequences at a time; ``chunk``: prompt tokens a step (None: as calibrated, else 512);
    ``prefix_cache``: keep what was read for later prompts that begin alike. ``seed``: of requests without
    one, None: random. ``threads``, too, are as calibrated where not given (``minicpm4 doctor``).
    ``progress(done, total)`` is called while layers are loaded.

    Raises ModelNotFoundError, CheckpointError, ConfigError, UnsupportedError, MemoryPlanError,
    TextError.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        weights: str = "auto",
        attention: str = "auto",
        backend: str = "auto",
        context: int | None = None,
        threads: int | None = None,
        sparse: SparseConfig | Mapping[str, Any] | None = None,
        kv: KVFormat = "bf16",
        activations: str = "auto",
        max_batch: int = 8,
        chunk: int | None = None,
        prefix_cache: bool = True,
        isa: str | None = None,
        seed: int | None = None,
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
            prefix_cache=prefix_cache,
            isa=isa,
            seed=seed,
        )
        self.name = str(model)
        self._found: Inspection = inspect(model, options)
        self._text = self._found.text
        engine, self.description = self._found.build(progress)
        self._engine: Engine | None = engine
        self._mail: dict[int, deque[Event]] = {}
        logger.info("%s: %s", self.name, self.description)
        trained = self.config.max_position_embeddings
        if self.plan.context > trained:
            logger.warning(
                "context %d is beyond the model's %d: expect worse text past it", self.plan.context, trained
            )

    @property
    def config(self) -> ModelConfig:
        return self._found.config

    @property
    def plan(self) -> MemoryPlan:
        return self._found.plan

    @property
    def sparse(self) -> SparseConfig | None:
        """The sparse attention in use; None: dense always."""
        return self._found.sparse

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Settings of SamplingParams that the checkpoint's generation_config.json suggests; the commands
        start from them. Empty without one, and, with a warning, where it cannot be used."""
        if self._found.checkpoint.metadata():  # a GGUF file: what lies beside it is not its own
            return {}
        try:
            return suggested_sampling(read_generation_config(self._found.path))
        except ConfigError as error:
            logger.warning("generation_config.json is ignored: %s", error)
            return {}

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TextError when the checkpoint has none."""
        return self._text.tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._text.has_chat_template

    @property
    def engine(self) -> Engine:
        """The engine beneath, for callers with a loop of their own. Raises RequestError when closed."""
        if self._engine is None:
            raise RequestError("this LLM is closed", "make a new one")
        return self._engine

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
        if _is_batch(prompts):
            return self._complete([self._ids(prompt) for prompt in prompts], params, progress)
        return self._complete([self._ids(prompts)], params, progress)[0]

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        progress: Progress | None = None,
    ) -> RequestOutput:
        """Answer a conversation through the checkpoint's chat template.

        ``messages``: tables with role and content. Control tokens spelled in them stay text. Raises
        RequestError, TextError.
        """
        ids = self._chat_ids(messages, tools, enable_thinking)
        return self._complete([ids], params, progress)[0]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, progress: Progress | None = None
    ) -> Iterator[Piece]:
        """Answer one prompt piece by piece; ``str(piece)`` is its text, the last has the metrics.

        Closing the iterator early ends the request. Several streams may be open at once. Raises
        RequestError, TextError, at the call.
        """
        return self._start_stream(self._ids(prompt), params, progress)

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
        return self._start_stream(self._chat_ids(messages, tools, enable_thinking), params, progress)

    def logits(self, ids: Sequence[int], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Return the logits (n, vocab) of n token ids in one full pass. Raises RequestError,
        MemoryPlanError."""
        ids = _plain(ids)
        check_score(len(ids), self.config.vocab_size, available_memory())
        result = np.empty((len(ids), self.config.vocab_size), np.float32)

        def keep(start: int, logits: NDArray[np.float32]) -> None:
            result[start : start + len(logits)] = logits

        self.engine.score(ids, keep, progress)
        return result

    def nll(self, ids: Sequence[int], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Return -log p of each next token, (n - 1,), in nats. Holds 64 rows of logits at a time.
        Raises RequestError."""
        ids = _plain(ids)
        if len(ids) < 2:
            raise RequestError(f"{len(ids)} tokens have no next token to score", "pass two or more")
        result, ops = np.empty(len(ids) - 1, np.float32), self._found.host_ops

        def keep(start: int, logits: NDArray[np.float32]) -> None:
            following = ids[start + 1 : start + 1 + len(logits)]
            rows = logits[: len(following)]
            if len(rows):
                chosen = rows[np.arange(len(rows)), following]
                result[start : start + len(rows)] = ops.log_sum_exp(rows) - chosen

        self.engine.score(ids, keep, progress)
        return result

    def close(self) -> None:
        """Give the memory back. The LLM cannot be used afterwards."""
        self._engine = None
        self._mail.clear()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty", "give some text")
            return self._text.encode(prompt)
        return _plain(prompt)

    def _chat_ids(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
    ) -> list[int]:
        text = self._text
        return encode_chat(text.tokenizer, text.template, messages, tools=tools, enable_thinking=thinking)

    def _complete(
        self,
        batch: list[list[int]],
        params: Params,
        progress: Progress | None,
    ) -> list[RequestOutput]:
        each = _one_each(params, len(batch))
        for ids, wanted in zip(batch, each, strict=True):
            self.engine.check(ids, wanted)
        collector = Collector(progress)
        numbers: list[int] = []
        try:
            for ids, wanted in zip(batch, each, strict=True):
                numbers.append(self._add(ids, wanted))
                collector.expect(numbers[-1], ids, wanted)
            while not collector.complete:
                for number in numbers:
                    for event in self._receive(number):
                        collector.take(event)
                if not collector.complete:
                    self._pump(collector.unfinished())
        finally:
            self._drop(numbers)
        return [collector.output(number) for number in numbers]

    def _start_stream(
        self, ids: list[int], params: SamplingParams | None, progress: Progress | None
    ) -> Iterator[Piece]:
        wanted = _one_each(params, 1)[0]
        self.engine.check(ids, wanted)
        return self._pieces(ids, wanted, progress)

    def _pieces(self, ids: list[int], params: SamplingParams, progress: Progress | None) -> Iterator[Piece]:
        number = self._add(ids, params)
        try:
            while True:
                for event in self._receive(number):
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Prefilled):
                        if progress is not None:
                            progress(event.done, event.total)
                        continue
                    yield event.piece
                    if event.piece.metrics is not None:
                        return
                self._pump([number])
        finally:
            self._drop([number])

    def _add(self, ids: list[int], params: SamplingParams) -> int:
        number = self.engine.add_request(ids, params)
        self._mail[number] = deque()
        return number

    def _receive(self, number: int) -> Iterator[Event]:
        mail = self._mail.get(number, deque())
        while mail:
            yield mail.popleft()

    def _pump(self, wanted: Sequence[int]) -> None:
        """Run a step and deliver its events, to other open streams too."""
        if not all(self.engine.is_active(number) for number in wanted):
            raise RequestError("the request was dropped: an interrupt reset the engine", "ask again")
        for event in self.engine.step():
            if event.request_id in self._mail:
                self._mail[event.request_id].append(event)

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._mail.pop(number, None)
            with suppress(RequestError):  # closed meanwhile
                self.engine.abort(number)


def _is_batch(prompts: Any) -> bool:
    """Whether ``prompts`` holds prompts, not token ids."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence | np.ndarray):
        return False
    return len(prompts) > 0 and isinstance(prompts[0], str | Sequence | np.ndarray)


def _plain(ids: Any) -> list[int]:
    """Token ids as a list of Python integers; values are checked by the engine."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise RequestError(f"token ids come as {ids.ndim}-d {ids.dtype}", "pass a 1-d array of integers")
        return list(map(int, ids))
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise RequestError(f"a {type(ids).__name__} was given, not token ids", "pass a list of integers")
    return [int(i) if isinstance(i, np.integer) else i for i in ids]


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    each = [params or SamplingParams()] * count if not isinstance(params, Sequence) else list(params)
    if len(each) != count:
        raise RequestError(
            f"{count} prompts came with {len(each)} params", "pass one for all or one for each"
        )
    for one in each:
        if not isinstance(one, SamplingParams):
            raise RequestError(f"params is a {type(one).__name__}", "pass SamplingParams(...)")
    return each
