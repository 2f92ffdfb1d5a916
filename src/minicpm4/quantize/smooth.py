"""Smoothing by activations (AWQ, arXiv 2306.00978): columns that large activations reach are made larger
before rounding, so that they are rounded more finely, and what comes before is divided by as much. The
function stays.

    norm -> q, k, v        into the norm's weight          up -> down     into the rows of up
    v -> o                 into the rows of v              norm -> gate, up

How far is chosen by the error that is left in outputs, of rounding to nearest (AWQ), or of GPTQ, on texts
that its statistics have not seen: what the one likes is too much for the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.formats import rounding
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.quantize.gptq import Hessian, gptq_on_grids
from minicpm4.quantize.grid import to_nearest
from minicpm4.quantize.layer import Layer
from minicpm4.quantize.walk import STAGES

__all__ = [
    "BEFORE",
    "GPTQ_POWERS",
    "GPTQ_ROWS",
    "HELD",
    "HELD_NBYTES",
    "ROWS",
    "Reached",
    "fold",
    "may_change",
    "shared",
    "smooth",
]

POWERS = np.arange(0, 1.01, 0.1)  # of the mean magnitude, tried with rounding to nearest
GPTQ_POWERS = np.arange(0, 0.75, 0.1)  # with GPTQ, for which larger ones have never been best
LEAST = 1e-4  # of a factor
ROWS = 512  # of a matrix, on which factors are tried: one power of eleven is chosen for all
GPTQ_ROWS = 64  # the same where GPTQ rounds them, once for each power
HELD = 4  # every fourth text is held out
HELD_NBYTES = 1 << 26  # of rows that are held out, at most
_STORABLE = 2.0**-9  # of a row's scales, in float16, after what was folded into the row

Floats = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Reached:
    """What reaches a stage: statistics of its rows, but of those of some texts the rows themselves."""

    hessian: Hessian
    hold: bool
    held: list[Floats] = field(default_factory=list)
    texts: int = 0

    def add(self, x: Floats) -> None:
        """The rows x (n, width) of one text."""
        self.texts += 1
        room = HELD_NBYTES - sum(one.nbytes for one in self.held)
        if self.hold and self.texts % HELD == 0 and x.nbytes <= room:
            self.held.append(np.array(x))
        else:
            self.hessian.add(x)

    @property
    def rows(self) -> int:
        """All that statistics count."""
        return self.hessian.rows + sum(max(0, len(x) - self.hessian.skip) for x in self.held)

    def release(self) -> Hessian:
        """Statistics of all rows; none is held any more."""
        for x in self.held:
            self.hessian.add(x)
        self.held.clear()
        return self.hessian

    def squared(self, weights: Floats) -> float:
        """The sum of the squared outputs of ``weights`` (out, width) over the rows that are held out; of all
        where none are."""
        if not self.held:
            return self.hessian.squared(weights)
        skip = self.hessian.skip
        return sum(float(np.square(x[skip:] @ weights.T).sum(dtype=np.float64)) for x in self.held)


def smooth(
    layer: Layer,
    names: Sequence[str],
    reached: Reached,
    specs: Mapping[str, QuantSpec],
    damping: float | None,
) -> tuple[float, Floats]:
    """Fold into the stage ``names`` of ``layer`` the factors that leave the rounded outputs closest, and
    return their power and them: 0 is none. ``reached``: by these rows, before; ``specs``: what matrices will
    be rounded to; ``damping``: of GPTQ, which then does so, None: rounding to nearest."""
    share = shared(layer.config, names)
    size = np.maximum(_alike(reached.hessian.mean_size, share, layer.config.head_dim), 1e-8)
    wanted = {name: specs[name] for name in names if name in specs}
    powers = POWERS if damping is None else GPTQ_POWERS
    tried = {float(power): _factors(size, power) for power in powers}
    tried = {power: one for power, one in tried.items() if not power or _holds(layer, names, one, share)}
    many = GPTQ_ROWS if damping is not None else ROWS
    totals = np.zeros(len(tried))
    for name, spec in wanted.items():
        weight = _spread(layer.weight(name), many)
        right = reached.squared(weight)
        if right <= 0:
            continue
        factors = list(tried.values())
        made = (
            gptq_on_grids(weight, reached.hessian, spec, factors, damping)
            if damping is not None
            else (unpack(to_nearest(weight * one, spec)) / one for one in factors)
        )
        totals += [reached.squared(one - weight) / right for one in made]
    power = list(tried)[int(np.argmin(totals))]
    if power:
        fold(layer, names, tried[power], share)
    return power, tried[power]


def _factors(size: NDArray, power: float) -> Floats:
    found = size**power
    found /= np.sqrt(found.max() * found.min())
    return np.maximum(found, LEAST).astype(np.float32)


def may_change(rounded: Collection[str]) -> set[str]:
    """Matrices of a layer that smoothing may fold something into where those ``rounded`` become codes."""
    found = set[str]()
    for names in STAGES:
        if any(name in rounded for name in names):
            found |= {*names, *([BEFORE[names[0]]] if names[0] in BEFORE else [])}
    return found


def _spread(weight: Floats, most: int) -> Floats:
    """At most ``most`` rows, evenly spread."""
    return np.ascontiguousarray(weight[:: -(-len(weight) // most)])


def shared(config: ModelConfig, names: Sequence[str]) -> int:
    """How many columns of ``names``, matrices of a stage, come from one row before them: of o those of all
    query heads that read the same values."""
    return config.num_attention_heads // config.num_key_value_heads if names == ("self_attn.o_proj",) else 1


def _alike(size: NDArray, share: int, d: int) -> NDArray:
    """Magnitudes of columns, those that come from one row their mean."""
    if share == 1:
        return size
    heads = size.reshape(-1, share, d)
    return np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)


def fold(layer: Layer, names: Sequence[str], factors: Floats, share: int) -> None:
    """Multiply the columns of the matrices ``names`` of a stage by ``factors`` (columns,), and divide what
    makes these columns by as much. ``share``: see ``shared``; the factors of columns that come from one row
    are equal. Of what is rounded already scales are divided, and rounded again."""
    for name in names:
        layer.weight(name)[...] *= factors
    if names[0] in _NORMS:
        layer.floats[_NORMS[names[0]]] /= factors
        return
    source, rows = _rows_before(layer, names, factors, share)
    packed = layer.packed.get(source)
    if packed is None:
        layer.weight(source)[...] /= rows[:, None]
    else:
        layer.packed[source] = _divided(packed, rows)
    if f"{source}.bias" in layer.floats:
        layer.floats[f"{source}.bias"] /= rows
    if layer.stored is not None and source == _VALUES:  # which o's columns meet in the place of v's own
        layer.stored.values[...] /= rows.reshape(-1, layer.config.head_dim)


_VALUES = "self_attn.v_proj"
BEFORE = {"self_attn.o_proj": _VALUES, "mlp.down_proj": "mlp.up_proj"}
"""By the first matrix of a stage the one whose rows its factors are folded into."""
_NORMS = {
    "self_attn.q_proj": "input_layernorm.weight",
    "mlp.gate_proj": "post_attention_layernorm.weight",
}


def _rows_before(layer: Layer, names: Sequence[str], factors: Floats, share: int) -> tuple[str, Floats]:
    """The matrix that makes the columns of ``names``, and the factors by its rows."""
    if names[0] != "self_attn.o_proj":
        return BEFORE[names[0]], factors
    heads = factors.reshape(-1, share, layer.config.head_dim)
    return _VALUES, np.ascontiguousarray(heads[:, 0].reshape(-1))


def _holds(layer: Layer, names: Sequence[str], factors: Floats, share: int) -> bool:
    """Whether the scales of what is rounded before the stage can be divided and stay what they are."""
    if names[0] in _NORMS:
        return True
    source, rows = _rows_before(layer, names, factors, share)
    packed = layer.packed.get(source)
    if packed is None or not packed.spec.row.group:
        return packed is None
    wanted = packed.scale_floats() / rows[:, None]
    missed = np.linalg.norm(rounding.storable(np, wanted) - wanted, axis=1)
    return bool((missed <= _STORABLE * np.linalg.norm(wanted, axis=1)).all())


def _divided(packed: PackedTensor, rows: Floats) -> PackedTensor:
    """``packed`` with its rows divided by ``rows`` (out,), to the nearest scales."""
    with np.errstate(over="ignore"):
        scales = rounding.storable(np, packed.scale_floats() / rows[:, None])
    small, exact = rounding.in_half(scales)
    return replace(packed, scales=np.ascontiguousarray(small if exact else scales))
