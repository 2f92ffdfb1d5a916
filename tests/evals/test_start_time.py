"""The benchmark of start-up: its stages are functions that there are, and all are gone through."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks import start_time

STAGES = {"command line: imports", "numpy: import", "engine: imports", *start_time.STAGES, "everything else"}


def test_every_stage_is_timed() -> None:
    """A stage that had moved ended it, unseen."""
    command = [sys.executable, start_time.__file__, "--tokens", "3", "--child"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed.splitlines()[-1])
    assert set(found["stages"]) == STAGES and found["tokens"] > 3
    for name in STAGES - {"inspect, the rest", "build, the rest"}:
        wall, processor = found["stages"][name]
        assert wall > 0 and processor >= 0, name
