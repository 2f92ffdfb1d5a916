"""Speed on this CPU beside llama.cpp, OpenVINO and transformers: same weights, same points, one run.

    python benchmarks/cpu_peers.py --llama-python PYTHON --avx2-llama-python PYTHON \
        --openvino-python PYTHON --torch-python PYTHON --deep

Each peer runs in a child process under the Python that has it; one that is missing is left out, and
said so. See README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commits import commit, dated
from peers.child import Child
from peers.contest import Column, Point, contest, results
from peers.entries import entries, parse_flavour, start
from peers.merging import merge
from peers.models import write_folder, write_random_gguf
from peers.parts import MADE, PARTS, SHAPED, Part, points
from peers.quiet import Watch
from peers.report import markdown, products_limit

from minicpm4 import zoo
from minicpm4.errors import Minicpm4Error
from minicpm4.files import finite, write_file, write_json
from minicpm4.machine import cpu_name, default_threads, total_cores

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
START = "start"  # the part that is no contest: minicpm4 generate, from the command to its first text


def weights(key: str, folder: Path) -> dict[str, str]:
    """Paths of a part's GGUF file and bf16 folder, made where they are not there yet; of a real model that is
    fetched by hand (make models), and of layers in another type, of the file alone. Raises
    ModelNotFoundError."""
    folder.mkdir(parents=True, exist_ok=True)
    part = PARTS[key]
    model = part.model
    if key in MADE:
        return {"gguf": str(_made(key, folder))}
    if "transformers" not in part.peers and model.endswith("-instruct"):
        return {"gguf": str(zoo.resolve(model))}
    if model == "smollm2-135m":
        gguf = zoo.resolve("smollm2-135m-instruct")
    else:
        gguf = folder / f"{model}.Q4_0.gguf"
        if not gguf.exists():
            write_random_gguf(gguf)
    unpacked = folder / f"{model}-bf16"
    if not (unpacked / "config.json").exists():  # written last
        write_folder(gguf, unpacked)
    return {"gguf": str(gguf), "folder": str(unpacked)}


def _made(key: str, folder: Path) -> Path:
    """The model with its layers rounded to the part's type: for its speed, whatever it then says."""
    model, kind = MADE[key]
    file = folder / f"{key}.gguf"
    if not file.exists():
        source = folder / f"{model}.Q4_0.gguf"
        if model == SHAPED and not source.exists():
            write_random_gguf(source)
        command = ["convert", str(source) if model == SHAPED else model, str(file), "--gguf-type", kind]
        subprocess.run([sys.executable, "-m", "minicpm4", *command], check=True, stdout=subprocess.DEVNULL)
    return file


def run_part(args: argparse.Namespace, key: str, deadline: float) -> dict[str, Any]:
    """Measure one part with everyone."""
    part, watch, began = PARTS[key], Watch(), time.monotonic()
    print(f"{part.name}: loading", flush=True)
    chosen = points(key, smoke=args.smoke, deep=args.deep)
    room = max(point.depth + point.tokens for point in chosen)
    request = {"threads": args.threads, "room": room + 64, **weights(key, args.work)}
    wanted = entries(part, args, max(point.batch for point in chosen))
    columns, children, left_out = start(wanted, request, print)
    try:
        ours = next((column.child for column in columns if column.ours), None)
        if ours is None:
            raise SystemExit(f"minicpm4 itself cannot run: {left_out}")
        measured = [_limits(ours, args, part)]
        contest(
            columns,
            chosen,
            args.repeats,
            deadline,
            lambda line: print(line, flush=True),
            lambda: measured.append(_limits(ours, args, part)),
        )
        limits = {name: max(found[name] for found in measured) for name in measured[0]}
        found = results(columns, chosen)
        _add_shares(found, columns, limits)
    finally:
        for child in children:
            child.close()
    return {
        "name": part.name,
        **dated(),
        "other_load": watch.others(),
        "took_s": round(time.monotonic() - began),
        "limits": limits,
        "columns": [_about(column) for column in columns],
        "left_out": left_out,
        "points": found,
    }


def _about(column: Column) -> dict[str, Any]:
    names = ("name", "ours", "flavour", "attention")
    return {name: getattr(column, name) for name in names} | {"about": column.child.about}


def _limits(ours: Child, args: argparse.Namespace, part: Part) -> dict[str, float]:
    """What the machine can do right now, operations and bytes per second."""
    return ours.ask({"op": "limits"}) | integer_peak(args, "avx2" if part.environment else "native")


def integer_peak(args: argparse.Namespace, level: str) -> dict[str, float]:
    """Products of integers, and of matrix tiles, by peak.c; nothing where that does not compile."""
    source, program = Path(__file__).parent / "peers" / "peak.c", args.work / f"peak-{level}"
    flags = ["-O3", "-pthread", "-mavx2" if level == "avx2" else "-march=native"]
    try:
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", *flags, str(source), "-o", str(program)], check=True, capture_output=True)
        command = [str(program), str(args.threads)]
        found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return found


def _add_shares(found: list[dict[str, Any]], columns: list[Column], limits: dict[str, float]) -> None:
    """Of the bandwidth (decode) or of products (prefill), for ours."""
    _, products = products_limit(limits)
    for entry in found:
        limit = limits["bandwidth_bytes_per_s"] if entry["kind"] == "decode" else products
        point = Point(**{name: entry[name] for name in ("kind", "depth", "tokens", "batch")})
        for column in columns:
            rate = entry["rates"][column.name]
            if column.ours and "tokens_per_s" in rate:
                cost = column.child.ask(point.request(column.attention) | {"op": "cost"})["cost"]
                rate["limit_share"] = rate["tokens_per_s"] * cost / limit


def first_text() -> dict[str, Any]:
    """Seconds of start_time.py, in processes of their own."""
    print("start of minicpm4 generate", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.json"
        script = str(Path(__file__).parent / "start_time.py")
        subprocess.run([sys.executable, script, "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
        report = json.loads(file.read_text(encoding="utf-8"))
    return {"seconds": report["first text, s"], "report": report, "commit": commit()}


def main() -> None:
    args = arguments()
    watch, deadline = Watch(), time.monotonic() + 60 * args.minutes
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    file = args.merge or args.results / f"cpu_peers_{cpu}_{datetime.now(UTC):%Y-%m-%d}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if args.merge and file.exists() else None
    for folder in (args.work, file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    parts = [key for key in args.parts if key != START]
    run: dict[str, Any] = {
        "machine": {"cpu": cpu_name(), "cpus": total_cores(), "system": platform.platform()},
        "threads": args.threads,
        "start": first_text() if START in args.parts else None,
        "models": [],
    }
    for key in parts:
        weights(key, args.work)  # what is not there is said before anything long begins
    for number, key in enumerate(parts):
        share = PARTS[key].share / sum(PARTS[later].share for later in parts[number:])
        left = deadline - time.monotonic()
        run["models"].append(run_part(args, key, time.monotonic() + left * share))
        _save(run, watch, old, file)  # what is measured is kept, whatever becomes of later parts
    whole = _save(run, watch, old, file)
    print(f"\n{markdown(whole)}\nwrote {file.name} and its .md")


def _save(run: dict[str, Any], watch: Watch, old: dict[str, Any] | None, file: Path) -> dict[str, Any]:
    """Write the result so far, with the parts of an older one that it lacks; return both together."""
    run = {**dated(), "other_load": watch.others()} | run
    run = merge(old, run) if old else run
    write_json(file, finite(run))
    write_file(file.with_suffix(".md"), markdown(run))
    return run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--llama-python", default=sys.executable, help="Python that has llama-cpp-python")
    add("--avx2-llama-python", help="Python that has it built for AVX2 only")
    add("--openvino-python", default=sys.executable, help="Python that has openvino-genai")
    add("--torch-python", default=sys.executable, help="Python that has torch and transformers")
    known = [START, *PARTS]
    usual = [key for key in known if key not in MADE]
    add(
        "--parts",
        nargs="+",
        choices=known,
        default=usual,
        help=f"what to measure: {', '.join(usual)}, unless said",
    )
    add(
        "--ours",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="more columns of ours, with other settings, as in 'int8 cache:kv=int8'",
    )
    add(
        "--without",
        nargs="*",
        default=[],
        help="peers to leave out: llama.cpp, OpenVINO, transformers, or one of their columns",
    )
    add("--threads", type=int, default=default_threads())
    add("--repeats", type=int, default=3)
    add("--cap", type=float, default=20.0, help="seconds that one measurement may take")
    add("--minutes", type=float, default=25.0, help="no repeats after this time")
    add("--work", type=Path, default=ROOT / "build" / "bench", help="folder for weights")
    add("--results", type=Path, default=RESULTS)
    add("--merge", type=Path, metavar="FILE.json", help="put the parts into this result, new or not")
    add("--deep", action="store_true", help="also depth 131,072: needs some 20 GB of memory")
    add("--smoke", action="store_true", help="few points, no depth beyond 2,048")
    args = parser.parse_args()
    try:
        for text in args.ours:
            parse_flavour(text)
    except ValueError as error:
        parser.error(f"--ours: {error}")
    return args


if __name__ == "__main__":
    try:
        main()
    except Minicpm4Error as error:
        raise SystemExit(f"error: {error}") from None
