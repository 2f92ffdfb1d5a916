"""Where the time of a step goes, by op of the forward: milliseconds, and GB/s of the weights that it reads.

    .venv/bin/python benchmarks/ops.py MODEL [--isa avx2] [--threads 2] [--rows 1] [--depth 0]
        [--prefill TOKENS] [--activations int8] [--repeats 5] [--json FILE]

A step decodes one token of each of ``--rows`` sequences, or reads ``--prefill`` tokens of one. Matrices of
one op and kind of weights are a line. Told is the median of the steps of the fastest repeat; the rest of a
step is what lies between the ops: Python (some microseconds a call are this script's own), and the plan of
the step. The bandwidth is that of a plain read in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commits import heading

from minicpm4.evals.limits import measure_limits
from minicpm4.evals.random_model import open_any
from minicpm4.evals.speed import BenchModel, BenchOptions, Point
from minicpm4.files import json_text, write_file
from minicpm4.machine import cpu_name, watch_others

STEPS = 24


def weights_of(name: str, values: tuple[Any, ...]) -> list[Any]:
    """The packed matrices that a call of an op reads whole."""
    if name == "qkv":
        return [values[1].q.weight, values[1].k.weight, values[1].v.weight]
    if name == "gate_up":
        return [values[1].gate.weight, values[1].up.weight]
    if name == "add_linear":
        return [values[2].weight]
    return [values[1].weight] if name == "linear" else []


class Clock:
    """Seconds and bytes of weights of each op by kind of weights, summed over a step."""

    def __init__(self, ops: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.read: dict[str, int] = defaultdict(int)
        self._known: dict[tuple[str, int], tuple[str, int]] = {}
        ops.runs_layers = False  # in one call: their ops would not be seen
        for name in ("embed", "qkv", "attention", "add_linear", "gate_up", "linear", "rms_norm"):
            setattr(ops, name, self._timed(name, getattr(ops, name)))

    def _timed(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            began = time.perf_counter()
            found = op(*values)
            taken = time.perf_counter() - began
            key, read = self._described(name, values)
            self.seconds[key] += taken
            self.read[key] += read
            return found

        return run

    def _described(self, name: str, values: tuple[Any, ...]) -> tuple[str, int]:
        """The line of a call, and the bytes of weights that it reads; worked out once for each matrix."""
        held = values[2] if name == "add_linear" else values[1] if len(values) > 1 else None
        place = name, id(getattr(held, "weight", held) if weights_of(name, values) else None)
        if place not in self._known:
            weights = weights_of(name, values)
            kinds = "+".join(dict.fromkeys(str(one.spec) for one in weights))
            wide = name == "add_linear" and weights[0].shape[1] > weights[0].shape[0]
            label = {"add_linear": "down" if wide else "o", "linear": "head"}.get(name, name)
            self._known[place] = f"{label} {kinds}".strip(), sum(one.nbytes for one in weights)
        return self._known[place]

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        found = dict(self.seconds), dict(self.read)
        self.seconds.clear()
        self.read.clear()
        return found


def steps(
    model: BenchModel, clock: Clock, args: argparse.Namespace
) -> list[tuple[float, dict[str, float], dict[str, int]]]:
    """Each step: its seconds, and those of its ops with the bytes that they read."""
    found = []
    for at in range(1 if args.prefill else STEPS):
        kind = "prefill" if args.prefill else "decode"
        tokens, batch = (args.prefill, 1) if args.prefill else (1, args.rows)
        point = Point(kind=kind, attention="dense", depth=args.depth + at, tokens=tokens, batch=batch)
        model.fill(point.depth, batch)
        clock.take()
        seconds = model.seconds(point)
        found.append((seconds, *clock.take()))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--prefill", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--activations", choices=("auto", "int8"), default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.isa:
        os.environ["MINICPM4_ISA"] = args.isa
    opened = open_any(args.model, "auto", ())
    options = BenchOptions(
        attentions=("dense",),
        threads=args.threads,
        batch=args.rows,
        activations=args.activations,
        chunk=max(512, args.prefill),
    )
    room = args.depth + max(512, args.prefill, STEPS + 1)
    model = BenchModel(opened.checkpoint, opened.config, options, room)
    model.warm_up()
    others, limits = watch_others(), measure_limits(model.ops, args.threads)
    clock = Clock(model.ops)
    repeats = [steps(model, clock, args) for _ in range(args.repeats)]
    best = min(repeats, key=lambda one: statistics.median(step[0] for step in one))
    whole = statistics.median(step[0] for step in best)
    lines = []
    for key in best[0][1]:
        seconds = statistics.median(step[1].get(key, 0.0) for step in best)
        read = best[0][2].get(key, 0)
        lines.append({"op": key, "ms": 1e3 * seconds, "share": seconds / whole, "mb": 1e-6 * read})
    rest = whole - sum(line["ms"] for line in lines) / 1e3
    lines.append({"op": "rest", "ms": 1e3 * rest, "share": rest / whole, "mb": 0.0})
    print(f"| {model.ops.description} | ms | share | MB | GB/s |\n| --- | ---: | ---: | ---: | ---: |")
    for line in lines:
        rate = f"{line['mb'] / line['ms']:.1f}" if line["mb"] else ""
        print(f"| {line['op']} | {line['ms']:.2f} | {line['share']:.0%} | {line['mb']:.0f} | {rate} |")
    total = sum(line["mb"] for line in lines)
    print(f"| step | {1e3 * whole:.2f} | | {total:.0f} | {total / 1e3 / whole:.1f} |")
    busy = others()
    print(
        f"{cpu_name()}, a plain read {1e-9 * limits.bandwidth:.1f} GB/s; others used {busy or 0:.0%} of cores"
    )
    if args.json is not None:
        facts = {name: str(value) if name == "json" else value for name, value in vars(args).items()}
        head = {**heading(), "arguments": facts, "kernels": model.ops.description}
        found = head | {
            "bandwidth": limits.bandwidth,
            "other_processes": busy,
            "step_ms": 1e3 * whole,
            "ops": lines,
        }
        write_file(args.json, json_text(found))


if __name__ == "__main__":
    main()
