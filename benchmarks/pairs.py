"""The speed of two versions of this package, compared in pairs.

    .venv/bin/python benchmarks/pairs.py OLD NEW [--model NAME] [--threads N] [--isa LEVEL]

OLD and NEW: a folder of sources whose extension lies built in src/minicpm4 (run under this Python), or a
revision of git, which is installed in an environment of its own first, in a temporary folder. Both load the
same model and stay loaded; each pair measures a point with one and then with the other, old first and new
first in turns, so that a drift of the machine favours neither. After every few pairs both start anew: where a
process lies in memory makes it faster or slower by several percent for as long as it lives. Told is, for each
point, the median over pairs of log(old's seconds / new's), as a ratio (above 1: new is faster), and its 95%
interval by resampling starts and their pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commits import commit
from peers.child import Child, Unavailable
from peers.pairing import POINTS, SIDES, Seconds, compare, row, table
from peers.quiet import Watch, is_loud

from minicpm4.evals.random_model import SHAPES
from minicpm4.files import finite, write_json
from minicpm4.machine import cpu_name, default_threads, total_cores

ROOT = Path(__file__).parents[1]
# What an earlier start has kept would be one version's and not the other's.
SETTINGS = {"MINICPM4_KEPT_WEIGHTS": "off", "MINICPM4_CALIBRATION": "off"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One of the two: the Python that runs it, where its package lies, and its commit as git describes it."""

    python: str
    package: Path
    commit: str


def main() -> None:
    args = parse()
    watch, before = Watch(), load_average()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        versions = [
            stack.enter_context(version(asked, Path(place) / side))
            for asked, side in zip((args.old, args.new), SIDES, strict=True)
        ]
        found: dict[str, list[Seconds]] = {name: [] for name in args.points}
        left_out: dict[str, str] = {}
        for number in range(args.starts):
            names = [name for name in found if name not in left_out]
            say(f"start {number + 1} of {args.starts}")
            abouts, seconds, lacking = one_start(versions, args, names, swapped=number % 2 == 1)
            left_out |= lacking
            for name, times in seconds.items():
                found[name].append(times)
    others = watch.others()
    rows = [row(name, starts) for name, starts in found.items() if name not in left_out]
    sides = {
        side: {"commit": one.commit} | {key: about[key] for key in ("kernels", "notes")}
        for side, one, about in zip(SIDES, versions, abouts, strict=True)
    }
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cpus": total_cores()},
        "load average before": before,
        "other load": others,
        **{key: getattr(args, key) for key in ("model", "weights", "threads", "isa", "pairs", "starts")},
        **sides,
        "points": rows,
        "left out": left_out,
    }
    for side, about in sides.items():
        print(f"{side}: {about['commit']}: {about['kernels']}; {about['notes']}")
    print(table(rows))
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    if others is not None and is_loud(others):
        say(f"warning: not to be quoted, {sum(others.values()):.2f} cores were at other work meanwhile")
    file = args.json or default_file(args)
    write_json(file, finite(report), indent=1)
    say(f"written: {file}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("old", metavar="OLD")
    add("new", metavar="NEW")
    add("--model", default=next(iter(SHAPES)), help="as minicpm4 bench takes it (%(default)s)")
    add("--weights", default="auto", help="auto: as stored, of random models int4")
    add("--threads", type=int, default=default_threads())
    add("--isa", help="the kernels' level, MINICPM4_ISA; the best unless said")
    add("--starts", type=int, default=5, help="how often both are started")
    add("--pairs", type=int, default=3, help="measured at each start")
    add("--points", nargs="+", choices=POINTS, default=list(POINTS), metavar="POINT", help=", ".join(POINTS))
    add("--json", type=Path, metavar="FILE", help="results/pairs_MODEL_LEVEL_CPU_DATE.json unless said")
    args = parser.parse_args()
    if args.starts < 1 or args.pairs < 1:
        parser.error("--starts and --pairs are at least 1")
    return args


@contextlib.contextmanager
def version(asked: str, place: Path) -> Iterator[Version]:
    """Find or build one of the two; what is built goes away in the end."""
    package = (Path(asked) / "src").resolve()
    if (package / "minicpm4").is_dir():
        if not [*package.glob("minicpm4/_cpu.*.so"), *package.glob("minicpm4/_cpu.*.pyd")]:
            raise SystemExit(f"error: {asked} has no extension in src/minicpm4: build it, or name a revision")
        yield Version(python=sys.executable, package=package, commit=commit(Path(asked)))
        return
    source, installed = place / "source", place / "installed"
    run("git", "worktree", "add", "-q", "--detach", str(source), asked)
    try:
        say(f"building {asked}")
        run(sys.executable, "-m", "venv", str(place / "environment"))
        python = str(place / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python")
        run(python, "-m", "pip", "install", "-q", "--target", str(installed), str(source))
        yield Version(python=python, package=installed.resolve(), commit=commit(source))
    finally:
        run("git", "worktree", "remove", "--force", str(source))


def run(*command: str) -> None:
    """Run in the repository; of what fails is told what it said."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")


def one_start(
    versions: Sequence[Version], args: argparse.Namespace, names: list[str], *, swapped: bool
) -> tuple[list[dict[str, Any]], dict[str, Seconds], dict[str, str]]:
    """Start both, in turns the other one first, and measure; what they say of themselves comes with it."""
    with contextlib.ExitStack() as stack:
        turned = [start(one, args, stack) for one in (versions[::-1] if swapped else versions)]
        children = turned[::-1] if swapped else turned
        found, left_out = compare(children, names, args.pairs, say)
        return [child.about for child in children], found, left_out


def start(one: Version, args: argparse.Namespace, stack: contextlib.ExitStack) -> Child:
    """A process of one version with the model loaded."""
    points = [POINTS[name][0] for name in args.points]
    request = {
        "package": str(one.package),
        "model": args.model,
        "room": max(point.depth + point.tokens for point in points),
        "options": {
            "threads": args.threads,
            "weights": args.weights,
            "batch": max(point.batch for point in points),
        },
    }
    say(f"loading {args.model} with {one.commit}")
    level = {"MINICPM4_ISA": args.isa} if args.isa else {}
    try:
        child = Child(one.python, "version_peer.py", request, SETTINGS | level)
    except Unavailable as error:
        raise SystemExit(f"error: {one.commit}: {error}") from None
    stack.callback(child.close)
    if not Path(child.about["where"]).resolve().is_relative_to(one.package):
        raise SystemExit(f"error: {one.commit}: the package in {child.about['where']} was loaded instead")
    return child


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def default_file(args: argparse.Namespace) -> Path:
    cpu = "-".join(re.findall(r"[a-z]+", cpu_name().lower())[:2])
    name = f"pairs_{Path(args.model).name}_{args.isa or 'best'}_{cpu}_{datetime.now(UTC):%Y-%m-%d}.json"
    return ROOT / "benchmarks" / "results" / name


if __name__ == "__main__":
    main()
