"""Speed on this CPU beside llama.cpp, OpenVINO and transformers: same weights, same points, one run.

    python benchmarks/cpu_peers.py --llama-python PYTHON --openvino-python PYTHON --torch-python PYTHON

Each peer runs in a child process under the Python that has it; one that is missing is left out, and
said so. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers.child import Child, Unavailable
from peers.contest import Column, Point, contest, results
from peers.models import write_folder, write_random_gguf
from peers.quiet import Watch
from peers.report import markdown

from minicpm4 import zoo
from minicpm4.errors import Minicpm4Error
from minicpm4.evals.report import cpu_name
from minicpm4.kernels.threads import default_threads

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DECODED = 16  # tokens of a decode point
# The quick one first: what it leaves of its share of the time goes to the other.
MODELS = {
    "smollm2-135m": "SmolLM2-135M, Q4_1",
    "minicpm4-0.5b-shape": "MiniCPM4-0.5B's shape, random weights, Q4_0",
}
SHARES = {"smollm2-135m": 1, "minicpm4-0.5b-shape": 2}


def points(model: str, smoke: bool, deep: bool) -> list[Point]:
    """Cheap ones first: what a dear one takes is known before it is begun."""
    deepest = 2048 if smoke else 8192 if model == "smollm2-135m" else 131072 if deep else 32768
    depths = [depth for depth in (0, 2048, 8192, 32768, 131072) if depth <= deepest]
    decode = [Point(kind="decode", depth=depth, tokens=4 if smoke else DECODED) for depth in depths]
    chunks = [Point(kind="prefill", depth=depth, tokens=512) for depth in depths]
    lengths = () if smoke else (2048, 8192, 32768) if deepest > 8192 else (2048, 8192)
    whole = [Point(kind="prefill", depth=0, tokens=tokens) for tokens in lengths]
    return [*decode, *chunks, *whole]


def weights(model: str, folder: Path) -> dict[str, str]:
    """Paths of the GGUF file and of the bf16 folder, made where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if model == "smollm2-135m":
        gguf = zoo.resolve("smollm2-135m-instruct")
    else:
        gguf = folder / f"{model}.Q4_0.gguf"
        if not gguf.exists():
            write_random_gguf(gguf.with_suffix(".part"))
            gguf.with_suffix(".part").rename(gguf)
    unpacked = folder / f"{model}-bf16"
    if not (unpacked / "config.json").exists():  # written last
        write_folder(gguf, unpacked)
    return {"gguf": str(gguf), "folder": str(unpacked)}


def enter(
    args: argparse.Namespace, request: dict[str, Any]
) -> tuple[list[Column], list[Child], dict[str, str]]:
    """Start the contestants; also return those left out, and why."""
    columns, children, left_out = [], [], {}
    entries: list[tuple[str, str, str, dict[str, Any], float, list[tuple[str, tuple[str, ...]]]]] = [
        (
            "minicpm4",
            sys.executable,
            "minicpm4_peer.py",
            {},
            args.cap * 5,  # our own deep points are to be measured, not worked out
            [("dense", ("dense",)), ("sparse", ("sparse",))],
        ),
        ("llama.cpp", args.llama_python, "llama_cpp_peer.py", {}, args.cap, [("", ("fa-off", "fa-on"))]),
    ]
    for precision in ("8-bit", "16-bit"):
        extra = {"precision": precision, "work": str(args.work.resolve())}
        entries.append(
            (
                f"OpenVINO {precision}",
                args.openvino_python,
                "openvino_peer.py",
                extra,
                args.cap,
                [("", ("",))],
            )
        )
    caches = [("", ("dynamic", "static"))]
    for dtype, cap in (("bfloat16", args.cap), ("float32", args.cap / 2)):
        extra = {"dtype": dtype}
        entries.append(
            (f"transformers {dtype}", args.torch_python, "transformers_peer.py", extra, cap, caches)
        )
    for name, python, script, extra, cap, parts in entries:
        if name in args.without or name.split()[0] in args.without:
            continue
        try:
            child = Child(python, script, request | extra)
        except Unavailable as error:
            print(f"{name} is left out: {error}", flush=True)
            left_out[name] = str(error)
            continue
        children.append(child)
        for part, variants in parts:
            columns.append(
                Column(
                    name=f"{name} {part}".strip(), child=child, variants=variants, cap=cap, ours=bool(part)
                )
            )
    return columns, children, left_out


def run_model(args: argparse.Namespace, model: str, deadline: float) -> dict[str, Any]:
    """Measure one model with everyone."""
    print(f"{MODELS[model]}: loading", flush=True)
    chosen = points(model, args.smoke, args.deep)
    room = max(point.depth + point.tokens for point in chosen)
    request = {"threads": args.threads, "room": room + 64, **weights(model, args.work)}
    columns, children, left_out = enter(args, request)
    try:
        ours = next((column.child for column in columns if column.ours), None)
        if ours is None:
            raise SystemExit(f"minicpm4 itself cannot run: {left_out}")
        limits = [ours.ask({"op": "limits"})]
        contest(columns, chosen, args.repeats, deadline, lambda line: print(line, flush=True))
        limits.append(ours.ask({"op": "limits"}))
        best = {name: max(found[name] for found in limits) for name in limits[0]}
        costs = ours.ask({"op": "costs"})
    finally:
        for child in children:
            child.close()
    entries = results(columns, chosen)
    for entry in entries:
        entry["limit_share"] = _share(entry, best, costs)
    return {
        "name": MODELS[model],
        "limits": best,
        "costs": costs,
        "columns": [{"name": c.name, "ours": c.ours, "about": c.child.about} for c in columns],
        "left_out": left_out,
        "points": entries,
    }


def _share(entry: dict[str, Any], limits: dict[str, float], costs: dict[str, float]) -> float | None:
    rate = entry["rates"]["minicpm4 dense"].get("tokens_per_s")
    if rate is None:
        return None
    if entry["kind"] == "decode":
        size = costs["decode_bytes"] + costs["decode_bytes_per_depth"] * entry["depth"]
        return float(rate * size / limits["bandwidth_bytes_per_s"])
    middle = entry["depth"] + entry["tokens"] / 2
    return float(
        rate * (costs["prefill_ops"] + costs["prefill_ops_per_depth"] * middle) / limits["float32_ops_per_s"]
    )


def main() -> None:
    args = arguments()
    watch, deadline = Watch(), time.monotonic() + 60 * args.minutes
    models = []
    for number, model in enumerate(args.models):
        share = SHARES[model] / sum(SHARES[later] for later in args.models[number:])
        left = deadline - time.monotonic()
        models.append(run_model(args, model, time.monotonic() + left * share))
    now = datetime.now(UTC)
    run = {
        "date": now.isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "system": platform.platform()},
        "threads": args.threads,
        "other_load": watch.others(),
        "models": models,
    }
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    file = args.results / f"cpu_peers_{cpu}_{now:%Y-%m-%d}.json"
    args.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run, indent=1) + "\n"
    file.write_text(text, encoding="utf-8")
    file.with_suffix(".md").write_text(markdown(run), encoding="utf-8")
    print(f"\n{markdown(run)}\nwrote {file.name} and its .md")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-python", default=sys.executable, help="Python that has llama-cpp-python")
    parser.add_argument("--openvino-python", default=sys.executable, help="Python that has openvino-genai")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="Python that has torch and transformers"
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        help="peers to leave out: llama.cpp, OpenVINO, transformers, or one of their columns",
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cap", type=float, default=20.0, help="seconds that one measurement may take")
    parser.add_argument("--minutes", type=float, default=10.0, help="no repeats after this time")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="folder for weights")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--deep", action="store_true", help="also depth 131,072: needs some 10 GB of memory")
    parser.add_argument("--smoke", action="store_true", help="few points, no depth beyond 2,048")
    return parser.parse_args()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    try:
        main()
    except Minicpm4Error as error:
        raise SystemExit(f"error: {error}") from None
