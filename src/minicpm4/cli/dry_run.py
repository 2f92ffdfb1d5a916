"""What ``minicpm4 train RECIPE --dry-run`` prints: shapes, stages, memory, operations, days, data.
It is about this machine, as a run would take it, unless GPUs are told of.

Neither torch nor data nor a tokenizer need be there; what is not is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4.cli.terminal import duration, sanitize, show, table
from minicpm4.config import ModelConfig
from minicpm4.errors import ConfigError, ModelNotFoundError, UnsupportedError
from minicpm4.machine import available_memory, human
from minicpm4.train import need_torch
from minicpm4.train.check import Given, check, start_of
from minicpm4.train.estimate import Cluster, StageEstimate, estimate
from minicpm4.train.footprint import Memory, parameters
from minicpm4.train.head_plan import heads_of
from minicpm4.train.prepare import packed
from minicpm4.train.recipe import Corpus, Recipe, Stage
from minicpm4.train.stages import passes

__all__ = ["explain"]

SMALL = 100_000_000  # weights that nobody shares out
PARTS = ("weights", "gradients", "moments", "gathered", "activations", "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a recipe is to run. ``name``: what memory is of; ``memory``: None where it is not known;
    ``said``: what is known of the machine, and from where; ``timed``: whether that tells of the time."""

    cluster: Cluster
    name: str
    memory: int | None
    said: str
    timed: bool = True


def explain(
    recipe: Recipe,
    run: Path,
    export: Path,
    told: Mapping[str, Any],
    *,
    mfu: float,
    threads: int | None = None,
) -> None:
    """Print all that can be told of a recipe before it runs in folder ``run`` and its model goes to
    ``export``. ``told``: fields of ``Cluster``, without ``gpus`` as many as ``assumed_gpus`` says; where
    it is empty it is about one process here, with so many ``threads``. Raises Minicpm4Error for what cannot
    run."""
    start = start_of(recipe)
    config = None if start.missing else start.config
    place = _told(recipe, config, told, mfu) if told else _here(recipe, mfu, threads)
    machine = place.cluster
    known = Given(start=start, run=run, processes=machine.gpus, export=export)
    check(recipe, known)  # as a run does, before it packs
    notes = check(recipe, replace(known, data=packed(recipe, run, start.text)))
    plans = [] if config is None else estimate(recipe, config, machine)
    if config is None:
        what = "the model to start from" if recipe.model.start else "the vocabulary"
        print(f"sizes cannot be told, for {what} is not here: {sanitize(str(start.missing))}\n")
    else:
        _shapes(recipe, config)
    _stages(recipe.stages, plans, place)
    print(f"\n{recipe.steps:,} steps, optimiser {recipe.optimiser.kind}, products in {recipe.precision}")
    if plans:
        _memory(recipe, plans, place)
    for note in notes:
        print(f"warning: {sanitize(note)}")
    if plans:
        _time(plans, place)
    _data(recipe)


def _told(recipe: Recipe, config: ModelConfig | None, told: Mapping[str, Any], mfu: float) -> Place:
    machine = Cluster(**{"gpus": assumed_gpus(recipe, config), **told}, mfu=mfu)
    size = int(machine.gpu_bytes)
    said = (
        f"assumed, not measured: {_gpus(machine)} of {human(size)} and {machine.peak / 1e12:,.0f} TFLOP/s, "
        f"of which {mfu:.0%} are reached"
    )
    name = "the GPU" if machine.gpus == 1 else f"each of {machine.gpus} GPUs"
    return Place(cluster=machine, name=name, memory=size, said=said)


def _here(recipe: Recipe, mfu: float, threads: int | None) -> Place:
    """This machine. Without torch its memory alone is known."""
    try:
        need_torch(threads)
        from minicpm4.train.peak import measured_here

        peak, memory = measured_here(recipe.precision)
    except UnsupportedError as error:
        why = sanitize(str(error))
        said = f"how fast this machine computes is not known: {why}; --gpus tells of others"
        machine = Cluster(gpus=1, mfu=mfu)
        return Place(cluster=machine, name="this machine", memory=available_memory(), said=said, timed=False)
    machine = Cluster(gpus=1, peak=peak.flops_per_s, mfu=mfu)
    said = (
        f"this machine, {sanitize(str(peak))}; assumed: {mfu:.0%} of it are reached; --gpus tells of others"
    )
    return Place(cluster=machine, name="this machine", memory=memory, said=said)


def assumed_gpus(recipe: Recipe, config: ModelConfig | None) -> int:
    """As many GPUs as can share out the steps: of 8, and of 1 for a small model."""
    count = 8
    if config is not None and parameters(config).total < SMALL:
        return 1
    while count > 1 and not all(_divides(stage, count) for stage in recipe.stages):
        count //= 2
    return count


def _divides(stage: Stage, processes: int) -> bool:
    try:
        passes(stage, processes)
    except ConfigError:
        return False
    return True


def _shapes(recipe: Recipe, config: ModelConfig) -> None:
    counts = parameters(config, heads_of(recipe.stages))
    print(
        f"{sanitize(recipe.name)}: hidden {config.hidden_size:,}, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} query and {config.num_key_value_heads} key/value heads of "
        f"{config.head_dim}, feed-forward {config.intermediate_size:,}, vocabulary {config.vocab_size:,}"
    )
    head = "the embeddings' own" if not counts.head else f"{counts.head:,}"
    extra = f", extra layer {counts.extra:,}" if counts.extra else ""
    print(
        f"parameters: {counts.total:,} (embeddings {counts.embeddings:,}, head {head}, "
        f"each layer {counts.layer:,}{extra})\n"
    )


def _stages(stages: Sequence[Stage], plans: Sequence[StageEstimate], place: Place) -> None:
    more = ("GFLOP/token", "GB a GPU" if place.cluster.gpus > 1 else "GB", "time") if plans else ()
    columns = ("stage", "steps", "tokens", "context", "rate", "attention", "special")
    shown = table(*columns, *more, left=1)
    for number, stage in enumerate(stages):
        row = [
            sanitize(stage.name),
            f"{stage.steps:,}",
            f"{stage.steps * stage.batch_tokens:,}",
            f"{stage.context:,}",
            f"{stage.rate:g}",
            stage.attention,
            _special(stage),
        ]
        if plans:
            one = plans[number]
            row += [
                f"{one.flops.model / 1e9:.3g}",
                f"{one.memory.total / 1e9:.3g}",
                duration(one.seconds * one.stage.steps) if place.timed else "–",
            ]
        shown.add_row(*row)
    show(shown)


def _special(stage: Stage) -> str:
    found = [f"{name} {spec}" for name, spec in stage.rounding.items()]
    found += [f"LoRA {stage.lora.rank}"] if stage.lora is not None else []
    found += ["FP8"] if stage.fp8 else []
    found += [f"{head.name.upper()} {head.factor(stage):g}" for head in heads_of([stage])]
    return sanitize(", ".join(found)) or "–"


def _memory(recipe: Recipe, plans: Sequence[StageEstimate], place: Place) -> None:
    largest = max(plans, key=lambda one: one.memory.total)
    saving = "only layers' inputs are kept" if recipe.checkpoint_activations else "all are kept"
    print(
        f"\nmemory of {place.name} in stage {sanitize(largest.stage.name)}, "
        f"{largest.pass_tokens:,} tokens a pass ({largest.passes} a step), activations: {saving}"
    )
    for name in PARTS:
        print(f"  {name:<12}{human(getattr(largest.memory, name)):>10}")
    size = "" if place.memory is None else f" of {human(place.memory)}"
    print(f"  {'total':<12}{human(largest.memory.total):>10}{size}")
    for one in plans:
        if place.memory is not None and one.memory.total > place.memory:
            print(f"warning: stage {sanitize(one.stage.name)} does not fit: {_remedy(recipe, one.memory)}")


def _remedy(recipe: Recipe, found: Memory) -> str:
    if not recipe.checkpoint_activations and found.activations > found.weights:
        return "checkpoint_activations = true keeps layers' inputs alone"
    return "smaller micro_tokens, or more GPUs (--gpus)"


def _time(plans: Sequence[StageEstimate], place: Place) -> None:
    machine = place.cluster
    tokens = sum(one.tokens for one in plans)
    total = sum(one.flops.model * one.tokens for one in plans)
    took = sum(one.seconds * one.stage.steps for one in plans)
    long = f", {duration(took)}" if place.timed else ""
    print(f"\n{tokens:,} tokens, {total:.3g} FLOPs of the model{long}")
    again = max(one.flops.again / one.flops.model for one in plans)
    if again:
        print(f"(layers computed again for the backward, up to {again:.0%} more, count in no share of peak)")
    if machine.gpus > 1:
        most = max(plans, key=lambda one: one.bytes_moved / one.seconds)
        speed = most.bytes_moved / most.seconds
        print(
            f"FSDP2 moves {human(int(most.bytes_moved))} to each GPU in a step of stage "
            f"{sanitize(most.stage.name)}: at that speed {human(int(speed))}/s of an NVLink's "
            f"{human(int(machine.link))}/s each way"
        )
    print(f"{place.said}; documents as long as the context, or in the middle of their bucket")


def _gpus(machine: Cluster) -> str:
    return f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"


def _data(recipe: Recipe) -> None:
    print()
    for name, corpus in recipe.corpora.items():
        print(sanitize(f"corpus {name}: {_found(corpus)}"))
    path = recipe.tokenizer.path
    if path:
        try:
            recipe.tokenizer.source()
            print(sanitize(f"tokenizer {path}: found"))
        except ModelNotFoundError as error:
            print(sanitize(f"tokenizer {path}: MISSING: {error}"))


def _found(corpus: Corpus) -> str:
    if corpus.made is not None:
        return f"{corpus.made.documents:,} documents to be made of {corpus.made.haystack}"
    if corpus.kind == "shards":
        return "found" if corpus.folder.exists() else f"MISSING: {corpus.paths[0]}"
    try:
        files = corpus.files()
    except (ConfigError, UnsupportedError) as error:
        return f"MISSING: {error}"
    return f"{len(files):,} files, {human(sum(file.stat().st_size for file in files))}"
