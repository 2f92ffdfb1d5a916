"""Read made-up and damaged inputs: scripts/fuzz.py READER [--minutes N] [--inputs N] [--seed S] [--jobs J].

An input is a fault where anything but an error of ours comes of it: another exception, a message that quotes
more than it should, an end of the process, or no end in time. It is kept in fuzz-faults/ with what it did,
and ``--replay FILE`` reads it again. Without READER all are gone through, each for as long, or with as many
inputs: what comes of so many from a seed does not depend on how fast the machine is. ``--within`` bounds the
minutes of all.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(MINICPM4_KEPT_WEIGHTS="off", MINICPM4_CALIBRATION="off", HF_HUB_OFFLINE="1")

from tests.fuzz import READERS  # noqa: E402  (needs the path)
from tests.fuzz.reader import Reader  # noqa: E402

FAULTS = ROOT / "fuzz-faults"
MOST_FAULTS = 20  # of one reader
SECONDS = 60  # for one input: the machine may be busy
MEMORY = 3 << 30  # beyond what the process has when it begins


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("reader", nargs="?", choices=[*READERS, "all"], default="all")
    options.add_argument("--minutes", type=float, help="for each reader; 1, where no --inputs are given")
    options.add_argument(
        "--inputs", type=int, help="of each reader, however long it takes; slow ones get a share of them"
    )
    options.add_argument(
        "--within",
        type=float,
        help="minutes for all readers together, shared out where --minutes would take more",
    )
    options.add_argument("--jobs", type=int, default=1, help="readers at a time")
    options.add_argument(
        "--seed", type=int, default=None, help="of the first input; the time, where it is not given"
    )
    options.add_argument("--replay", type=Path, help="read this input alone")
    given = options.parse_args()
    if given.replay:
        with tempfile.TemporaryDirectory() as folder:
            print(READERS[given.reader].judge(given.replay.read_bytes(), Path(folder)))
        return 0
    seed = int(time.time()) if given.seed is None else given.seed
    names = list(READERS) if given.reader == "all" else [given.reader]
    # The slow ones first, so that none is left alone at the end.
    readers = sorted((READERS[name] for name in names), key=lambda one: one.share)
    jobs = max(given.jobs, 1)
    if given.minutes is None and given.inputs is None:
        given.minutes = 1.0
    if given.within is not None and given.minutes is not None:
        given.minutes = min(given.minutes, given.within * jobs / len(readers))
        print(f"{len(readers)} readers, {given.minutes * 60:.0f} s for each at most", flush=True)
    return _every(readers, jobs, lambda one: fuzz(one, seed, **_much(one, given)))


def _much(reader: Reader, given: argparse.Namespace) -> dict[str, float]:
    seconds = {} if given.minutes is None else {"seconds": given.minutes * 60}
    return (
        seconds if given.inputs is None else {**seconds, "inputs": max(1, round(given.inputs * reader.share))}
    )


def _every(readers: Sequence[Reader], jobs: int, work: Callable[[Reader], int]) -> int:
    """Have ``work`` done for each reader, so many at a time, in processes; 1 if any found faults."""
    left, running, status = list(readers), 0, 0
    while left or running:
        if left and running < jobs:
            reader = left.pop(0)
            if os.fork() == 0:
                code = 1
                try:
                    code = int(work(reader) > 0)
                except BaseException:
                    traceback.print_exc()
                os._exit(code)
            running += 1
            continue
        _, how = os.wait()
        running, status = running - 1, status or int(how != 0)
    return status


def fuzz(reader: Reader, seed: int, *, seconds: float = math.inf, inputs: float = math.inf) -> int:
    """How many faults were found in that time, or among so many; says so."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        work = Path(name)
        reader.draw(Random(0))  # what all inputs are made of is made once, before there are children
        end, at, faults = time.monotonic() + seconds, 0, 0
        told: Counter[str] = Counter()
        while time.monotonic() < end and at < inputs and faults < MOST_FAULTS:
            child = os.fork()
            if child == 0:
                _child(reader, work, seed, at, lambda at: at < inputs and time.monotonic() < end)
            how = _watched(child, work)
            at, found = _progress(work)
            told.update(found)
            if how:
                faults += 1
                at += 1
                _keep(reader, work, how)
    outcomes = ", ".join(f"{count} {name}" for name, count in told.most_common())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = f"{used.ru_utime + used.ru_stime:.0f} CPU s"
    print(f"{reader.name}: {at} inputs from seed {seed}, {took}, {faults} faults ({outcomes})", flush=True)
    return faults


def _child(reader: Reader, work: Path, seed: int, at: int, more: Callable[[int], bool]) -> None:
    """Read inputs while there are ``more``, or until one is a fault; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which needs addresses without end
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    told: Counter[str] = Counter()
    folder = work / "folder"
    (work / "case").touch()
    try:
        while more(at):
            case = reader.draw(Random(f"{reader.name} {seed} {at}"))
            (work / "case").write_bytes(case)
            folder.mkdir()
            (work / "at").write_text(str(at))
            told[reader.judge(case, folder)] += 1
            shutil.rmtree(folder)
            at += 1
        (work / "at").write_text(str(at))
    except BaseException:
        (work / "trace").write_text(traceback.format_exc()[-20_000:], errors="replace")
        _tell(work, told)
        os._exit(3)
    _tell(work, told)
    os._exit(0)


def _tell(work: Path, told: Counter[str]) -> None:
    (work / "told").write_text("\n".join(f"{count} {name}" for name, count in told.items()))


def _watched(child: int, work: Path) -> str:
    """Wait for ``child``; how it failed, "" where it did not."""
    seen, since = "", time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else "exception" if code == 3 else f"exit {code}"
        now = (work / "at").read_text() if (work / "at").exists() else ""
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"no end in {SECONDS} s"
        time.sleep(0.05)


def _progress(work: Path) -> tuple[int, dict[str, int]]:
    at = int((work / "at").read_text() or 0) if (work / "at").exists() else 0
    told = {}
    if (work / "told").exists():
        for line in (work / "told").read_text().splitlines():
            count, name = line.split()
            told[name] = int(count)
        (work / "told").unlink()
    return at, told


def _keep(reader: Reader, work: Path, how: str) -> None:
    """Keep the input that is being read, and say what it did."""
    FAULTS.mkdir(exist_ok=True)
    name = f"{reader.name}-{time.time_ns()}"
    shutil.copy(work / "case", FAULTS / name)
    shutil.rmtree(work / "folder", ignore_errors=True)
    trace = (work / "trace").read_text() if (work / "trace").exists() else ""
    (work / "trace").unlink(missing_ok=True)
    (FAULTS / f"{name}.txt").write_text(f"{how}\n{trace}")
    last = trace.strip().splitlines()[-1:] or [""]
    where = [line.strip() for line in trace.splitlines() if "src/minicpm4" in line][-1:] or [""]
    print(f"{reader.name}: {how}: {last[0]:.300} {where[0]} (kept: {FAULTS / name})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
