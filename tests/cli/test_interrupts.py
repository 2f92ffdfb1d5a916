"""Ctrl-C at any moment of a command: it ends by the signal or with 130, and shows no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.fixtures.random_checkpoint import make_checkpoint

# The interpreter's own start is not ours: it is counted from the first line of the command on.
STARTED = "import os\nfrom minicpm4.__main__ import main\nos.write(1, b'.')\nmain()\n"
MOMENTS = int(os.environ.get("MINICPM4_MOMENTS", "8"))  # of each command


def interrupted(folder: Path, args: list[str], after: float) -> tuple[int, str]:
    """Exit code and standard error of a command that is interrupted ``after`` so many seconds."""
    with subprocess.Popen(
        [sys.executable, "-m", "started", *args],  # of -c, Python looks less closely how it ended
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    ) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"."
        try:
            said = process.communicate(timeout=after)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            said = process.communicate()[1]
    return process.returncode, said.decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
@pytest.mark.parametrize("name", ["help", "generate", "convert"])
def test_no_moment_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "started.py").write_text(STARTED)
    make_checkpoint(tmp_path / "model")
    args = {
        "help": ["--help"],
        "generate": ["generate", "-m", "model", "--raw", "--prompt", "a", "--max-tokens", "4"],
        "convert": ["convert", "model", "OUT", "--method", "rtn"],
    }[name]
    rng, whole = Random(24), 0.0
    for number in range(MOMENTS + 1):
        given = [f"out{number}" if arg == "OUT" else arg for arg in args]
        # The first is not interrupted: it tells how long one takes.
        after = rng.uniform(0, whole) if number else 600.0
        began = time.monotonic()
        code, said = interrupted(tmp_path, given, after)
        whole = whole or time.monotonic() - began
        assert code in ((0, 130, -signal.SIGINT) if number else (0,)), (after, code, said)
        assert not any(word in said for word in ("Traceback", "Exception ignored")), (after, said)
