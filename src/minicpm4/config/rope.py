"""Settings of rotary positions, as in a checkpoint's ``rope_scaling``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError

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
        require(self.factor > 0, f"rope_scaling.factor = {self.factor} is not positive")
        if self.rope_type == "longrope":
            require(
                len(self.short_factor) > 0 and len(self.short_factor) == len(self.long_factor),
                f"longrope has {len(self.short_factor)} short and {len(self.long_factor)} long factors",
                "both lists need head_dim / 2 numbers",
            )
            require(min(self.short_factor + self.long_factor) > 0, "a longrope factor is not positive")
        if self.rope_type in ("yarn", "llama3"):
            require(
                self.original_max_position_embeddings is not None,
                f"rope_scaling type {self.rope_type!r} lacks original_max_position_embeddings",
            )


def parse_rope_scaling(raw: Mapping[str, Any] | None, max_position: int) -> RopeScaling | None:
    """Read ``rope_scaling`` (or ``rope_parameters``) of a config.json; None when it scales nothing.

    ``max_position`` stands in for a missing original_max_position_embeddings. Raises ConfigError.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"rope_scaling is a {type(raw).__name__}, not a table")
    kind = raw.get("rope_type", raw.get("type", "default"))
    kind = {"su": "longrope", "ntk": "dynamic"}.get(str(kind), str(kind))
    values: dict[str, Any] = {"rope_type": kind}
    for name in RopeScaling.__dataclass_fields__:
        value = raw.get(name)
        if name == "rope_type" or value is None:
            continue
        values[name] = _number_or_factors(name, value)
    values.setdefault("original_max_position_embeddings", max_position)
    scaling = RopeScaling(**values)
    return None if kind == "default" else scaling


def _number_or_factors(name: str, value: Any) -> Any:
    if name in ("short_factor", "long_factor"):
        if not isinstance(value, list | tuple) or not all(_is_number(v) for v in value):
            raise ConfigError(f"rope_scaling.{name} is not a list of numbers")
        return tuple(float(v) for v in value)
    if name == "truncate":
        return bool(value)
    if not _is_number(value):
        raise ConfigError(f"rope_scaling.{name} = {value!r} is not a number")
    return int(value) if name == "original_max_position_embeddings" else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
