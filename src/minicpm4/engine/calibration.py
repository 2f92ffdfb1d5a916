"""What was measured on this machine for a model's shape, kept in the user's cache: a file for each shape.

``minicpm4 doctor --calibrate`` measures (evals/calibrate.py) and saves; an engine looks it up when it is
made. A file is a hint and no more: one that is damaged, or of other kernels, is left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.strict import check_integer, check_optional_integer, require
from minicpm4.errors import ConfigError
from minicpm4.files import read_json, write_json
from minicpm4.machine import MAX_THREADS
from minicpm4.model.weight_plan import WeightPlan
from minicpm4.places import cache_folder

__all__ = ["Calibration", "Crossover", "Key", "entries", "folder", "key", "load", "save"]

logger = logging.getLogger("minicpm4")

VARIABLE = "MINICPM4_CALIBRATION"  # a folder for these files; "off": look nothing up
VERSION = 1
MAX_BYTES = 1 << 16
MAX_CROSSOVERS = 32
MAX_DEPTH = 1 << 24
MAX_ROWS = 1 << 10
Key = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossover:
    """Tokens from which on sparse attention with these settings was faster than dense, in prefill and in
    decoding; None where the figures were too noisy to tell. Raises ConfigError."""

    sparse: Mapping[str, int | bool]
    prefill: int | None
    decode: int | None

    def __post_init__(self) -> None:
        # Whole, as `selection` makes them: nothing else is ever found again.
        whole = selection(SparseConfig.from_mapping(self.sparse))
        require(whole == self.sparse, "sparse has not all that decides what it costs")
        check_optional_integer("prefill", self.prefill, 1, MAX_DEPTH)
        check_optional_integer("decode", self.decode, 1, MAX_DEPTH)

    @property
    def tokens(self) -> int | None:
        """Where sparse attention is slower for neither: one length for both, so that how work is cut
        into steps never changes an answer."""
        return None if self.prefill is None or self.decode is None else max(self.prefill, self.decode)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """``threads`` and ``chunk`` (tokens of a prefill step): None where the default is not beaten. ``rows``:
    tokens per second when that many sequences are decoded together. ``others``: share of the processors
    that other work took meanwhile, None: unknown. Raises ConfigError."""

    name: str
    threads: int | None = None
    chunk: int | None = None
    rows: Mapping[int, float] = field(default_factory=dict)
    crossovers: tuple[Crossover, ...] = ()
    others: float | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and len(self.name) <= 200, "name is not a short text")
        check_optional_integer("threads", self.threads, 1, MAX_THREADS)
        check_optional_integer("chunk", self.chunk, 1, 1 << 16)
        require(len(self.crossovers) <= MAX_CROSSOVERS and len(self.rows) <= 64, "there are too many figures")
        share = self.others
        require(
            share is None or (type(share) is float and 0 <= share <= 1), f"others = {share!r} is no share"
        )
        for count, rate in self.rows.items():
            check_integer("rows", count, 1, MAX_ROWS)
            require(type(rate) is float and math.isfinite(rate) and rate > 0, f"rows has the rate {rate!r}")

    def crossover(self, sparse: SparseConfig) -> int | None:
        """Tokens from which ``sparse`` pays; None where that was not measured."""
        wanted = selection(sparse)
        return next((one.tokens for one in self.crossovers if one.sparse == wanted), None)


def selection(sparse: SparseConfig) -> dict[str, int | bool]:
    """The settings that decide what sparse attention costs: all but dense_len."""
    return {name: value for name, value in asdict(sparse).items() if name != "dense_len"}


def key(machine: Mapping[str, Any], config: ModelConfig, weights: WeightPlan, kv: str) -> Key:
    """What figures depend on: the machine and its kernels, the shape, the formats of weights and cache."""
    return {
        "machine": dict(machine),
        "model": {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "inner": config.intermediate_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "vocabulary": config.vocab_size,
            "weights": weights.formats(),
            "kv": kv,
            # Layers with a window never choose blocks; models without any keep the key that they had.
            **({"windows": _counted(config.windows)} if config.windows else {}),
        },
    }


def _counted(windows: Sequence[int]) -> dict[str, int]:
    """How many layers have each window, as JSON has it."""
    return {str(window): count for window, count in sorted(Counter(windows).items())}


def folder() -> Path | None:
    """Where the files are: $MINICPM4_CALIBRATION, else ``calibration`` beside the downloads; None: off."""
    return cache_folder("calibration", VARIABLE)


def load(key: Key) -> Calibration | None:
    """What is cached for ``key``; None where nothing is, with a warning where a file cannot be used."""
    place = folder()
    if place is None:
        return None
    file = place / _name(key)
    if not file.exists():
        return None
    try:
        found, calibration = _read(file)
    except ConfigError as error:
        why = error.condition.replace(f"{file}", "it")
        logger.warning("calibration %s is ignored: %s; minicpm4 doctor --calibrate makes it anew", file, why)
        return None
    return calibration if found == key else None


def entries(machine: Mapping[str, Any]) -> Iterator[tuple[Key, Calibration]]:
    """Every readable file of this machine and its kernels."""
    place = folder()
    if place is None or not place.is_dir():
        return
    for file in sorted(place.glob("*.json")):
        with suppress(ConfigError):
            found, calibration = _read(file)
            if found["machine"] == machine:
                yield found, calibration


def save(key: Key, calibration: Calibration) -> Path:
    """Keep figures for ``key``, beside crossovers of other sparse settings; return the file, whole or not
    there at all. Raises ConfigError."""
    place = folder()
    require(place is not None, f"{VARIABLE}=off: nothing can be kept", f"unset {VARIABLE}")
    assert place is not None
    earlier = load(key)
    values = asdict(calibration)
    if earlier is not None:
        known = [one.sparse for one in calibration.crossovers]
        kept = [asdict(one) for one in earlier.crossovers if one.sparse not in known]
        values["crossovers"] = [*values["crossovers"], *kept][:MAX_CROSSOVERS]
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / _name(key), {"version": VERSION, **key, "values": values})
    except OSError as error:
        raise ConfigError(
            f"cannot write the calibration to {place}: {error.strerror}", f"set {VARIABLE} to another folder"
        ) from error
    return place / _name(key)


def _name(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32] + ".json"


def _read(file: Path) -> tuple[Key, Calibration]:
    """Raises ConfigError for a file that cannot be read, and for whatever is wrong inside."""
    table = read_json(file, MAX_BYTES, ConfigError)
    try:
        require(table["version"] == VERSION, "it is of another version")
        values = table["values"]
        crossovers = tuple(Crossover(**one) for one in values.pop("crossovers"))
        rows = {int(count): rate for count, rate in values.pop("rows").items()}
        calibration = Calibration(**values, rows=rows, crossovers=crossovers)
        machine, model = table["machine"], table["model"]
        require(isinstance(machine, dict) and isinstance(model, dict), "its key is not a table")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"it does not hold what it should ({type(error).__name__})") from error
    return {"machine": machine, "model": model}, calibration
