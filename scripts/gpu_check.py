"""On a machine with a GPU: the kernels' tests, then the benchmark, within eight minutes.

Needs a Python with torch (CUDA), Triton, NumPy and pytest; for the engine's tests also tokenizers, jinja2
and huggingface_hub. Nothing is installed or compiled, no network is used, and the C++
extension may be missing. Writes gpu_tests.txt and gpu_peers_GPU_DATE.json into --results; exit code 1 where
a test failed or the benchmark did not end.

    make gpu-check [GPU_PYTHON=python3]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 480  # seconds in all
TESTS, TAIL = 200, 40  # of these at most for the tests, and left for the benchmark's last part


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    began = time.monotonic()
    import torch
    import triton

    if not torch.cuda.is_available():
        print("error: torch finds no GPU here; without one: make test-interpreted", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, Triton {triton.__version__}", flush=True)
    given.results.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0"}
    # No settings of the project: they name plugins that may be missing here.
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib", "-p", "no:cacheprovider"]
    tests = [sys.executable, "-m", "pytest", "-q", *options, str(ROOT / "tests" / "gpu")]
    passed = run(tests, env, TESTS, given.results / "gpu_tests.txt")
    words = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
    file = given.results / f"gpu_peers_{words}_{datetime.now(UTC):%Y-%m-%d}.json"
    left = LIMIT - (time.monotonic() - began)
    peers = [sys.executable, str(ROOT / "benchmarks" / "gpu_peers.py"), "--json", str(file)]
    measured = run([*peers, "--seconds", str(max(1, round(left - TAIL)))], env, left, None)
    tested, ended = "passed" if passed else "FAILED", "ended" if measured else "did NOT end"
    print(f"tests {tested}, benchmark {ended}, {time.monotonic() - began:.0f} s; {file}")
    return 0 if passed and measured else 1


def run(command: list[str], env: dict[str, str], limit: float, keep: Path | None) -> bool:
    """Run ``command`` for ``limit`` seconds at most, show what it prints, and write that to ``keep``."""
    shown: list[str] = []
    stop = time.monotonic() + limit
    bounded = ["timeout", f"{limit:.0f}", *command]
    out = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(bounded, env=env, cwd=ROOT, stdout=out[0], stderr=out[1], text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            shown.append(line)
            print(line, end="", flush=True)
    if keep is not None:
        keep.write_text("".join(shown), encoding="utf-8")
    if time.monotonic() >= stop:
        print(f"stopped after {limit:.0f} s")
    return process.returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())
