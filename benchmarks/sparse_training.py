"""Attention in training, dense and sparse: seconds of forward and backward, and what memory they take.

Random queries, keys and values of one document; dense is torch's fused attention, sparse is
kernels/sparse_grad.py, its choice of blocks included. One thread, processor time, the least of some turns.
Memory is the process's peak over what it had before, of a process of its own for each point.

    .venv/bin/python benchmarks/sparse_training.py [--lengths 4096,16384] [--heads 16,2] [--head-dim 64]
    [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from commits import heading

from minicpm4.config import SparseConfig
from minicpm4.files import write_file
from minicpm4.kernels.autograd import TorchKV, TorchOps

ROOT = Path(__file__).parents[1]
KINDS = {
    "dense": None,
    "sparse, 16 blocks": SparseConfig(dense_len=-1, topk=8, window_size=512),
    "sparse, 96 blocks": SparseConfig(dense_len=-1),
}


def main() -> None:
    arguments = parse()
    if arguments.child:
        print(json.dumps(measure(json.loads(arguments.child))))
        return
    heads = [int(x) for x in arguments.heads.split(",")]
    points = []
    for length in (int(x) for x in arguments.lengths.split(",")):
        for kind in KINDS:
            shape = {"length": length, "kind": kind, "heads": heads, "d": arguments.head_dim}
            command = [sys.executable, __file__, "--child", json.dumps(shape | {"turns": arguments.turns})]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            points.append(shape | json.loads(answer.stdout))
            print(show(points[-1]), file=sys.stderr, flush=True)
    report = {
        **heading(),
        "torch": torch.__version__,
        "dtype": "float32",
        "points": points,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        write_file(Path(arguments.json), text + "\n")


def measure(shape: dict[str, Any]) -> dict[str, Any]:
    """Seconds of choosing, forward and backward, and the peak of memory above the start, in MB."""
    torch.set_num_threads(1)
    n, (hq, hkv), d, sparse = shape["length"], shape["heads"], shape["d"], KINDS[shape["kind"]]
    generator, ops = torch.Generator().manual_seed(0), TorchOps()
    q, k, v = (torch.randn(n, h, d, generator=generator).requires_grad_() for h in (hq, hkv, hkv))
    step: Any = SimpleNamespace(cu_rows=[0, n], sparse=sparse)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = [float("inf")] * 3
    for _ in range(shape["turns"]):
        kv: Any = TorchKV(hkv, d)
        ops.append(k, v, kv, step)
        marks = [time.process_time()]
        selection = ops.select(q, kv, step) if sparse else None
        marks.append(time.process_time())
        out = ops.attend(q, kv, step, selection)
        marks.append(time.process_time())
        out.sum().backward()
        marks.append(time.process_time())
        best = [min(old, b - a) for old, a, b in zip(best, marks, marks[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = {name: round(s, 3) for name, s in zip(("choose", "forward", "backward"), best, strict=True)}
    return seconds | {"total": round(sum(best), 3), "peak_mb": round(peak / 1024)}


def show(point: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {point[name]:7.3f} s" for name in ("choose", "forward", "backward", "total"))
    return f"{point['length']:6d} tokens  {point['kind']:18s}  {times}  {point['peak_mb']:6d} MB"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="4096,16384", help="tokens of a document")
    parser.add_argument("--heads", default="16,2", help="query heads and key/value heads")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", help="write the result here as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
