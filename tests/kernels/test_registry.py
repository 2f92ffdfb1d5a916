"""Which op table is chosen, what is refused, and that a table outlives threads and forks."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.kernels import registry
from minicpm4.kernels.cpu import CpuOps, cpu_features, emulated_levels, isa_levels
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.registry import explain, resolve
from minicpm4.machine import default_threads


def test_auto_takes_the_extension_at_its_highest_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINICPM4_ISA", raising=False)
    ops = resolve("auto", threads=2)
    assert isinstance(ops, CpuOps) and ops.isa == isa_levels()[-1] and ops.threads == 2
    assert ops.description == f"cpu: {ops.isa}, 2 threads"
    assert resolve("cpu", threads=2) is ops
    assert isinstance(resolve("ref"), RefOps)


@pytest.mark.parametrize("level", isa_levels())
def test_environment_forces_a_level(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("MINICPM4_ISA", level)
    ops = resolve(threads=1)
    assert isinstance(ops, CpuOps) and ops.isa == level
    assert ops.description == f"cpu: {level}, 1 thread"
    assert f"cpu: {level} kernels (forced by MINICPM4_ISA" in explain()[0]


@pytest.mark.parametrize("level", emulated_levels())
def test_an_emulated_level_is_used_when_named_only(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.delenv("MINICPM4_ISA", raising=False)
    assert level not in isa_levels() and level not in explain()[0]
    with pytest.raises(UnsupportedError) as error:
        resolve(isa="sse9")
    assert level not in str(error.value)
    assert isinstance(ops := resolve(isa=level, threads=1), CpuOps) and ops.isa == level
    monkeypatch.setenv("MINICPM4_ISA", level)
    line = explain()[0]
    assert f"{level} kernels (forced by MINICPM4_ISA; emulated, for tests" in line
    assert line.endswith(f"this machine runs {', '.join(isa_levels())})")


@pytest.mark.parametrize("level", ["avx1024", "sse9", "SCALAR"])
def test_a_level_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    levels = ", ".join(isa_levels())
    monkeypatch.setenv("MINICPM4_ISA", level)
    with pytest.raises(UnsupportedError, match=rf"'{level}' \(forced by MINICPM4_ISA\).*use one of {levels}"):
        resolve()
    with pytest.raises(UnsupportedError, match=rf"'{level}' \(asked for\).*use one of {levels}"):
        resolve(isa=level)
    assert level in explain()[0]


def test_a_gpu_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"'gpu' needs torch and triton.*\.\[gpu\]"):
        resolve("gpu")
    monkeypatch.setattr(registry, "NVIDIA", ("/",))
    assert any("needs torch and triton" in line for line in explain())
    registry._gpu_present.cache_clear()
    assert resolve().name == "cpu"
    registry._gpu_present.cache_clear()


def test_unknown_names_and_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"backend = 'cup' is not a choice.*did you mean 'cpu'"):
        resolve("cup")
    for bad in (0, -1, 5000, 2.0, True):
        with pytest.raises(ConfigError, match="threads = "):
            resolve(threads=bad)  # type: ignore[arg-type]


def test_without_the_extension_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "cpu", None)
    monkeypatch.setattr(registry, "_missing", ImportError("no _cpu"))
    with pytest.raises(UnsupportedError, match=r"missing \(no _cpu\).*C\+\+ compiler.*backend=\"ref\""):
        resolve()
    assert isinstance(resolve("ref"), RefOps)
    assert "extension missing" in explain()[0]


def test_a_host_table_without_the_extension_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "cpu", None)
    registry._say_missing.cache_clear()
    assert all(isinstance(registry.host_table(), RefOps) for _ in range(2))
    assert caplog.text.count("NumPy computes instead, which is very slow") == 1


def test_explain_tells_threads_and_features() -> None:
    lines = "\n".join(explain())
    assert f"threads: {default_threads()} (" in lines
    assert "ref: NumPy" in lines
    assert all(name in lines for name, present in cpu_features().items() if present)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_features_agree_with_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text().replace("asimddp", "dotprod").split()
    for name in (
        "avx2",
        "avx_vnni",
        "fma",
        "f16c",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
        "i8mm",
        "dotprod",
    ):
        assert cpu_features()[name] == (name in text), name


def _norms(ops: CpuOps, seed: int, repeats: int) -> bool:
    x = np.random.default_rng(seed).standard_normal((300, 256), np.float32)
    expected = RefOps().rms_norm(x, np.ones(256, np.float32), 1e-6)
    return all(
        np.allclose(ops.rms_norm(x, np.ones(256, np.float32), 1e-6), expected, atol=1e-5)
        for _ in range(repeats)
    )


def test_many_short_loops_from_several_python_threads() -> None:
    ops, passed = CpuOps(4), []
    callers = [
        threading.Thread(target=lambda seed=seed: passed.append(_norms(ops, seed, 300))) for seed in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert passed == [True] * 3


def test_tables_can_be_made_and_dropped() -> None:
    for seed in range(30):
        assert _norms(CpuOps(3), seed, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_and_exits() -> None:
    ops = CpuOps(3)
    assert _norms(ops, 0, 3)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if _norms(ops, 1, 3) else 2
            del ops
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _norms(ops, 2, 3)


def test_activations_are_refused_where_they_are_not_known() -> None:
    with pytest.raises(ConfigError, match="activations = 'int4' is not a choice"):
        registry.resolve(activations="int4")
    with pytest.raises(UnsupportedError, match="'ref' has no activations"):
        registry.resolve("ref", activations="int8")
    with pytest.raises(UnsupportedError, match="scalar kernels have no activations"):
        registry.resolve(isa="scalar", activations="int8")


def test_tables_say_what_they_have_no_kernels_for() -> None:
    CpuOps(1, "scalar").check_supports(kv="int8")
    RefOps().check_supports(kv="int8", tree=True)
    for table in (CpuOps(1, "scalar"), RefOps()):
        with pytest.raises(UnsupportedError, match=r"no kernels for pages of int4.*use kv='bf16' or"):
            table.check_supports(kv="int4")
        with pytest.raises(UnsupportedError, match=r"ha(s|ve) no activations = 'int8'.*use activations"):
            table.check_supports(activations="int8")
