"""Models that a server offers, loaded or not: what is known of each, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4.config import SparseConfig
from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.engine.load import Inspection, attentions_of, inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.params import FALLBACK
from minicpm4.errors import ConfigError, Minicpm4Error
from minicpm4.machine import default_threads
from minicpm4.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A model to be served. ``names``: what clients call it, the first is its own; ``nbytes``: what its plan
    takes of memory (0 where nobody planned: another's engine); ``load(progress)`` loads it, on any thread,
    and may raise anything."""

    names: tuple[str, ...]
    context: int
    max_sequences: int
    vocab_size: int
    description: str
    sampling: Mapping[str, Any]
    chat_template: str | None
    load: Callable[[Progress | None], AsyncLLM]
    nbytes: int = 0
    sparse: SparseConfig | None = None
    """How it attends; None: to everything, always."""
    again: bool = True
    """Whether it may be loaded more than once; else it is another's to close."""

    @property
    def attention(self) -> dict[str, Any]:
        """What requests get, and what they may ask for: nothing where there is no choice."""
        if self.sparse is None:
            return {"default": "dense", "options": []}
        always = self.sparse == self.sparse.at_once
        return {"default": "sparse" if always else "auto", "options": list(attentions_of(self.sparse))}

    @classmethod
    def loaded(cls, llm: AsyncLLM, names: tuple[str, ...] = ()) -> Offer:
        """One that is loaded, and stays its owner's to close."""
        own = llm.llm
        return cls(
            names=names or (own.name,),
            context=own.limits.context,
            max_sequences=own.limits.max_sequences,
            vocab_size=own.limits.vocab_size,
            description=own.description,
            sampling=own.sampling_defaults,
            chat_template=own.chat_template,
            load=lambda progress: llm,
            sparse=own.sparse if "sparse" in own.limits.attentions else None,
            again=False,
        )

    @classmethod
    def planned(cls, found: Inspection, names: tuple[str, ...] = ()) -> Offer:
        """One that was opened and planned."""
        plan = found.plan
        return cls(
            names=names or (found.source.name,),
            context=plan.context,
            max_sequences=found.options.max_batch,
            vocab_size=found.config.vocab_size,
            description=f"not loaded; context {plan.context:,} tokens; {plan.told()}",
            sampling=dict(found.sampling or FALLBACK),
            chat_template=found.text.chat_template,
            load=lambda progress: _load(found, progress),
            nbytes=plan.needed,
            sparse=found.sparse,
        )


def offers_of(
    models: Sequence[str | Path], options: EngineOptions, names: Sequence[str] = ()
) -> tuple[list[Offer], int | None]:
    """Open and plan models, each as if it were alone; return them with the bytes that all may take together,
    None where the system does not tell. ``names``: of one model all that it is called; of several one each.

    Raises ConfigError, and as ``inspect`` does: a model that could never be loaded is refused here.
    """
    several = len(models) > 1
    if several and names and len(names) != len(models):
        raise ConfigError(
            f"--name was given {len(names)} times for {len(models)} models", "give one for each, or none"
        )
    called: list[tuple[str, ...]] = [tuple(names)]
    if several:
        called = [(name,) for name in names or map(str, models)]
    twice = [one for one in called if called.count(one) > 1]
    if twice:
        raise ConfigError(f"two models are called {twice[0][0]!r}", "give each a --name")
    found = [_inspect(model, options, several) for model in models]
    budget = found[0].plan.available  # that of the first: the texts of the others take some of it since
    return [Offer.planned(one, name) for one, name in zip(found, called, strict=True)], budget


def shared(
    models: Sequence[str | Path], options: EngineOptions, names: Sequence[str], count: int
) -> EngineOptions:
    """The options of each of ``count`` processes that serve models on this machine: its memory, or what
    ``options`` allow of it, evenly, and its cores; ``threads`` of the options are each process's own.
    Raises as ``offers_of`` does, for one of them."""
    _, budget = offers_of(models, options, names)
    threads = options.threads or max(1, default_threads() // count)
    each = replace(options, threads=threads, memory=None if budget is None else budget // count)
    offers_of(models, each, names)
    return each


def _inspect(model: str | Path, options: EngineOptions, several: bool) -> Inspection:
    try:
        return inspect(model, options)
    except Minicpm4Error as error:
        if several:  # which of them?
            error.args = (f"{model}: {error}",)
        raise


def _load(found: Inspection, progress: Progress | None) -> AsyncLLM:
    found.check_room()
    return AsyncLLM.from_inspection(found, progress)
