"""How long weights take to load: converted (the first start) and as kept on disk (all later ones).

A checkpoint of a published shape is written in bf16 with random weights to a temporary folder; each load is a
process of its own. "cold": the system was asked to forget the file before it was read, and its cache
was seen to have shrunk; what a virtual disk's host holds it cannot forget. Memory is the process's peak.

    .venv/bin/python benchmarks/load_time.py [--shape 0.5b|8b] [--layers N] [--weights int4] [--json FILE]
    .venv/bin/python benchmarks/load_time.py --checkpoint FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from commits import heading

from minicpm4.files import write_file
from minicpm4.machine import total_cores

ROOT = Path(__file__).parents[1]
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {},
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": 128,
        "rope_scaling": None,
        "tie": False,
    },
}


def main() -> None:
    arguments = parse()
    if arguments.child:
        child(Path(arguments.child), arguments.weights)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        model = Path(arguments.checkpoint) if arguments.checkpoint else make(arguments, Path(place) / "model")
        report = measure(arguments, model, Path(place) / "kept")
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        write_file(Path(arguments.json), text + "\n")


def make(arguments: argparse.Namespace, folder: Path) -> Path:
    sys.path.insert(0, str(ROOT))
    from tests.fixtures.random_checkpoint import make_minicpm4_half_billion

    shape = SHAPES[arguments.shape] | ({"num_hidden_layers": arguments.layers} if arguments.layers else {})
    return make_minicpm4_half_billion(folder, **shape)


def measure(arguments: argparse.Namespace, model: Path, place: Path) -> dict[str, Any]:
    """Load again and again; the first time converts."""
    os.environ["MINICPM4_KEPT_WEIGHTS"] = str(place)
    loads = {"first": [load(model, arguments.weights)], "warm": [], "cold": []}
    if not place.is_dir():
        raise SystemExit(f"nothing was kept: {loads['first'][0]['notes']}")
    (kept,) = place.iterdir()
    size = kept.stat().st_size
    for _ in range(arguments.repeats):
        loads["warm"].append(load(model, arguments.weights))
        forget(kept)
        loads["cold"].append(load(model, arguments.weights))
    files = [model] if model.is_file() else list(model.glob("*.safetensors"))
    report: dict[str, Any] = {
        **heading(),
        "cores": total_cores(),
        "load average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "checkpoint": (arguments.checkpoint and model.name) or f"random, shape {arguments.shape}",
        "layers": loads["first"][0]["layers"],
        "weights": arguments.weights,
        "checkpoint, GB": round(sum(file.stat().st_size for file in files) / 1e9, 3),
        "kept, GB": round(size / 1e9, 3),
    }
    for name, found in loads.items():
        least = min(one["seconds"] for one in found)
        report[name] = {
            "seconds": round(median(one["seconds"] for one in found), 3),
            "least seconds": round(least, 3),
            "processor seconds": round(min(one["processor"] for one in found), 3),
            "peak memory, GB": round(max(one["peak"] for one in found) / 1e9, 3),
            "GB/s": round(size / 1e9 / least, 2),
            "notes": found[0]["notes"],
        }
    return report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of loading weights, converted and kept.")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="a folder or .gguf file instead of random weights"
    )
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the temporary files go")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def load(model: Path, weights: str) -> dict[str, Any]:
    """Load in a process of its own."""
    command = [sys.executable, __file__, "--child", str(model), "--weights", weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(model: Path, weights: str) -> None:
    from minicpm4.kernels.registry import resolve
    from minicpm4.model.loader import load_weights
    from minicpm4.model.packed_cache import weight_cache
    from minicpm4.model.source import open_model
    from minicpm4.model.weight_plan import plan_weights

    ops = resolve("cpu")
    before, processor = time.perf_counter(), time.process_time()
    found = open_model(model)
    cache = weight_cache(found.checkpoint, weights, ops.layout)
    plan = plan_weights(found.checkpoint, found.config, weights)
    loaded = load_weights(found.checkpoint, found.config, plan, None, ops, cache)
    report = {
        "seconds": time.perf_counter() - before,
        "processor": time.process_time() - processor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "layers": loaded.config.num_hidden_layers,
        "notes": re.sub(r"\s+", " ", loaded.notes),
    }
    print(json.dumps(report))


def forget(file: Path) -> None:
    """Have the system drop its cache of a file, which it does with pages that are on disk already."""
    handle = os.open(file, os.O_RDONLY)
    try:
        before = cached()
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        if before - cached() < file.stat().st_size // 2:
            print("the file may still be cached: cold figures are not to be trusted", file=sys.stderr)
    finally:
        os.close(handle)


def cached() -> int:
    """Bytes of files in the system's cache."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
