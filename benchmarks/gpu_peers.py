"""The GPU's kernels beside torch's fused attention and this GPU's own limits, in one run.

Parts: ``limits`` (copy bandwidth, bf16 products); ``attention`` (one layer at 32 query and 2 key/value heads
of 128: choice of blocks and attention over 16 and 96 blocks, torch's fused attention on the same tensors; how
many chosen blocks differ from those of scores in float64); ``training`` (attention over 64 chosen blocks,
forward and backward); ``engine`` (MiniCPM4-8B's shape with random weights in int4: decoding and prefill at
depth, dense and with 96 blocks). Every time is the median of several runs between events of the device, with
the spread.

    python benchmarks/gpu_peers.py [--parts limits,attention,training,engine] [--lengths 32768,131072]
    [--seconds 300] [--json FILE]

Needs torch with CUDA and Triton, and the package or its sources on PYTHONPATH. ``--tiny`` runs every line on
small shapes, under TRITON_INTERPRET=1 without a GPU: the figures then mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from commits import dated
from torch import Tensor
from torch.nn import functional

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.engine.executors import Executor
from minicpm4.engine.runner import Runner
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.evals.random_model import MINICPM4_05B, RandomCheckpoint
from minicpm4.files import finite, write_json
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.gpu.sparse_train import gpu_sparse_attention
from minicpm4.kernels.gpu.table import GpuOps
from minicpm4.kernels.pages import page_arrays
from minicpm4.kernels.sparse_grad import select_blocks
from minicpm4.kernels.step import KVLayer, Step
from minicpm4.model.loader import load_weights
from minicpm4.model.weight_plan import plan_weights

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAGE = 64
MINICPM4_8B = replace(
    MINICPM4_05B,
    hidden_size=4096,
    intermediate_size=16384,
    num_hidden_layers=32,
    num_attention_heads=32,
    head_dim=128,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
RELEASED = SparseConfig(dense_len=-1, lse_approx=True)  # 96 blocks
FEW = SparseConfig(dense_len=-1, topk=8, window_size=512, lse_approx=True)  # 16 blocks
CHOSEN = SparseConfig(dense_len=-1, topk=32, window_size=2048, lse_approx=True)  # 64 blocks
PARTS = ("limits", "attention", "training", "engine")


def main() -> None:
    given = parse()
    began = time.monotonic()
    report: dict[str, Any] = {
        **dated(),
        "gpu": torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "none: interpreted",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "tiny": given.tiny,
        "results": {},
    }
    functions = {"limits": limits, "attention": attention, "training": training, "engine": engine}
    for part in given.parts.split(","):
        if time.monotonic() - began > given.seconds:
            report["results"][part] = "left out: no time"
            continue
        report["results"][part] = functions[part](given)
        print(json.dumps({part: report["results"][part]}, indent=1), flush=True)
        if given.json:  # after every part: the machine may be gone before the next
            write_json(given.json, finite(report))


def parse() -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--lengths", default="32768,65536,131072")
    parser.add_argument("--seconds", type=float, default=300, help="no part is begun later than this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small shapes: does every line run?")
    given = parser.parse_args()
    if unknown := set(given.parts.split(",")) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(unknown))} is unknown; use {', '.join(PARTS)}")
    if DEVICE.type == "cpu" and not given.tiny:
        parser.error("no GPU that torch can use is here; --tiny with TRITON_INTERPRET=1 tries the lines")
    given.lengths = [400] if given.tiny else [int(x) for x in given.lengths.split(",")]
    return given


def timed(run: Callable[[], object], least: int = 5, seconds: float = 2.0) -> dict[str, float]:
    """Milliseconds: median, and half the range of the middle of the runs."""
    run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < least or (time.perf_counter() - began < seconds and len(times) < 100):
        times.append(once(run))
        if DEVICE.type == "cpu":
            break
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"ms": round(statistics.median(times), 4), "spread": round((quarters[2] - quarters[0]) / 2, 4)}


def once(run: Callable[[], object]) -> float:
    if DEVICE.type == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return float(before.elapsed_time(after))


def limits(given: argparse.Namespace) -> dict[str, Any]:
    """What this GPU copies (read and written) and multiplies."""
    count = 1 << (12 if given.tiny else 31)
    source, target = (torch.zeros(count, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    copied = timed(lambda: target.copy_(source))
    size = 64 if given.tiny else 8192
    a, b = (torch.randn(size, size, device=DEVICE).bfloat16() for _ in range(2))
    product = timed(lambda: a @ b)
    return {
        "copy GB/s": round(2 * count / copied["ms"] / 1e6, 1),
        "bf16 TFLOP/s": round(2 * size**3 / product["ms"] / 1e9, 1),
    }


class Layer:
    """Random queries, keys and values of one document of n tokens, paged, and a step of its last rows."""

    def __init__(self, n: int, sparse: SparseConfig | None, rows: int, heads: tuple[int, int, int]) -> None:
        self.ops = GpuOps(DEVICE)
        hq, hkv, d = heads
        random = torch.Generator(DEVICE).manual_seed(0)
        self.q, self.k, self.v = (
            torch.randn((n, count, d), generator=random, device=DEVICE).bfloat16() for count in (hq, hkv, hkv)
        )
        pages = -(-n // PAGE)
        self.kv = pages_of(pages, hkv, d, sparse)
        angles = torch.ones((n, d // 2), device=DEVICE), torch.zeros((n, d // 2), device=DEVICE)
        self.whole = make_step(0, n, pages, sparse, angles)
        self.step = self.whole if rows == n else make_step(n - rows, n, pages, sparse, angles)
        self.ops.append(self.k, self.v, self.kv, self.whole)
        self.rows = self.q[n - rows :]

    def select(self) -> Any:
        return self.ops.select(self.rows, self.kv, self.step)

    def attend(self, selection: Any) -> Any:
        return self.ops.attend(self.rows, self.kv, self.step, selection)


def pages_of(pages: int, hkv: int, d: int, sparse: SparseConfig | None) -> KVLayer:
    types = {np.uint16: torch.bfloat16, np.int16: torch.int16, np.float32: torch.float32}
    layout = page_arrays("bf16", heads=hkv, d=d, page_size=PAGE, sparse=sparse)
    arrays: Any = {
        name: torch.zeros((pages, *shape), dtype=types[dtype], device=DEVICE)
        for name, (shape, dtype) in layout.items()
    }
    return KVLayer(**arrays)


def make_step(start: int, stop: int, pages: int, sparse: SparseConfig | None, angles: Any) -> Step:
    return Step(
        ids=np.zeros(stop - start, np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        cu_rows=np.array([0, stop - start], np.int32),
        page_table=np.arange(pages, dtype=np.int32)[None],
        cos=angles[0],
        sin=angles[1],
        sparse=sparse,
    )


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's causal attention of q (n, hq, d): its fastest here, FlashAttention or cuDNN's."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention(given: argparse.Namespace) -> dict[str, Any]:
    """Prefill of whole documents, and one row at their end."""
    heads = (4, 2, 16) if given.tiny else (32, 2, 128)
    found: dict[str, Any] = {}
    for n in given.lengths:
        layer = Layer(n, FEW, n, heads)
        peer = timed(lambda layer=layer: fused(layer.q, layer.k, layer.v))
        own = timed(lambda layer=layer: layer.attend(None))
        row = {"torch fused": peer, "dense": own}
        for name, config in (("16 blocks", FEW), ("96 blocks", RELEASED)):
            layer = Layer(n, config, n, heads)
            chosen = layer.select()
            row[f"choice, {name}"] = timed(lambda layer=layer: layer.select())
            row[f"attention, {name}"] = timed(lambda layer=layer, chosen=chosen: layer.attend(chosen))
            took = row[f"choice, {name}"]["ms"] + row[f"attention, {name}"]["ms"]
            row[f"times torch fused, {name}"] = round(peer["ms"] / took, 2)
            row[f"blocks unlike the truth, {name}"] = unlike(layer, chosen, config)
            one = Layer(n, config, 1, heads)
            row[f"one row, choice and attention, {name}"] = timed(
                lambda one=one: one.ops.attention(one.rows, one.kv, one.step)
            )
        one = Layer(n, FEW, 1, heads)
        row["one row, dense"] = timed(lambda one=one: one.attend(None))
        found[f"{n} tokens"] = row
    return found


def unlike(layer: Layer, chosen: Any, config: SparseConfig, rows: int = 256) -> str:
    """Of the last rows' chosen blocks, how many the truth in float64 does not choose."""
    n, first = layer.q.shape[0], config.first_choosing
    rows = min(rows, n - first)
    if rows <= 0:
        return "none choose"
    # select_blocks takes whole documents; the last rows are scored with all keys before them.
    q = layer.q.double()
    expected = last_choices(q, layer.k.double(), config, rows)
    own = chosen.blocks[n - rows :]
    missing = (own[..., None] != expected[..., None, :]).all(dim=-1) & (own >= 0)
    return f"{int(missing.sum())} of {int((own >= 0).sum())}"


def last_choices(q: Tensor, k: Tensor, config: SparseConfig, rows: int) -> Tensor:
    from minicpm4.kernels import sparse_grad

    n = q.shape[0]
    place = torch.arange(n - rows, n, device=q.device)
    scaled = q[n - rows :] * q.shape[2] ** -0.5
    coarse = sparse_grad._compressed(k, config, sparse_grad.COARSE) if config.lse_approx else None
    scores = sparse_grad._block_scores(scaled, sparse_grad._compressed(k, config, 1), coarse, place, config)
    return sparse_grad._choose(scores, place, config)


def training(given: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward of attention over 64 chosen blocks, the choice apart."""
    hq, hkv, d = (4, 2, 16) if given.tiny else (32, 2, 128)
    config = replace(CHOSEN, topk=2, window_size=64) if given.tiny else CHOSEN
    found = {}
    for n in given.lengths:
        q, k, v = (
            torch.randn((n, heads, d), device=DEVICE).bfloat16().requires_grad_() for heads in (hq, hkv, hkv)
        )
        dy = torch.randn((n, hq, d), device=DEVICE).bfloat16()
        first = config.first_choosing
        place = torch.arange(first, n, device=DEVICE)

        def dense(q: Tensor = q, k: Tensor = k, v: Tensor = v, dy: Tensor = dy) -> None:
            fused(q, k, v).backward(dy.transpose(0, 1)[None])

        choice = timed(lambda q=q, k=k: select_blocks(q, k, config), least=2)
        blocks = select_blocks(q, k, config)
        rows = (place, blocks, first)

        def sparse(q: Tensor = q, k: Tensor = k, v: Tensor = v, dy: Tensor = dy, rows: Any = rows) -> None:
            place, blocks, first = rows
            keys, values = (functional.pad(x, (0, 0, 0, 0, 0, -x.shape[0] % PAGE)) for x in (k, v))
            keys, values = (x.unflatten(0, (-1, PAGE)) for x in (keys, values))
            head = fused(q[:first], k[:first], v[:first])[0].transpose(0, 1)
            tail = gpu_sparse_attention(q[first:], keys, values, blocks, place)
            torch.cat([head, tail]).backward(dy)

        peer, own = timed(dense), timed(sparse)
        found[f"{n} tokens"] = {
            "torch fused, forward and backward": peer,
            "64 blocks, forward and backward": own,
            "times torch fused": round(peer["ms"] / own["ms"], 2),
            "choice of blocks (torch)": choice,
        }
    return found


def engine(given: argparse.Namespace) -> dict[str, Any]:
    """Decoding and prefill of the whole model, dense and sparse, at depth 0 and at the longest length."""
    config = MINICPM4_8B
    if given.tiny:
        small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 320}
        config = replace(config, **small, num_attention_heads=4, head_dim=32)
    depth = max(given.lengths)
    checkpoint = RandomCheckpoint(config, stored)
    weights = load_weights(checkpoint, config, plan_weights(checkpoint, config)).weights
    found: dict[str, Any] = {"weights GB": round(weights.nbytes / 1e9, 3)}
    for name, sparse in (("dense", None), ("96 blocks", RELEASED)):
        runner, pages = make_runner(config, weights, sparse, depth)
        points = {}
        for at in (0, depth):
            points[f"decode at {at}"] = timed(decode(runner, pages, at), seconds=3)
        count = 64 if given.tiny else 4096
        whole = list(range(0, depth, count))
        chunks = [
            prefill(runner, pages, start, count) for start in (whole[0], whole[len(whole) // 2], whole[-1])
        ]
        took = [timed(run, least=2, seconds=1)["ms"] for run in chunks]
        # Time of a chunk grows linearly with its depth: mean of begin, middle and end (Simpson's rule).
        points[f"prefill of {depth}, s, from three chunks of {count}"] = round(
            (took[0] + 4 * took[1] + took[2]) / 6 * len(whole) / 1e3, 3
        )
        points["chunks, ms"] = [round(x, 2) for x in took]
        found[name] = points
        del runner
    return found


def stored(name: str, shape: tuple[int, int]) -> QuantSpec:
    """INT4 in groups of 128, embeddings and head in bf16, as the released GPTQ checkpoints."""
    wide = "embed" in name or "lm_head" in name
    return QuantSpec(kind="bf16") if wide else QuantSpec(kind="int4", group_size=min(128, shape[1]))


def make_runner(
    config: ModelConfig, weights: Any, sparse: SparseConfig | None, depth: int
) -> tuple[Runner, list[int]]:
    """A runner whose pages hold random keys and values."""
    pages = depth // PAGE + 2
    executor = Executor(
        GpuOps(DEVICE), config,
        context=pages * PAGE, num_pages=pages, page_size=PAGE, kv="bf16", sparse=sparse,
    )  # fmt: skip
    arrays: Any = executor.pool._arrays
    for name, tensor in arrays.items():
        if tensor.dtype == torch.int16:
            tensor.random_(-2800, 2800)  # of a norm near 32766 at 128 numbers
        else:
            tensor.normal_() if "scales" not in name else tensor.fill_(11.0 / 32766)
    runner = executor.runner(weights, sparse, max_rows=4096, max_sequences=8)
    return runner, list(range(pages))


def decode(runner: Runner, pages: list[int], depth: int) -> Callable[[], object]:
    sequence = Sequence(0, [1] * (depth + 1), depth + 2)
    sequence.pages = pages[: depth // PAGE + 1]
    sequence.computed = depth
    plan = StepPlan([Span.next(sequence, 1)])
    return lambda: runner.execute(plan).logits


def prefill(runner: Runner, pages: list[int], start: int, count: int) -> Callable[[], object]:
    sequence = Sequence(0, [1] * (start + count), start + count + 1)
    sequence.pages = pages[: -(-(start + count) // PAGE)]
    sequence.computed = start
    plan = StepPlan([Span.next(sequence, count)])
    return lambda: runner.execute(plan).logits


if __name__ == "__main__":
    sys.exit(main())
