"""The GPU's op table behind NumPy arrays, so that the tests of the contract can ask it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.gpu.table import GpuOps
from minicpm4.kernels.gpu.weights import to_device
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Accepted, Array, Ints, KVLayer, Selection, Step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OnArrays(OpTable):
    """``GpuOps`` whose arguments and results are NumPy arrays; pages are written back after each append."""

    name = "gpu"
    isa = "gpu"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.inner = GpuOps(DEVICE, dtype)
        self.description = self.inner.description

    def embed(self, table: PackedTensor, ids: Ints, scale: float, out: Array | None = None) -> Array:
        return array(self.inner.embed(table, ids, scale))

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
        return array(self.inner.rms_norm(tensor(x), weight, eps))

    def linear(self, x: Array, linear: Linear, out: Array | None = None) -> Array:
        return array(self.inner.linear(tensor(x), linear))

    def rotary(self, x: Array, positions: Ints, cos: Array, sin: Array) -> Array:
        return array(self.inner.rotary(tensor(x), positions, cos, sin))

    def append(self, k: Array, v: Array, kv: KVLayer, step: Step) -> None:
        pages = on_device(kv)
        self.inner.append(tensor(k), tensor(v), pages, step)
        write_back(pages, kv)

    def settle(self, kv: KVLayer, step: Step, accepted: Accepted) -> None:
        pages = on_device(kv)
        self.inner.settle(pages, step, accepted)
        write_back(pages, kv)

    def select(self, q: Array, kv: KVLayer, step: Step) -> Selection:
        chosen: Any = self.inner.select(tensor(q), on_device(kv), step)
        return Selection(blocks=array(chosen.blocks), counts=array(chosen.counts))

    def attend(
        self, q: Array, kv: KVLayer, step: Step, selection: Selection | None, out: Array | None = None
    ) -> Array:
        chosen: Any = selection
        if selection is not None:
            chosen = Selection(blocks=tensor(selection.blocks), counts=tensor(selection.counts))  # type: ignore[arg-type]
        return array(self.inner.attend(tensor(q), on_device(kv), step, chosen))

    def silu_mul(self, gate: Array, up: Array, out: Array | None = None) -> Array:
        return array(self.inner.silu_mul(tensor(gate), tensor(up)))

    def log_sum_exp(self, logits: Array) -> Array:
        return array(self.inner.log_sum_exp(tensor(logits)))

    def top_k(self, logits: Array, k: int) -> tuple[Array, Array]:
        values, columns = self.inner.top_k(tensor(logits), k)
        return array(values), array(columns)

    def qkv(self, x: Array, w: Any, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        pages = on_device(kv)
        q = self.inner.qkv(tensor(x), w, pages, step)
        write_back(pages, kv)
        return array(q)

    def add_linear(self, x: Array, a: Array, linear: Linear, scale: float) -> Array:
        return array(self.inner.add_linear(tensor(x), tensor(a), linear, scale))

    def gate_up(self, x: Array, w: Any, out: Array | None = None) -> Array:
        return array(self.inner.gate_up(tensor(x), w))


def tensor(x: Array) -> Any:
    return to_device(x, DEVICE)


def array(x: Any) -> Any:
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def on_device(kv: KVLayer) -> KVLayer:
    """``kv`` in tensors."""
    arrays = {f.name: getattr(kv, f.name) for f in fields(kv) if f.init}
    return replace(kv, **{name: tensor(x) for name, x in arrays.items() if isinstance(x, np.ndarray)})


def write_back(pages: Any, kv: KVLayer) -> None:
    for f in fields(kv):
        to = getattr(kv, f.name) if f.init else None
        if isinstance(to, np.ndarray):
            found = getattr(pages, f.name).cpu()
            raw = found.view(torch.int16).numpy().view(np.uint16) if to.dtype == np.uint16 else found.numpy()
            to[...] = raw
