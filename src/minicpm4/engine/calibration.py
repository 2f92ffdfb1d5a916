"""What was measured on this machine for a model's shape, kept in the user's cache: a file for each shape.

``minicpm4 doctor --calibrate`` measures (evals/calibrate.py) and saves; an engine looks it up when it is
made. A file is a hint and no more: one that is damaged, or of other kernels, is left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minicpm4 import zoo
from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.formats import Checkpoint
from minicpm4.model.loader import target_spec

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
        SparseConfig.from_mapping(self.sparse)
        _within("prefill", self.prefill, 1, MAX_DEPTH)
        _within("decode", self.decode, 1, MAX_DEPTH)

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
        _within("threads", self.threads, 1, 1024)
        _within("chunk", self.chunk, 1, 1 << 16)
        require(len(self.crossovers) <= MAX_CROSSOVERS and len(self.rows) <= 64, "there are too many figures")
        share = self.others
        require(
            share is None or (type(share) is float and 0 <= share <= 1), f"others = {share!r} is no share"
        )
        for count, rate in self.rows.items():
            _within("rows", count, 1, MAX_ROWS)
            require(type(rate) is float and math.isfinite(rate) and rate > 0, f"rows has the rate {rate!r}")

    def crossover(self, sparse: SparseConfig) -> int | None:
        """Tokens from which ``sparse`` pays; None where that was not measured."""
        wanted = selection(sparse)
        return next((one.tokens for one in self.crossovers if one.sparse == wanted), None)


def selection(sparse: SparseConfig) -> dict[str, int | bool]:
    """The settings that decide what sparse attention costs: all but dense_len."""
    return {name: value for name, value in asdict(sparse).items() if name != "dense_len"}


def key(
    machine: Mapping[str, Any], checkpoint: Checkpoint, config: ModelConfig, weights: str, kv: str
) -> Key:
    """What figures depend on: the machine and its kernels, the shape, the formats of weights and cache."""
    formats: Counter[str] = Counter()
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2:
            formats[str(target_spec(name, info.spec, (info.shape[0], info.shape[1]), weights))] += 1
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
            "weights": dict(sorted(formats.items())),
            "kv": kv,
        },
    }


def folder() -> Path | None:
    """Where the files are: $MINICPM4_CALIBRATION, else ``calibration`` beside the downloads; None: off."""
    place = os.environ.get(VARIABLE, "").strip()
    if place.lower() == "off":
        return None
    return Path(place).expanduser() if place else zoo.cache_home() / "calibration"


def load(key: Key) -> Calibration | None:
    """What is cached for ``key``; None where nothing is, with a warning where a file cannot be used."""
    place = folder()
    if place is None:
        return None
    file = place / _name(key)
    try:
        found, calibration = _read(file)
    except FileNotFoundError:
        return None
    except (OSError, ConfigError) as error:
        why = error.condition if isinstance(error, ConfigError) else error.strerror
        logger.warning("calibration %s is ignored: %s; minicpm4 doctor --calibrate makes it anew", file, why)
        return None
    return calibration if found == key else None


def entries(machine: Mapping[str, Any]) -> Iterator[tuple[Key, Calibration]]:
    """Every readable file of this machine and its kernels."""
    place = folder()
    if place is None or not place.is_dir():
        return
    for file in sorted(place.glob("*.json")):
        with suppress(OSError, ConfigError):
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
    text = json.dumps({"version": VERSION, **key, "values": values}, indent=1)
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=place, suffix=".part")
        try:
            with open(handle, "w", encoding="utf-8") as out:
                out.write(text + "\n")
            os.replace(part, place / _name(key))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot write the calibration to {place}: {error.strerror}", f"set {VARIABLE} to another folder"
        ) from error
    return place / _name(key)


def _name(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32] + ".json"


def _read(file: Path) -> tuple[Key, Calibration]:
    """Raises OSError, and ConfigError for whatever is wrong inside."""
    with file.open("rb") as data:
        raw = data.read(MAX_BYTES + 1)
    require(len(raw) <= MAX_BYTES, f"it is larger than {MAX_BYTES} bytes")
    try:
        table = json.loads(raw)
        require(table["version"] == VERSION, "it is of another version")
        values = table["values"]
        crossovers = tuple(Crossover(**one) for one in values.pop("crossovers"))
        rows = {int(count): rate for count, rate in values.pop("rows").items()}
        calibration = Calibration(**values, rows=rows, crossovers=crossovers)
        machine, model = table["machine"], table["model"]
        require(isinstance(machine, dict) and isinstance(model, dict), "its key is not a table")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"it does not hold what it should ({type(error).__name__})") from error
    return {"machine": machine, "model": model}, calibration


def _within(name: str, value: Any, low: int, high: int) -> None:
    if value is not None:
        require(type(value) is int and low <= value <= high, f"{name} = {value!r} is outside {low} to {high}")
