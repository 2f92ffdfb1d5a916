"""``minicpm4 train``: a model from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from minicpm4.cli.steps import Progress, tell
from minicpm4.errors import CheckpointError


def command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.toml", help="What to train; see recipes/ and docs/training.md.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the run is kept (default: the recipe's output)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, show what it would take, and leave.")
    ] = False,
    until: Annotated[
        int | None, typer.Option(metavar="STEP", help="Stop after this many steps of all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="At the end, write the model there, as chat and generate load it (default: model in the "
            "run's folder).",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="Of a dry run: GPUs, one process each, in place of this machine (with another of these "
            "options: up to 8, for fewer than 100M weights 1)."
        ),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Of a dry run: memory of a GPU (of --gpus without it: 80)."),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(help="Of a dry run: bf16 products of a GPU, TFLOP/s (of --gpus without it: 989)."),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Of a dry run: the share of the peak that is reached (default: 0.4)."),
    ] = None,
) -> None:
    """Train a model as a recipe says, stage by stage.

    A run that was interrupted (Ctrl-C, SIGTERM, kill -9, a power cut) goes on from its last checkpoint when
    the same command is given again. Its folder has metrics.jsonl, loss.svg, the checkpoints, each of which
    has a model/ folder that `minicpm4 generate` loads, and at the end model/. Several processes:
    torchrun --nproc-per-node N -m minicpm4 train RECIPE.toml
    """
    from minicpm4.config.strict import check_optional_integer, require
    from minicpm4.machine import MAX_THREADS
    from minicpm4.train import need_torch
    from minicpm4.train.recipe import read_recipe

    check_optional_integer("--threads", threads, 1, MAX_THREADS)
    require(until is None or until > 0, f"--until {until} is no step", "steps are counted from 1")
    supposed = {"--gpus": gpus, "--gpu-memory": gpu_memory, "--peak-tflops": peak_tflops, "--mfu": mfu}
    for option, value in supposed.items():
        require(dry_run or value is None, f"{option} is about a dry run", "add --dry-run, or leave it out")
    made = read_recipe(recipe)
    run = output or Path(made.output)
    target = export or run / "model"
    if dry_run:
        from minicpm4.cli.dry_run import explain

        told = {
            "gpus": gpus,
            "gpu_bytes": None if gpu_memory is None else gpu_memory * 1e9,
            "peak": None if peak_tflops is None else peak_tflops * 1e12,
        }
        told = {name: value for name, value in told.items() if value is not None}
        explain(made, run, target, told, mfu=0.4 if mfu is None else mfu, threads=threads)
        return
    need_torch(threads)
    _train(made, run, until, target)


def _train(recipe: Any, run: Path, until: int | None, export_to: Path) -> None:
    from minicpm4.train.check import Given, check, start_of
    from minicpm4.train.checkpoint import alone
    from minicpm4.train.world import World

    world = World.join()
    start = start_of(recipe)
    check(recipe, given := Given(start=start, run=run, processes=world.size, export=export_to))
    if start.config is None and start.missing is not None:
        raise start.missing  # a dry run only says so
    with alone(run) if world.rank == 0 else nullcontext():
        stopped_by = _train_alone(recipe, given, until, world)
    code = 128 + stopped_by if stopped_by else 0
    world.leave(code)
    if code:
        raise typer.Exit(code)


def _train_alone(recipe: Any, given: Any, until: int | None, world: Any) -> int:
    """The signal that ended it early, 0: none did."""
    from minicpm4.train.check import Start, check
    from minicpm4.train.loop import TrainingRun
    from minicpm4.train.peak import peak_of
    from minicpm4.train.prepare import prepare
    from minicpm4.train.recipe import model_config
    from minicpm4.train.session import TrainingSession
    from minicpm4.train.sources import sources

    run, quiet = given.run, world.rank > 0
    say = _silent if quiet else tell
    if not quiet:
        prepared = prepare(recipe, run, say)
    world.wait()
    if quiet:
        prepared = prepare(recipe, run)
    config = given.start.config
    if not recipe.model.start:
        config = model_config(recipe, prepared.vocab_size, prepared.special)
    start = Start(config=config, tokens=prepared.vocab_size)
    for note in check(recipe, replace(given, start=start, data=prepared.data)):
        say(f"note: {note}")
    session = TrainingSession(recipe, config, world)
    peak = None if quiet else peak_of(run, session.model.device, recipe.precision)
    say(str(peak))
    with Progress(recipe.steps, off=quiet) as progress:
        runner = TrainingRun(
            recipe,
            run,
            session,
            sources(recipe, prepared.data, world.rank, world.size),
            tokenizer=prepared.tokenizer,
            data=prepared.hashes(),
            report=lambda line: progress(_told(line)),
            peak=peak.flops_per_s if peak else None,
        )
        progress.start(runner.step)
        done = runner.run(until)
    say(f"{done.step:,} of {recipe.steps:,} steps done; {run / 'loss.svg'} shows the loss")
    if not done.finished:
        say("the same command goes on from there")
        return done.stopped_by
    _export(session.model, given, prepared.tokenizer, world)
    say(f"the model is in {given.export}: minicpm4 chat --model {given.export}")
    return 0


def _export(model: Any, given: Any, tokenizer: Path, world: Any) -> None:
    """By all processes. The run's own model is written anew; what is in other folders stays."""
    from minicpm4.files import writing_folder
    from minicpm4.train.export import export

    given.check_export()  # once more: days may have passed
    folder = given.export if given.anew else given.export.resolve()
    first = world.rank == 0
    if first:
        folder.parent.mkdir(parents=True, exist_ok=True)
    writing = writing_folder(folder, durable=True, fresh=not given.anew) if first else nullcontext(folder)
    try:
        with writing as target:
            export(model, target, tokenizer=tokenizer)
    except FileExistsError as error:
        raise CheckpointError(
            f"{folder} was not there when this began", "move it away and do the same again: steps are kept"
        ) from error


def _told(line: Mapping[str, Any]) -> dict[str, Any]:
    """A step's figures as the bar shows them."""
    text = f"{line['stage']}: loss {_figure(line['loss'])}, {line['tokens_per_s']:,.0f} tokens/s"
    if "mfu" in line:
        text += f" ({line['mfu']:.1%} of peak)"
    held = f", validation {_figure(line['validation'])}" if "validation" in line else ""
    return {**line, "text": text, "more": held, "marked": "validation" in line}


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _silent(text: str) -> None:
    """Of several processes one speaks."""
