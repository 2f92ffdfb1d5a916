"""Run by `make slim` in an environment with the wheel and its core dependencies alone: text comes out
of the embedded model, and no large framework was installed or imported on the way."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

FORBIDDEN = (
    "torch",
    "triton",
    "transformers",
    "sentence_transformers",
    "accelerate",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "llama_cpp",
    "pytest",
)


def installed_mib() -> float:
    """Size of all that is installed here beside the standard library, in MiB."""
    packages = Path(sysconfig.get_paths()["purelib"])
    return sum(f.stat().st_size for f in packages.rglob("*") if f.is_file()) / 2**20


def commands_fail() -> str:
    """What goes wrong where the installed command is asked about this machine, and for text with the kernels
    that need the least and the most of it; "" where nothing does."""
    from minicpm4 import _cpu

    command = Path(sys.executable).with_name("minicpm4")
    asked = ["generate", "The capital of France is", "--raw", "-n", "3", "--temperature", "0"]
    for words, isa, told in (
        (["doctor"], "", "NumPy"),
        *((asked, level, "Paris") for level in ("scalar", _cpu.isa_levels()[-1])),
    ):
        environment = {**os.environ, "MINICPM4_ISA": isa} if isa else None
        done = subprocess.run([command, *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode or told not in done.stdout:
            return f"minicpm4 {words[0]} {isa}: {done.returncode}, {done.stdout!r}, {done.stderr!r}"
        print(f"minicpm4 {words[0]} {isa}: {done.stdout.strip()}")
    return ""


def main() -> int:
    from minicpm4 import LLM, SamplingParams

    out = LLM("smollm2-135m-instruct").chat(
        [{"role": "user", "content": "What is the capital of France?"}],
        SamplingParams(max_tokens=24, temperature=0.0),
    )
    print(f"answer: {out.text!r}")
    if "Paris" not in out.text:
        print("error: the answer does not name Paris")
        return 1
    imported = [name for name in FORBIDDEN if name in sys.modules]
    present = [name for name in FORBIDDEN if importlib.util.find_spec(name)]
    if imported or present:
        print(f"error: imported {imported}, installed {present}: core must do without")
        return 1
    if wrong := commands_fail():
        print(f"error: {wrong}")
        return 1
    print(f"installed size: {installed_mib():.0f} MiB, none of: {', '.join(FORBIDDEN)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
