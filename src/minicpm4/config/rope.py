"""Settings of rotary positions, as in a checkpoint's ``rope_scaling``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.config.fields import is_nothing, refuse_fields
from minicpm4.config.strict import check_scalar, require, shown, suggest
from minicpm4.errors import ConfigError

MAX_POSITIONS = 1 << 27
_LEAST, _MOST = 1e-6, 1e9  # of what formulas divide by or take the logarithm of: far outside all that is used
# Of each type the numbers that its formula divides by or takes the logarithm of (model/rotary.py).
_DIVISORS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "beta_fast", "beta_slow"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_WITH_ORIGINAL = ("yarn", "llama3", "longrope")  # types whose formula knows the length trained at first
ROPE_TYPES = ("default", "linear", "dynamic", "longrope", "yarn", "llama3")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """One rotary scaling. Which fields matter depends on ``rope_type``.

    ``short_factor`` and ``long_factor`` hold head_dim / 2 numbers. Raises ConfigError.
    """

    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        require(
            self.rope_type in ROPE_TYPES,
            f"rope_scaling type {self.rope_type!r} is not supported",
            suggest(self.rope_type, list(ROPE_TYPES)),
        )
        for name in _DIVISORS.get(self.rope_type, ()):
            value = getattr(self, name)
            require(value > 0, f"rope_scaling.{name} = {value} is not positive")
            _require_within(name, value, _LEAST, _MOST)
        if self.attention_factor is not None:
            _require_within("attention_factor", self.attention_factor, _LEAST, _MOST)
        if self.rope_type == "longrope":
            self._check_factors()
        if self.rope_type == "yarn":
            for name in ("mscale", "mscale_all_dim"):
                _require_within(name, getattr(self, name), 0.0, _MOST)
        if self.rope_type == "llama3":
            require(
                self.low_freq_factor < self.high_freq_factor,
                f"rope_scaling.low_freq_factor = {self.low_freq_factor} is not below "
                f"high_freq_factor = {self.high_freq_factor}",
            )
        self._check_original()

    def _check_factors(self) -> None:
        require(
            len(self.short_factor) > 0 and len(self.short_factor) == len(self.long_factor),
            f"longrope has {len(self.short_factor)} short and {len(self.long_factor)} long factors",
            "both lists need head_dim / 2 numbers",
        )
        least = min(self.short_factor + self.long_factor)
        require(least > 0, "a longrope factor is not positive")
        require(least >= _LEAST, f"a longrope factor of {least} is below {_LEAST:g}")

    def _check_original(self) -> None:
        """Raise ConfigError for an original length that the type's formula cannot take."""
        original = self.original_max_position_embeddings
        if self.rope_type not in _WITH_ORIGINAL:  # what no formula looks at makes no difference
            object.__setattr__(self, "original_max_position_embeddings", None)
            return
        if self.rope_type in ("yarn", "llama3"):
            require(
                original is not None,
                f"rope_scaling type {self.rope_type!r} lacks original_max_position_embeddings",
            )
        if original is not None:
            low = 2 if self.rope_type == "longrope" else 1  # which divides by its logarithm
            _require_within("original_max_position_embeddings", original, low, MAX_POSITIONS)


def _require_within(name: str, value: float, low: float, high: float) -> None:
    bounds = f"{low:,} to {high:,}" if isinstance(low, int) else f"{low:g} to {high:g}"
    require(low <= value <= high, f"rope_scaling.{name} = {value} is outside {bounds}")


_KNOWN = (*RopeScaling.__dataclass_fields__, "rope_theta", "type", "finetuned")  # the last: a label
_ONES = ("partial_rotary_factor", "extrapolation_factor", "attn_factor")  # not obeyed: at 1 they do nothing
# Of each type what transformers' formula asks for; YaRN's factor is the ratio of lengths where it is null.
_NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
THETA = 10000.0


def read_rope(
    raw: Mapping[str, Any], max_position: int, *, by_factor: bool = True
) -> tuple[float, RopeScaling | None]:
    """rope_theta and the scaling (None: none) of a config.json, from all places where transformers looks.

    ``rope_scaling`` goes before ``rope_parameters``, within either its own ``rope_theta`` before that of the
    top level; ``original_max_position_embeddings`` of the top level goes before a table's, ``max_position``
    stands in where there is none. ``by_factor``: longrope's attention follows its ``factor``, where there is
    one; MiniCPM's own code knows only the ratio of lengths. Raises ConfigError.
    """
    tables = {name: _table(raw, name) for name in ("rope_scaling", "rope_parameters")}
    where = "rope_scaling" if tables["rope_scaling"] else "rope_parameters"
    table = tables[where]
    theta = _first(table.get("rope_theta"), raw.get("rope_theta"), THETA)
    other = tables["rope_parameters"].get("rope_theta")
    require(
        where == "rope_parameters" or other is None or other == theta,
        f"config rope_parameters has rope_theta = {shown(other)}, but rope_scaling, which goes before it, "
        f"leaves {shown(theta)}",
        "write the right rope_theta into rope_scaling, or all of it into rope_parameters",
    )
    theta = check_scalar(theta, float, "config rope_theta")
    return theta, parse_rope_scaling(
        table, max_position, raw.get("original_max_position_embeddings"), where=where, by_factor=by_factor
    )


def _table(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = raw.get(name) or {}
    require(isinstance(table, Mapping), f"config {name} = {shown(table)} is not a table")
    found: Mapping[str, Any] = table
    return found


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def parse_rope_scaling(
    raw: Mapping[str, Any] | None,
    max_position: int,
    original: Any = None,
    *,
    where: str = "rope_scaling",
    by_factor: bool = True,
) -> RopeScaling | None:
    """Read the table ``where`` of a config.json; None when it scales nothing.

    ``original``: original_max_position_embeddings as the top level has it; ``by_factor`` as in ``read_rope``.
    Raises ConfigError.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is a {type(raw).__name__}, not a table")
    _check_known(raw, where)
    kind = _first(raw.get("rope_type"), raw.get("type"), "default")
    kind = {"su": "longrope", "ntk": "dynamic"}.get(str(kind), str(kind))
    values: dict[str, Any] = {"rope_type": kind}
    for name in RopeScaling.__dataclass_fields__:
        value = raw.get(name)
        if name != "rope_type" and value is not None:
            values[name] = _number_or_factors(name, value)
    for name in _NEEDED.get(kind, ()):
        require(name in values, f"config {where} of type {kind!r} lacks {name}")
    if original is not None:
        values["original_max_position_embeddings"] = _number_or_factors(
            "original_max_position_embeddings", original
        )
    values.setdefault("original_max_position_embeddings", max_position)
    if kind == "yarn":
        _settle_yarn(values, max_position)
    if kind == "longrope":
        _settle_longrope(values, by_factor)
    scaling = RopeScaling(**values)
    return None if kind == "default" else scaling


def _settle_yarn(values: dict[str, Any], max_position: int) -> None:
    """Nought stands for what is not given; without a factor it is the ratio of lengths."""
    for name in ("beta_fast", "beta_slow"):
        if values.get(name) == 0:
            del values[name]
    original = values["original_max_position_embeddings"]
    if "factor" not in values and original > 0:
        values["factor"] = max_position / original


def _settle_longrope(values: dict[str, Any], by_factor: bool) -> None:
    """Where a factor is given, and no attention factor, the latter follows from the former."""
    factor, original = values.pop("factor", None), values["original_max_position_embeddings"]
    if by_factor and factor is not None and "attention_factor" not in values and original > 1:
        values["attention_factor"] = longrope_attention(factor, original)


def longrope_attention(factor: float, original: int) -> float:
    """The factor of cosines and sines at ``factor`` times the ``original`` length."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _check_known(raw: Mapping[str, Any], where: str) -> None:
    wrong = {
        name: value
        for name, value in raw.items()
        if name not in _KNOWN and not is_nothing(value) and not (name in _ONES and value == 1)
    }
    refuse_fields(f"config {where}", "rotary positions", wrong, f"{where}.")


def _number_or_factors(name: str, value: Any) -> Any:
    if name in ("short_factor", "long_factor"):
        if not isinstance(value, list | tuple) or not all(_is_number(v) for v in value):
            raise ConfigError(f"rope_scaling.{name} is not a list of numbers")
        return tuple(float(v) for v in value)
    if name == "truncate":
        return bool(value)
    if not _is_number(value):
        raise ConfigError(f"rope_scaling.{name} = {shown(value)} is not a number below 1e30")
    return int(value) if name == "original_max_position_embeddings" else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
