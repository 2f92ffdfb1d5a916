"""Chooses an op table once, at load; explains the choice; lists what else there is when it refuses."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from minicpm4.config.choices import ACTIVATIONS
from minicpm4.config.strict import check_choice, check_optional_integer
from minicpm4.errors import UnsupportedError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.machine import MAX_THREADS, cpu_name, cpu_quota, default_threads, physical_cores

try:
    from minicpm4.kernels import cpu
except ImportError as error:  # built without a compiler, or for another Python
    cpu = None  # type: ignore[assignment]
    _missing: ImportError | None = error
else:
    _missing = None

logger = logging.getLogger("minicpm4")

BACKENDS = ("auto", "cpu", "gpu", "ref")
ISA_VARIABLE = "MINICPM4_ISA"
NVIDIA = ("/dev/nvidia0", "/dev/dxg")  # what a system with such a GPU has; the second is WSL's


def resolve(
    backend: str = "auto",
    *,
    threads: int | None = None,
    isa: str | None = None,
    activations: str = "auto",
) -> OpTable:
    """Return the op table of ``backend``: "auto", "cpu", "gpu" or "ref".

    ``threads`` (default: the physical cores that this process may use) and ``isa`` (default: the
    environment's MINICPM4_ISA, else the highest level of this machine) are for "cpu"; tables with
    the same values share their threads. ``activations`` "int8": products of weights in 8 bits or fewer may
    round activations to 8 bits, where "auto" keeps 16 at least. Raises ConfigError for an unknown name or a
    thread count out of range, UnsupportedError for what this machine or installation lacks.
    """
    check_choice("activations", activations, ACTIVATIONS)
    check_choice("backend", backend, BACKENDS)
    if backend == "ref":
        RefOps().check_supports(activations=activations)
        return RefOps()
    if backend == "gpu" or (backend == "auto" and isa is None and activations == "auto" and _gpu_present()):
        return _gpu_table(activations)
    return _cpu_table(threads, isa, activations)


def host_table() -> OpTable:
    """A table for arrays in the host's memory: the CPU's, or NumPy's where there is no extension."""
    if cpu is None:
        _say_missing()
        return RefOps()
    return _cpu_table(None, None, "auto")


def exact_isa(*, floats: bool = False) -> str | None:
    """The fastest level here that multiplies in float32 throughout; None without the extension. ``floats``:
    with weights that are held as floats, which AVX2 multiplies so, too (those in groups in 16 bits)."""
    if cpu is None:
        return None
    levels = ("avx512", "avx2", "scalar") if floats else ("avx512", "scalar")
    return next(level for level in levels if level in cpu.isa_levels())


def exact_table() -> OpTable:
    """A table for the host's arrays whose products are in float32."""
    if cpu is None:
        return host_table()
    return _cpu_table(None, exact_isa(), "auto")


@lru_cache(maxsize=1)
def _say_missing() -> None:
    """Once a process."""
    logger.warning("the C++ extension is missing (%s): NumPy computes instead, which is very slow", _missing)


def speed_key(
    backend: str = "auto", isa: str | None = None, activations: str = "auto"
) -> dict[str, str | int] | None:
    """What measured speeds of a backend depend on: processor, kernels, cores, and the very build.

    None where nothing is worth measuring (ref), or no kernels are there.
    """
    if backend not in ("auto", "cpu") or cpu is None or (backend == "auto" and _gpu_present()):
        return None
    level, _ = _choose_isa(isa)
    built = Path(cpu.BUILD).stat()
    return {
        "cpu": cpu_name(),
        "kernels": f"cpu {level}" + ("" if activations == "auto" else f", activations {activations}"),
        "cores": default_threads(),
        "build": f"{built.st_size}-{built.st_mtime_ns}",
    }


def explain() -> list[str]:
    """Lines for ``doctor``: which table "auto" takes here, with what, and why."""
    if cpu is None:
        return [f"cpu: extension missing ({_missing})", _explain_gpu(), RefOps.description]
    lines = []
    try:
        level, why = _choose_isa(None)
        lines.append(f"cpu: {level} kernels ({why}; this machine runs {', '.join(cpu.isa_levels())})")
    except UnsupportedError as error:
        lines.append(f"cpu: {error}")
    quota = cpu_quota()
    limit = "no CPU quota" if quota is None else f"CPU quota {quota:g}"
    lines.append(f"threads: {default_threads()} ({physical_cores()} usable physical cores, {limit})")
    present = [name for name, found in cpu.cpu_features().items() if found]
    lines.append("cpu features: " + (", ".join(present) or "none that kernels use"))
    return [*lines, _explain_gpu(), RefOps.description]


def _explain_gpu() -> str:
    if not any(Path(place).exists() for place in NVIDIA):
        return "gpu: no NVIDIA device here"
    try:
        return _gpu_table("auto").description
    except UnsupportedError as error:
        return f"gpu: {error}"


@lru_cache(maxsize=1)
def _gpu_present() -> bool:
    """Whether "auto" takes the GPU: a device, and torch and Triton for it. Nothing is imported where the
    system has no NVIDIA device, as importing torch takes seconds."""
    if not any(Path(place).exists() for place in NVIDIA) or _gpu_missing() is not None:
        return False
    from minicpm4.kernels.gpu.device import is_usable

    return is_usable()


def _gpu_missing() -> str | None:
    """The packages that the GPU's table needs and that are not installed."""
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    return " and ".join(missing) or None


def _gpu_table(activations: str) -> OpTable:
    missing = _gpu_missing()
    if missing is not None:
        raise UnsupportedError(f"backend 'gpu' needs {missing}", "in the checkout: pip install -e '.[gpu]'")
    from minicpm4.kernels.gpu.device import gpu_table

    table = gpu_table()
    table.check_supports(activations=activations)
    return table


def _cpu_table(threads: int | None, isa: str | None, activations: str) -> OpTable:
    if cpu is None:
        raise UnsupportedError(
            f"the C++ extension of minicpm4 is missing ({_missing})",
            'reinstall minicpm4 with a C++ compiler present, or pass backend="ref" (very slow)',
        )
    check_optional_integer("threads", threads, 1, MAX_THREADS)
    level, _ = _choose_isa(isa)
    _shared_table(1, level, False).check_supports(activations=activations)
    return _shared_table(threads or default_threads(), level, activations == "int8")


@lru_cache(maxsize=8)
def _shared_table(threads: int, isa: str, narrow: bool) -> cpu.CpuOps:
    return cpu.CpuOps(threads, isa, narrow=narrow)


def _choose_isa(isa: str | None) -> tuple[str, str]:
    """Return the instruction set to use and why. Raises UnsupportedError.

    Emulated levels imitate units that this machine may lack: they serve tests, so they are taken only
    when named, and are not listed among what there is to choose from.
    """
    levels = cpu.isa_levels()
    forced = isa or os.environ.get(ISA_VARIABLE, "").strip()
    if not forced:
        return levels[-1], "the highest of this machine"
    source = "asked for" if isa else f"forced by {ISA_VARIABLE}"
    if forced in cpu.emulated_levels():
        return forced, f"{source}; emulated, for tests: right, and slow"
    if forced not in levels:
        raise UnsupportedError(
            f"instruction set {forced!r} ({source}) is not available on this machine",
            f"use one of {', '.join(levels)}",
        )
    return forced, source
