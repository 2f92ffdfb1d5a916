"""What several rows of x cost beside one, by level of kernels and format of weights.

Matrices of a layer's shapes, together larger than the processor's cache, are multiplied one after another,
so that weights come from memory as they do when a model decodes. All levels and numbers of rows take turns,
so that what the machine does meanwhile meets all; told is the least time of each (and the median, in the
file) as GB/s, GOP/s, and a multiple of the first number of rows. With one thread times are processor time.

    .venv/bin/python benchmarks/rows.py [--levels avx2,avx512_bf16] [--formats q4_k,q6_k] [--rows 1,4,8,16]
        [--shapes 4864x896,896x4864] [--threads 2] [--repeats 15] [--activations int8] [--cached]
        [--json FILE]

``--cached``: one matrix of each shape, which stays in a cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from commits import heading

from minicpm4.files import json_text, write_file
from minicpm4.formats.quant import PackedTensor, QuantSpec, ScaleForm, packed_shapes, scale_types
from minicpm4.kernels.cpu import CpuOps, isa_levels
from minicpm4.kernels.layer_weights import Linear
from minicpm4.machine import cpu_name, watch_others

# kind, group, scales, offsets
FORMATS: dict[str, tuple[str, int, ScaleForm, bool]] = {
    "int4-g32": ("int4", 32, "f16", False),
    "int4-g64": ("int4", 64, "f16", False),
    "q4_k": ("int4", 32, "steps", True),
    "q5_0": ("int5", 32, "f16", False),
    "q6_k": ("int6", 16, "steps", False),
    "q8_0": ("int8", 32, "f16", False),
    "ternary": ("ternary", 64, "f16", False),
}
SHAPES = ((4864, 896), (896, 4864))
FROM_MEMORY = 128 << 20  # bytes of weights at least; a shared third level may have 32 MB


def drawn(rng: np.random.Generator, shape: tuple[int, int], format: str) -> PackedTensor:
    """Random weights of a shape; scales of one level where its columns have none of two."""
    kind, group, form, offsets = FORMATS[format]
    spec = QuantSpec(kind=kind, group_size=group)
    shapes = packed_shapes(shape, spec, "rows")
    parts: dict[str, Any] = {}
    for part, one in scale_types("f16" if shape[1] % 256 else form, offsets).items():
        values = (
            rng.uniform(0.001, 0.01, shapes[part]) if one.kind == "f" else rng.integers(0, 64, shapes[part])
        )
        parts[part] = values.astype(one)
    codes = rng.integers(0, 256, shapes["codes"], np.uint8).view(spec.row.codes)
    if kind == "ternary":  # no field of two bits is 3
        codes &= ~(codes & codes >> np.uint8(1) & np.uint8(0x55)) & np.uint8(0xFF)
    return PackedTensor(spec=spec, shape=shape, codes=codes, **parts)


@dataclass
class Case:
    """One level with its own copies of the matrices."""

    ops: CpuOps
    linears: list[Linear]
    outputs: dict[int, list[Any]]

    def once(self, xs: dict[int, dict[int, Any]], n: int) -> float:
        """Seconds of all products by n rows; of one thread its processor time: others touch that less."""
        clock = time.thread_time if self.ops.threads == 1 else time.perf_counter
        began = clock()
        for linear, out in zip(self.linears, self.outputs[n], strict=True):
            self.ops.linear(xs[n][linear.weight.shape[1]], linear, out)
        return clock() - began


def prepared(args: argparse.Namespace, level: str, format: str, rows: Sequence[int]) -> Case:
    rng = np.random.default_rng(0)
    ops = CpuOps(args.threads, level, narrow=args.activations == "int8")
    each = [ops.prepare(drawn(rng, shape, format)) for shape in args.shapes]
    size = sum(one.nbytes for one in each)
    copies = 1 if args.cached else -(-FROM_MEMORY // size)
    linears = [Linear(weight=one) for one in each]
    for _ in range(copies - 1):
        linears += [Linear(weight=ops.prepare(drawn(rng, shape, format))) for shape in args.shapes]
    outputs = {n: [np.empty((n, shape[0]), np.float32) for shape in args.shapes] * copies for n in rows}
    return Case(ops, linears, outputs)


def measured(args: argparse.Namespace, format: str) -> list[dict[str, Any]]:
    """A line for each level and number of rows."""
    rng = np.random.default_rng(1)
    widths = {shape[1] for shape in args.shapes}
    xs = {n: {k: rng.standard_normal((n, k), np.float32) for k in widths} for n in args.rows}
    cases = {level: prepared(args, level, format, args.rows) for level in args.levels}
    seen: dict[tuple[str, int], list[float]] = {}
    for turn in range(args.repeats + 1):
        for n in args.rows:
            for level, case in cases.items():
                seconds = case.once(xs, n)
                if turn:  # the first is for pages and caches
                    seen.setdefault((level, n), []).append(seconds)
    lines = []
    for level, case in cases.items():
        size = sum(linear.weight.nbytes for linear in case.linears)
        products = sum(int(np.prod(linear.weight.shape)) for linear in case.linears)
        one = min(seen[level, args.rows[0]])
        for n in args.rows:
            least = min(seen[level, n])
            lines.append(
                {
                    "format": format,
                    "level": level,
                    "rows": n,
                    "us": 1e6 * least / len(case.linears),
                    "median_us": 1e6 * statistics.median(seen[level, n]) / len(case.linears),
                    "gb_per_s": 1e-9 * size / least,
                    "gop_per_s": 2e-9 * products * n / least,
                    "of_first": least / one,
                }
            )
    return lines


def table(lines: Sequence[dict[str, Any]], rows: Sequence[int]) -> str:
    """A row for each format and level: GB/s of the first number of rows, then multiples and GOP/s."""
    head = ["format", "level", f"{rows[0]}: GB/s", *(f"{n}: x, GOP/s" for n in rows[1:])]
    text = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * len(rows)]
    for key in dict.fromkeys((line["format"], line["level"]) for line in lines):
        own = [line for line in lines if (line["format"], line["level"]) == key]
        cells = [*key, f"{own[0]['gb_per_s']:.1f}"]
        cells += [f"{line['of_first']:.2f}, {line['gop_per_s']:.0f}" for line in own[1:]]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _shape(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    grouped = [level for level in isa_levels() if CpuOps(1, level).prepares]
    parser.add_argument("--levels", type=lambda text: text.split(","), default=grouped)
    parser.add_argument("--formats", type=lambda text: text.split(","), default=list(FORMATS))
    parser.add_argument(
        "--rows", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8, 16]
    )
    parser.add_argument("--shapes", type=lambda text: tuple(map(_shape, text.split(","))), default=SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--activations", choices=("auto", "int8"), default="auto")
    parser.add_argument(
        "--cached", action="store_true", help="one matrix of each shape: weights stay in a cache"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    others = watch_others()
    lines = [line for format in args.formats for line in measured(args, format)]
    print(table(lines, args.rows))
    busy = others()
    print(f"{cpu_name()}, {args.threads} threads; other processes used {busy or 0:.0%} of all cores")
    if args.json is not None:
        facts = {name: value for name, value in vars(args).items() if name != "json"}
        head = {**heading(), "other_processes": busy, "arguments": facts}
        write_file(args.json, json_text(head | {"lines": lines}))


if __name__ == "__main__":
    main()
