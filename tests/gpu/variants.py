"""Calls of the op table in the shapes of real models: what a compiler is to see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from minicpm4.config import SparseConfig
from minicpm4.kernels.gpu.table import GpuOps
from minicpm4.kernels.step import Accepted, KVLayer, Step, Tree
from tests.contract.packed import random_weight
from tests.gpu.arrays import DEVICE

WEIGHTS: list[tuple[str, int, int, bool]] = [
    ("int4", 128, 4096, False),
    ("int4", 32, 4096, True),
    ("int8", 64, 4096, False),
    ("ternary", 64, 4096, False),
    ("ternary", 32, 4096, False),
    ("bf16", 0, 4096, False),
    ("f32", 0, 576, False),
]
HEADS = [(32, 2, 128), (16, 2, 64), (9, 3, 64)]


def run_variants(*, quick: bool = False) -> None:
    """Every op, for one row, a few and many."""
    ops = GpuOps(DEVICE, torch.bfloat16)
    rng = np.random.default_rng(0)
    for case in WEIGHTS[:1] if quick else WEIGHTS:
        _products(ops, rng, case)
    for heads in HEADS[:1] if quick else HEADS:
        for rows in (1, 300) if quick else (1, 5, 300):
            _attention(ops, heads, rows, "bf16", lse_approx=heads[2] == 128)
    if not quick:
        _attention(ops, (9, 3, 64), 5, "float32", lse_approx=False)
        for heads in HEADS[:2]:
            _attention(ops, heads, 60, "bf16", lse_approx=True, tree=True)
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        _training(dtype)
    x = torch.zeros((3, 4096), device=DEVICE)
    ops.rms_norm(x, np.ones(4096, np.float32), 1e-5)
    ops.silu_mul(x, x)
    ops.log_sum_exp(x)


def _products(ops: GpuOps, rng: Any, case: tuple[str, int, int, bool]) -> None:
    from minicpm4.kernels.layer_weights import FeedForwardWeights, Linear

    columns = case[2]
    gate, up, down = (Linear(weight=random_weight(rng, 64, case)[0]) for _ in range(3))
    w = FeedForwardWeights(norm=np.ones(columns, np.float32), gate=gate, up=up, down=down, eps=1e-5)
    for rows in (1, 8, 300):
        x = torch.zeros((rows, columns), device=DEVICE)
        ops.gate_up(x, w)
        to = torch.zeros((rows, 64), device=DEVICE)
        ops.add_linear(to, x.bfloat16(), down, 0.2)
    ops.embed(gate.weight, np.zeros(2, np.int32), 12.0)


def _attention(
    ops: GpuOps, heads: tuple[int, int, int], rows: int, kv: str, *, lse_approx: bool, tree: bool = False
) -> None:
    hq, hkv, d = heads
    for sparse in (None, SparseConfig(lse_approx=lse_approx)):
        step = _step(rows, d, sparse)
        if tree:
            bits = np.uint64(1) << np.arange(rows, dtype=np.uint64)
            step = replace(step, tree=Tree(ancestors=bits, positions=np.zeros_like(step.positions)))
        layer = _layer(hkv, d, kv, sparse)
        dtype = torch.float32 if kv == "float32" else torch.bfloat16
        q, k, v = (torch.zeros((rows, count, d), dtype=dtype, device=DEVICE) for count in (hq, hkv, hkv))
        ops.append(k, v, layer, step)
        ops.rotary(q, step.positions, step.cos, step.sin)
        selection = ops.select(q, layer, step) if sparse else None
        ops.attend(q, layer, step, selection)
        if tree:
            first = np.array([0], np.int32)
            ops.settle(layer, step, Accepted(rows=first, cu_rows=np.array([0, 1], np.int32)))


def _training(dtype: torch.dtype) -> None:
    from minicpm4.kernels.gpu.sparse_train import gpu_sparse_attention

    for hq, hkv, d in HEADS:
        q = torch.zeros((3, hq, d), dtype=dtype, device=DEVICE, requires_grad=True)
        keys, values = (
            torch.zeros((9, 64, hkv, d), dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2)
        )
        blocks = torch.arange(8, dtype=torch.int32, device=DEVICE).expand(3, hkv, 8)
        gpu_sparse_attention(q, keys, values, blocks, torch.arange(509, 512, device=DEVICE)).sum().backward()


def _step(rows: int, d: int, sparse: SparseConfig | None, pages: int = 2048) -> Step:
    return Step(
        ids=np.zeros(rows, np.int32),
        positions=np.arange(rows, dtype=np.int32),
        cu_rows=np.array([0, rows], np.int32),
        page_table=np.zeros((1, pages), np.int32),
        cos=np.ones((rows, d // 2), np.float32),
        sin=np.zeros((rows, d // 2), np.float32),
        sparse=sparse,
    )


def _layer(hkv: int, d: int, kv: str, sparse: SparseConfig | None) -> KVLayer:
    from minicpm4.kernels.pages import page_arrays

    layout = page_arrays(kv, heads=hkv, d=d, page_size=64, sparse=sparse)
    types = {np.float32: torch.float32, np.uint16: torch.bfloat16, np.int16: torch.int16}
    return KVLayer(
        **{
            name: torch.zeros((8, *shape), dtype=types[dtype], device=DEVICE)
            for name, (shape, dtype) in layout.items()
        }
    )
