"""Calls of the extension with arrays and settings that do not fit together: refused, or within their arrays.

Behind each array lies memory that may not be touched (guard.py), and arrays may lie over one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from minicpm4 import _cpu
from minicpm4.config import SparseConfig
from minicpm4.formats.quant import PARTS, PackedTensor
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.pages import page_arrays
from tests.contract.packed import FORMATS, random_weight
from tests.fuzz.guard import Guard
from tests.fuzz.reader import Reader

_DTYPES = [
    np.float32,
    np.float64,
    np.float16,
    np.int32,
    np.int64,
    np.int16,
    np.int8,
    np.uint8,
    np.uint16,
    np.uint64,
]
_INTS = [
    -(1 << 63),
    -(1 << 31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    5,
    16,
    64,
    1 << 20,
    (1 << 24) - 1,
    1 << 24,
    1 << 31,
    1 << 62,
]
_PAGES = (
    "keys",
    "values",
    "key_scales",
    "value_scales",
    "compressed",
    "compressed_scales",
    "coarse",
    "coarse_scales",
)
_ROWS = ("positions", "cu_rows", "page_table", "cos", "sin", "ancestors", "angles", "sparse", "kernel_size")
_ROWS += (
    "kernel_stride",
    "init_blocks",
    "local_blocks",
    "topk",
    "block_size",
    "dense_len",
    "lse_approx",
    "use_nope",
)
_LEVELS = [*_cpu.isa_levels(), *_cpu.emulated_levels()]
_NARROW = [level for level in _LEVELS if "int8" in CpuOps(1, level).activations]
Values = dict[str, Any]
_UNITS = {"f32": 1, "f16": 1, "bf16": 1, "int8": 16, "int4": 32, "int5": 32}  # columns; others: 64


class _World:
    """Arguments that fit together, of all ops, drawn from ``rng``."""

    def __init__(self, rng: Random, ops: CpuOps) -> None:
        self.ops = ops
        self.rng, self.random = rng, np.random.default_rng(rng.getrandbits(32))
        self.d, self.hkv = rng.choice([2, 4, 16, 18, 64]), rng.choice([1, 2, 3])
        self.hq = self.hkv * rng.choice([1, 2, 4])
        stride = rng.choice([2, 4, 16])
        block = stride * rng.choice([1, 2, 4])
        self.sparse = SparseConfig(
            kernel_size=stride * rng.choice([1, 2, 3]),
            kernel_stride=stride,
            init_blocks=rng.choice([0, 1]),
            block_size=block,
            window_size=block * rng.choice([1, 2]),
            topk=rng.choice([1, 2, 5]),
            dense_len=rng.choice([-1, 0, 40]),
        )
        self.kv = rng.choice(["float32", "bf16", "int8"])
        lengths = [rng.randint(1, 70) for _ in range(rng.choice([1, 1, 2, 3]))]
        self.lengths, self.starts = lengths, [rng.choice([0, rng.randrange(n)]) for n in lengths]
        self.n = sum(n - start for n, start in zip(lengths, self.starts, strict=True))
        self.most = max(-(-n // block) for n in lengths)
        self.pages = self.most * len(lengths) + 1

    def floats(self, *shape: int) -> Any:
        return self.random.standard_normal(shape, np.float32)

    def pages_values(self) -> Values:
        layout = page_arrays(
            self.kv, heads=self.hkv, d=self.d, page_size=self.sparse.block_size, sparse=self.sparse
        )
        values: Values = dict.fromkeys(_PAGES)
        for name, (shape, dtype) in layout.items():
            values[name] = self.floats(self.pages, *shape).astype(dtype)
        return values | {"window": self.rng.choice([0, 0, 0, 5])}

    def rows_values(self) -> Values:
        ranges = list(zip(self.starts, self.lengths, strict=True))
        c = self.sparse
        tree = self.rng.random() < 0.15 and max(b - a for a, b in ranges) <= 64
        positions = np.concatenate([np.arange(a, b) for a, b in ranges]).astype(np.int32)
        chain = [(1 << (i + 1)) - 1 for a, b in ranges for i in range(b - a)]
        return {
            "positions": positions,
            "cu_rows": np.cumsum([0, *[b - a for a, b in ranges]]).astype(np.int32),
            "page_table": self.random.permutation(self.pages)[: self.most * len(ranges)]
            .astype(np.int32)
            .reshape(len(ranges), self.most),
            "cos": self.floats(max(self.lengths), self.d // 2),
            "sin": self.floats(max(self.lengths), self.d // 2),
            "ancestors": np.array(chain, np.uint64) if tree else None,
            "angles": positions.copy() if tree else None,
            "sparse": self.rng.random() < 0.8,
            "kernel_size": c.kernel_size,
            "kernel_stride": c.kernel_stride,
            "init_blocks": c.init_blocks,
            "local_blocks": c.local_blocks,
            "topk": c.topk,
            "block_size": c.block_size,
            "dense_len": c.dense_below,
            "lse_approx": False,
            "use_nope": self.rng.random() < 0.2,
        }

    def weight_values(self, rows: int) -> Values:
        packed, _ = random_weight(self.random, rows, self.rng.choice(FORMATS))
        return _values(packed)

    def matrix_values(self, rows: int, cols: int) -> Values:
        """A matrix of one of the formats that have so many columns, in panels where it may be."""
        fits = [
            (kind, group, cols, offsets)
            for kind, group, _, offsets in FORMATS
            if cols % max(group, 1) == 0 and cols % _UNITS.get(kind, 64) == 0
        ]
        packed, _ = random_weight(self.random, rows, self.rng.choice(fits))
        return _values(self.ops.prepare(packed) if self.rng.random() < 0.6 else packed)


def _values(packed: PackedTensor) -> Values:
    """The arguments of Weight."""
    values: Values = {"kind": packed.spec.kind, "layout": packed.layout}
    values |= dict(zip(("rows", "cols"), packed.shape, strict=True)) | {"group": packed.spec.group_size}
    return values | {part: getattr(packed, part) for part in PARTS}


_MOST = 1 << 24  # elements of an odd array


def _odd(rng: Random, value: Any, others: list[Any]) -> Any:
    """Another value in place of one argument."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*_INTS, value + 1, value - 1, value * 2])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    if isinstance(value, str):
        return rng.choice(["int4", "int8", "ternary", "f32", "bf16", "int3", "int6", "panels", "rows", "x"])
    if value is None:
        return rng.choice([one for one in others if isinstance(one, np.ndarray)] or [None])
    way = rng.random()
    if way < 0.35 and value.ndim:
        shape = list(value.shape)
        axis = rng.randrange(len(shape))
        if rng.random() < 0.15:  # an array without elements may have any lengths
            shape[axis] = 1 << rng.choice([31, 39, 40, 45])
            shape[rng.randrange(len(shape))] = 0
            return np.zeros(shape if 0 in shape else 0, value.dtype)
        shape[axis] = max(
            0, rng.choice([shape[axis] - 1, shape[axis] + 1, shape[axis] * 2, 0, 1, shape[axis] // 2])
        )
        if math.prod(shape) > _MOST:  # of one with absurd lengths, which was empty
            return value
        return np.resize(value, shape) if value.size else np.zeros(shape, value.dtype)
    if way < 0.5:
        with np.errstate(all="ignore"):
            return value.astype(rng.choice(_DTYPES))
    if way < 0.6 and value.ndim:
        return np.repeat(value, 2, axis=-1)[..., ::2] if rng.random() < 0.5 else value[::-1]
    if way < 0.65:
        return value.T
    if way < 0.7:
        return value[None] if rng.random() < 0.5 else value.reshape(-1)
    if way < 0.75:
        return None
    if way < 0.8:
        return rng.choice([one for one in others if isinstance(one, np.ndarray)])
    if way < 0.88 and (over := _over(rng, value, others)) is not None:
        return over
    copy = value.copy()
    if copy.size:
        with np.errstate(all="ignore"):
            odd = rng.choice([-1, -2, 0, 1, 127, 1 << 15, (1 << 31) - 1, 1e30, float("nan"), float("inf")])
            flat = copy.reshape(-1)
            flat[rng.randrange(flat.size)] = np.array(odd).astype(copy.dtype)
    return copy


def _over(rng: Random, value: Any, others: list[Any]) -> Any:
    """An array like ``value`` that lies, at least in part, over one of ``others``, if one has the room."""
    rooms = [one for one in others if isinstance(one, np.ndarray) and one is not value and one.base is None]
    rooms = [one for one in rooms if one.flags.c_contiguous and one.nbytes >= value.nbytes > 0]
    if not rooms:
        return None
    room = rng.choice(rooms)
    start = rng.choice([0, room.nbytes - value.nbytes, rng.randint(0, room.nbytes - value.nbytes)])
    return np.ndarray(value.shape, value.dtype, room, start // value.itemsize * value.itemsize)


def _mutate(rng: Random, groups: list[Values]) -> None:
    """Make a few of all arguments odd."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        group = rng.choice(groups)
        name = rng.choice(list(group))
        group[name] = _odd(rng, group[name], [one for values in groups for one in values.values()])


def _layer(context: Any, op: str, given: Values, made: Values, pages: Any, rows: Any, *, times: int) -> None:
    q, k, v = (made[name] for name in "qkv")
    first = _cpu.QkvWeights(
        *(
            given["norm"],
            1e-6,
            q,
            given["q_bias"],
            k,
            given["k_bias"],
            v,
            None,
            given["q_norm"],
            given["k_norm"],
        )
    )
    if op == "qkv":
        context.qkv(given["x"], first, pages, rows, given["out"])
        return
    o, down = made["o"], made["down"]
    second = _cpu.GateUpWeights(given["norm"], 1e-6, made["gate"], None, made["up"], None)
    listed = [(first, o, None, second, down, None, pages)] * times
    context.layers(given["x"], listed, rows, 0.5, given["out"], given["a"], given["h"])


def _attention(world: _World, context: Any) -> Callable[[], None]:
    rng, c = world.rng, world.sparse
    op = rng.choice(["append", "settle", "select", "attend", "attention", "qkv", "layers"])
    n, hkv, hq, d = world.n, world.hkv, world.hq, world.d
    width, inner = rng.choice([32, 64, 192]), rng.choice([24, 64, 96])
    projections = {
        "x": world.floats(n, width),
        "norm": world.floats(width),
        "q_bias": None,
        "k_bias": None,
    } | {"q_norm": world.floats(d), "k_norm": world.floats(d), "out": np.zeros((n, hq * d), np.float32)}
    matrices: dict[str, Values] = {}
    if op in ("qkv", "layers"):
        shapes = {"q": (hq * d, width), "k": (hkv * d, width), "v": (hkv * d, width), "o": (width, hq * d)}
        shapes |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        matrices = {name: world.matrix_values(*shape) for name, shape in shapes.items()}
    more: Values = {
        "append": lambda: {"k": world.floats(n, hkv, d), "v": world.floats(n, hkv, d)},
        "settle": lambda: {"sources": world.rows_values()["positions"]},
        "select": lambda: (
            {"q": world.floats(n, hq, d), "blocks": np.zeros((n, hkv, c.budget), np.int32)}
            | {"counts": np.zeros((n, hkv), np.int32)}
        ),
        "attend": lambda: (
            {"q": world.floats(n, hq, d), "blocks": None, "counts": None}
            | {"out": np.zeros((n, hq * d), np.float32)}
        ),
        "attention": lambda: {"q": world.floats(n, hq, d), "out": np.zeros((n, hq * d), np.float32)},
        "qkv": lambda: projections,
        "layers": lambda: (
            projections | {"a": np.zeros((n, hq * d), np.float32), "h": np.zeros((n, inner), np.float32)}
        ),
    }[op]()
    if op == "attend" and rng.random() < 0.5:
        more["blocks"] = np.zeros((n, hkv, 2), np.int32)
        more["counts"] = np.full((n, hkv), rng.choice([-1, 0, 1]), np.int32)
    pages, rows = world.pages_values(), world.rows_values()
    _mutate(rng, [pages, rows, more, *matrices.values()])

    def call() -> None:
        guard = Guard()
        given, held, step = dict(zip(more, guard(more), strict=True)), guard(pages), guard(rows)
        native = _cpu.Pages(*held), _cpu.Rows(*step)
        if op in ("qkv", "layers"):
            made = {name: _cpu.Weight(*guard(values)) for name, values in matrices.items()}
            _layer(context, op, given, made, *native, times=rng.choice([0, 1, 1, 3]))
        elif op == "settle":
            context.settle(*native, given["sources"])
        else:
            first = [given.pop(name) for name in ("k", "v", "q") if name in given]
            getattr(context, op)(*first, *native, *given.values())

    return call


def _weights(world: _World, context: Any) -> Callable[[], None]:
    rng = world.rng
    rows, n = rng.choice([1, 3, 16, 17, 40]), rng.choice([0, 1, 2, 7, 33])
    weight = world.weight_values(rows)
    op = rng.choice(["linear", "linears", "embed", "gate_up", "to_panels"])
    cols = weight["cols"]
    more: Values = {
        "x": world.floats(n, cols),
        "bias": world.floats(rows) if rng.random() < 0.3 else None,
        "out": np.zeros((n, cols if op == "embed" else rows), np.float32),
        "ids": world.random.integers(0, rows, n).astype(np.int32),
        "norm": world.floats(cols),
    }
    panels = -(-rows // 16)
    if op == "to_panels":
        size = weight["codes"].shape[1] * weight["codes"].dtype.itemsize
        more |= {"to": np.zeros((panels, max(size // 4, 1), 64), weight["codes"].dtype)}
        for part in PARTS[1:]:
            one = weight[part]
            more[f"to_{part}"] = None if one is None else np.zeros((panels, one.shape[1], 16), one.dtype)
    _mutate(rng, [weight, more])

    def call() -> None:
        guard = Guard()
        given = dict(zip(more, guard(more), strict=True))
        made = _cpu.Weight(*guard(weight))
        if op == "linear":
            context.linear(given["x"], made, given["bias"], given["out"], 0.5, rng.random() < 0.5)
        elif op == "linears":
            context.linears(given["x"], [(made, given["bias"], given["out"])] * rng.choice([0, 1, 2, 9]))
        elif op == "embed":
            context.embed(given["ids"], made, 1.0, given["out"])
        elif op == "gate_up":
            w = _cpu.GateUpWeights(given["norm"], 1e-6, made, given["bias"], made, None)
            context.gate_up(given["x"], w, given["out"])
        else:
            made.to_panels(context, given["to"], *(given[f"to_{part}"] for part in PARTS[1:]))

    return call


def _plain(world: _World, context: Any) -> Callable[[], None]:
    rng = world.rng
    n, width = rng.choice([0, 1, 3, 40]), rng.choice([1, 2, 16, 33, 200])
    x, k = world.floats(n, width), rng.choice([0, 1, min(5, width), width])
    positions = world.random.integers(0, 9, n).astype(np.int32)
    ops: dict[str, Values] = {
        "rms_norm": {"x": x, "weight": world.floats(width), "eps": 1e-6, "out": x.copy()},
        "silu_mul": {"gate": x, "up": x.copy(), "out": x.copy()},
        "add_scaled": {"x": x, "y": x.copy(), "scale": 0.5},
        "log_sum_exp": {"logits": x, "out": np.zeros(n, np.float32)},
        "top_k": {"logits": x, "values": np.zeros((n, k), np.float32), "columns": np.zeros((n, k), np.int32)},
        "matmul": {"a": x, "b": world.floats(width, 7), "out": np.zeros((n, 7), np.float32)},
        "rotary": {"x": world.floats(n, 2, world.d), "positions": positions}
        | {"cos": world.floats(9, world.d // 2), "sin": world.floats(9, world.d // 2)},
    }
    op = rng.choice(list(ops))
    _mutate(rng, [ops[op]])
    return lambda: getattr(context, op)(*Guard()(ops[op]))


def _draw(rng: Random) -> bytes:
    return str(rng.getrandbits(48)).encode()


def _read(case: bytes, folder: Path) -> None:
    rng = Random(case)
    level = rng.choice(_LEVELS)
    threads, narrow = rng.choice([1, 1, 2, 3]), level in _NARROW and rng.random() < 0.4
    context = _cpu.Context(threads, level, narrow)
    world = _World(rng, CpuOps(threads, level, narrow=narrow))
    call = rng.choice([_attention, _attention, _weights, _plain])(world, context)
    try:
        call()
    except (ValueError, TypeError, MemoryError, OverflowError):
        return


READERS = [Reader(name="extension", draw=_draw, read=_read)]
