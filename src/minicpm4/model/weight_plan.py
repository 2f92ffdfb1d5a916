"""What each matrix of a checkpoint becomes: worked out once a load, before any of them is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from minicpm4.config import ModelConfig
from minicpm4.config.choices import WEIGHT_CHOICES
from minicpm4.config.strict import shown, suggest
from minicpm4.errors import ConfigError
from minicpm4.formats import Checkpoint
from minicpm4.formats.kinds import float_kinds, kind_of, rounded_kinds
from minicpm4.formats.names import EMBED, HEAD, expected_tensors
from minicpm4.formats.packing import default_spec, wider
from minicpm4.formats.quant import QuantSpec, packed_nbytes
from minicpm4.kernels.contract import OpTable

__all__ = [
    "MatrixPlan",
    "WeightPlan",
    "check_weights_choice",
    "float_choices",
    "parse_spec",
    "plan_weights",
    "target_spec",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixPlan:
    """One matrix (out, in): ``stored`` is the file's name for its type, ``read`` the format that the
    checkpoint's reader gives, ``target`` the one that it is held in. ``packs``: where its floats prove to be
    on the grid of a grouped kind, or its codes those of one of fewer bits, it is held in that instead, which
    takes less. ``widens``: it is widened before (``packing.widened``); ``wide_nbytes``: what it would take
    then, 0: as much, as it is no other.
    """

    name: str
    shape: tuple[int, int]
    stored: str
    read: QuantSpec
    target: QuantSpec
    nbytes: int
    packs: bool
    widens: bool = False
    wide_nbytes: int = 0

    def may_be(self, spec: QuantSpec) -> bool:
        """Whether ``spec`` can be the format that it is held in."""
        return spec == self.target or (self.packs and bool(spec.row.group))


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPlan:
    """Every matrix of a model, a tied head left out, under the users' choice ``weights``."""

    weights: str
    matrices: tuple[MatrixPlan, ...]

    def __iter__(self) -> Iterator[MatrixPlan]:
        return iter(self.matrices)

    @property
    def nbytes(self) -> int:
        """Bytes that all will take; what packs takes less."""
        return sum(matrix.nbytes for matrix in self)

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of weights that kernels will meet for certain."""
        return frozenset(matrix.target.kind for matrix in self)

    @property
    def possible_kinds(self) -> frozenset[str]:
        """These, and what matrices that pack may prove to be."""
        return self.kinds.union(rounded_kinds() if any(matrix.packs for matrix in self) else ())

    def on(self, ops: OpTable | None) -> WeightPlan:
        """The plan for the kernels of ``ops``."""
        if ops is None or not ops.widens:
            return self
        return replace(self, matrices=tuple(map(_widened, self)))

    def formats(self) -> dict[str, int]:
        """How many matrices are held in each format."""
        return dict(sorted(Counter(str(matrix.target) for matrix in self).items()))


def _widened(matrix: MatrixPlan) -> MatrixPlan:
    if not matrix.wide_nbytes:
        return matrix
    target = wider(matrix.target)
    return replace(matrix, target=target, nbytes=matrix.wide_nbytes, wide_nbytes=0, widens=True)


def plan_weights(checkpoint: Checkpoint, config: ModelConfig, weights: str = "auto") -> WeightPlan:
    """The plan of an opened and checked checkpoint. Raises ConfigError."""
    check_weights_choice(weights)
    matrices = []
    for name, shape in expected_tensors(config).items():
        if len(shape) != 2:
            continue
        info, both = checkpoint.tensors[name], (shape[0], shape[1])
        wide = info.spec.row.wider == weights  # asked for, and every weight stays as it is
        target = info.spec if wide else target_spec(name, info.spec, both, weights)
        matrix = MatrixPlan(
            name=name,
            shape=both,
            stored=info.dtype,
            read=info.spec,
            target=target,
            nbytes=info.loaded_nbytes if target == info.spec else packed_nbytes(both, target),
            packs=weights == "auto" and (not target.row.group or info.narrows),
            wide_nbytes=info.wide_nbytes if target == info.spec else 0,
        )
        matrices.append(_widened(matrix) if wide else matrix)
    return WeightPlan(weights=weights, matrices=tuple(matrices))


def check_weights_choice(weights: str) -> None:
    """Raise ConfigError unless ``weights`` is one of ``WEIGHT_CHOICES``, or one of those with a group."""
    known = list(WEIGHT_CHOICES)
    if not isinstance(weights, str) or (weights not in known and _with_group(weights) is None):
        raise ConfigError(
            f"weights = {shown(weights)} is not a weight format",
            suggest(str(weights), known) + "; groups may be said: int4-g64",
        )


def target_spec(name: str, stored: QuantSpec, shape: tuple[int, int], weights: str) -> QuantSpec:
    """The format in which a matrix will be held.

    Embeddings and head keep 8 bits when less is asked for: their rows meet every token, and rounding
    them costs far more accuracy than it saves memory. int4 has groups of 32 unless said: a sixteenth more
    to read than groups of 64, for a good part of what rounding to nearest loses (docs/quantisation.md).
    """
    asked = _with_group(weights)
    if weights in ("auto", stored.kind) or asked == stored:
        return stored
    kind = weights if asked is None else asked.kind
    if name in (EMBED, HEAD) and kind_of(kind).bits < 8:
        return stored if stored.row.group else default_spec("int8", shape[1]) or stored
    finest = QuantSpec(kind="int4", group_size=32) if weights == "int4" else asked
    if finest is not None and finest.fits(shape[1]):
        return finest
    return default_spec(kind, shape[1]) or stored


@lru_cache(maxsize=8)  # asked for every matrix; that "auto" is none is found by looking for what is nearest
def _with_group(weights: str) -> QuantSpec | None:
    """The format that "int4-g64" and the like name; None: it is none."""
    try:
        spec = parse_spec(weights)
    except ConfigError:
        return None
    return spec if spec.group_size else None


def float_choices() -> list[str]:
    """Kinds of floats that can be asked for."""
    return [name for name in float_kinds() if name in WEIGHT_CHOICES]


def parse_spec(text: str, more: Collection[str] = ()) -> QuantSpec:
    """ "int4-g64" and the like, also of kinds ``more``, or "bf16". Raises ConfigError."""
    floats = float_choices()
    if text in floats:
        return QuantSpec(kind=text)
    match = re.fullmatch(r"([a-z0-9]+)-g([0-9]{1,5})", text)
    if match is None or match[1] not in (*rounded_kinds(), *more):
        raise ConfigError(
            f"{text!r} is not a format of weights",
            suggest(text, [*(f"{kind}-g64" for kind in rounded_kinds()), *floats, "float"]),
        )
    return QuantSpec(kind=match[1], group_size=int(match[2]))
