"""A lock keeps others out, threads and processes, and a killed process lets go of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minicpm4.files import lock

HOLD = """
import sys, time
from pathlib import Path
from minicpm4.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


class Busy(Exception):
    pass


def refuse() -> None:
    raise Busy


def test_a_process_holds_it_until_it_dies(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(Busy), lock(file, refuse):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with lock(file, refuse):
            pass


def test_another_thread_waits_and_is_told(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with lock(tmp_path / "lock", told.set):
            order.append("second")

    told = threading.Event()
    thread = threading.Thread(target=second)
    with lock(tmp_path / "lock"):
        thread.start()
        assert told.wait(60)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
