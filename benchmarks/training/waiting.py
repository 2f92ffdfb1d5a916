"""What does a step of training take beside another program, by how long torch's waiting threads spin?

Steps of a small model (width 256, 2,048 tokens), in a process of their own with GOMP_SPINCOUNT set, alone and
beside a process that trains the same with libgomp's own setting. Seconds of a step, medians.

    .venv/bin/python -m benchmarks.training.waiting [--steps 12] [--threads 2]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks.training.common import Lab, arguments
from benchmarks.training.mup_coordinates import trial

SPINS = (300_000, 16_000, 1_000, 0)  # libgomp's own first; training sets 1,000


def main() -> None:
    given = arguments(__doc__, steps="12", child="")
    lab = Lab("waiting", given)
    if given.child:
        print(seconds(lab, int(given.steps)))
        return
    trial(lab, "muP", 256, 1)  # packs the texts, once
    alone = [(float(spins), measured(given.threads, given.steps, spins)) for spins in SPINS]
    beside = []
    for spins in SPINS:
        other = start(given.threads, str(1 << 20), SPINS[0])
        try:
            time.sleep(10)
            beside.append((float(spins), measured(given.threads, given.steps, spins)))
        finally:
            other.kill()
            other.wait()
    lab.write(
        "Seconds of a step by rounds that waiting threads spin",
        {"alone": sorted(alone), "beside another": sorted(beside)},
        {"steps": int(given.steps), "alone": dict(alone), "beside another": dict(beside)},
        x="GOMP_SPINCOUNT",
        y="s a step",
        log_x=True,
    )


def measured(threads: int, steps: str, spins: int) -> float:
    out, _ = start(threads, steps, spins).communicate()
    return float(out.splitlines()[-1])


def start(threads: int, steps: str, spins: int) -> subprocess.Popen[str]:
    """A process that takes ``steps`` steps and prints the median of their seconds."""
    command = [sys.executable, "-m", "benchmarks.training.waiting", "--child", "yes", "--steps", steps]
    return subprocess.Popen(
        [*command, "--threads", str(threads)],
        env={**os.environ, "GOMP_SPINCOUNT": str(spins)},
        stdout=subprocess.PIPE,
        text=True,
    )


def seconds(lab: Lab, steps: int) -> float:
    _, step = trial(lab, "muP", 256, 1)
    found = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return round(statistics.median(found), 4)


if __name__ == "__main__":
    main()
