"""The shape and constants of a decoder, from a Hugging Face config.json or GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.config.fields import CLASSES, OTHER_CLASSES, READ, SIZES, check_fields, without
from minicpm4.config.rope import MAX_POSITIONS, RopeScaling, read_rope
from minicpm4.config.sparse import SparseConfig
from minicpm4.config.strict import check_scalar, require, shown, suggest
from minicpm4.config.windows import read_windows
from minicpm4.errors import ConfigError
from minicpm4.files import read_json

__all__ = [
    "MAX_SIZE",
    "MODEL_TYPES",
    "SIZES",
    "ModelConfig",
    "read_generation_config",
    "read_hf_config",
]

MODEL_TYPES: dict[str, tuple[str, ...]] = {
    kind: CLASSES[kind].architectures for kind in CLASSES if kind != "mistral"
}
"""As GGUF's general.architecture has it too -> Hugging Face's names of its class: the first is written."""
_FOLDER = "a model is a folder with config.json and .safetensors files, or with one .gguf file"
_ALIASES = {"minicpm4": "minicpm"}
MAX_FILE = 1 << 24  # bytes of config.json
MAX_SIZE = 1 << 24  # no dimension of a decoder that fits an end device is larger
MAX_LAYERS = 1 << 12  # a million of them would be listed, tensor by tensor, before anything is refused
MAX_SCALE = 1e9  # of the muP scales and their inverses: far outside all that is used


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One decoder. Names are those of Hugging Face configs.

    Llama is the special case scale_emb = 1, scale_depth = sqrt(num_hidden_layers), dim_model_base =
    hidden_size. ``attention_bias``: projections to queries, keys and values have biases, ``output_bias``: the
    one out of attention, ``mlp_bias``: the three of the feed-forward. ``windows``: tokens that each layer
    reads, the query's own included, 0: all before it; empty: all layers read everything. Raises ConfigError
    when sizes do not fit together.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    scale_emb: float = 1.0
    scale_depth: float = 0.0
    dim_model_base: float = 0.0
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    sparse_config: SparseConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            limit = MAX_LAYERS if name == "num_hidden_layers" else MAX_POSITIONS
            require(0 < value <= limit, f"config {name} = {shown(value)} is out of range")
        if not self.scale_depth:
            object.__setattr__(self, "scale_depth", math.sqrt(self.num_hidden_layers))
        if not self.dim_model_base:
            object.__setattr__(self, "dim_model_base", float(self.hidden_size))
        for name in ("scale_emb", "scale_depth", "dim_model_base"):
            value = getattr(self, name)
            within = 1 / MAX_SCALE <= value <= MAX_SCALE
            require(within, f"config {name} = {value} is outside {1 / MAX_SCALE:g} to {MAX_SCALE:g}")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads = {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads = {self.num_key_value_heads}",
        )
        require(
            self.head_dim % 2 == 0 and self.head_dim <= 512,
            f"config head_dim = {self.head_dim} is not even, or above 512",
        )
        # YaRN divides by its logarithm.
        require(1 < self.rope_theta < 1e30, f"config rope_theta = {self.rope_theta} is outside 1 to 1e30")
        require(0 < self.rms_norm_eps < 1, f"config rms_norm_eps = {self.rms_norm_eps} is out of range")
        require(
            len(self.windows) in (0, self.num_hidden_layers),
            f"{len(self.windows)} windows for {self.num_hidden_layers} layers",
        )
        scaling = self.rope_scaling
        if scaling and scaling.rope_type == "dynamic":
            require(self.head_dim > 2, "rope_scaling type 'dynamic' needs a head_dim above 2")
        if scaling and scaling.rope_type == "longrope":
            require(
                len(scaling.long_factor) == self.head_dim // 2,
                f"longrope has {len(scaling.long_factor)} factors, head_dim / 2 is {self.head_dim // 2}",
            )

    @property
    def residual_scale(self) -> float:
        """Multiplier of each residual branch: scale_depth / sqrt(num_hidden_layers)."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers)

    @property
    def logit_scale(self) -> float:
        """Multiplier of the last hidden state before the head: dim_model_base / hidden_size."""
        return self.dim_model_base / self.hidden_size

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @classmethod
    def from_hf(
        cls, source: str | Path | Mapping[str, Any], ignore_fields: Collection[str] = ()
    ) -> ModelConfig:
        """Read a config.json (its path, its folder, or its parsed content).

        ``ignore_fields``: fields that are taken for null, those of tables as ``rope_scaling.NAME``. Every
        field is known (``config/fields.py``), or refused by name. A MiniCPM config without its three muP
        scales is refused. Raises ConfigError.
        """
        raw = source if isinstance(source, Mapping) else read_hf_config(Path(source))
        return _from_hf(without(raw, ignore_fields, READ) if ignore_fields else raw)


def read_hf_config(path: Path) -> dict[str, Any]:
    """Return the content of ``path`` or ``path/config.json``, with generation_config.json's
    eos_token_id added to it. Raises ConfigError."""
    file = path / "config.json" if path.is_dir() else path
    raw = _read_json(file, remedy="" if file.is_file() else _FOLDER)
    generation = file.with_name("generation_config.json")
    if generation.is_file():
        ends = [raw.get("eos_token_id"), _read_json(generation).get("eos_token_id")]
        raw["eos_token_id"] = list(dict.fromkeys(t for e in ends for t in _as_ids(e)))
    return raw


def read_generation_config(path: Path) -> dict[str, Any]:
    """The table of generation_config.json in a checkpoint's folder; empty without one. Raises ConfigError."""
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    return _read_json(file, optional=True)


def _read_json(file: Path, *, optional: bool = False, remedy: str = "") -> dict[str, Any]:
    # Such files may hold Infinity, under keys that are not ours.
    return read_json(file, MAX_FILE, ConfigError, remedy, optional=optional, constants=True)


def _as_ids(value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    items = [item for item in items if type(item) is not int or item != -1]  # -1: there is none
    for item in items:
        require(
            type(item) is int and 0 <= item < 1 << 31,
            f"config eos_token_id holds {shown(item)}, not a token id",
        )
    return tuple(items)


def _from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    kind = _class_of(raw)
    own = CLASSES[kind]
    model_type = own.model_type
    if raw.get("mixer_types"):
        raise ConfigError("config has mixer_types (SALA hybrid layers), which are not supported")
    check_fields(raw, kind)
    values: dict[str, Any] = {"model_type": model_type}
    for name in SIZES:
        if name not in ("head_dim", "num_key_value_heads", "max_position_embeddings"):
            values[name] = _get(raw, name, int)
    values |= _head_sizes(raw, kind, values["num_attention_heads"], values["hidden_size"])
    values["max_position_embeddings"] = _get(raw, "max_position_embeddings", int, own.positions)
    values["rms_norm_eps"] = _get(raw, "rms_norm_eps", float, 1e-6)
    act = raw.get("hidden_act") or "silu"
    require(act in ("silu", "swish"), f"config hidden_act = {shown(act)} is not supported", "only silu is")
    theta, scaling = read_rope(raw, values["max_position_embeddings"], by_factor=kind != "minicpm")
    values |= {"rope_theta": theta, "rope_scaling": scaling}
    # MiniCPM's own class ties by default; the key is absent from MiniCPM4-0.5B's file.
    values["tie_word_embeddings"] = _get(raw, "tie_word_embeddings", bool, own.tied)
    if model_type == "minicpm":
        values |= _mup_scales(raw)
    biased = "attention_bias" in own.biases and _get(raw, "attention_bias", bool, False)
    values["attention_bias"] = model_type == "qwen2" or biased
    values["output_bias"] = _get(raw, "output_bias", bool, biased)
    values["mlp_bias"] = "mlp_bias" in own.biases and _get(raw, "mlp_bias", bool, False)
    values["qk_norm"] = model_type == "qwen3"
    layers = values["num_hidden_layers"]
    if 0 < layers <= MAX_LAYERS:
        values["windows"] = read_windows(raw, kind, layers, values["max_position_embeddings"])
    if raw.get("sparse_config") is not None:
        values["sparse_config"] = SparseConfig.from_mapping(raw["sparse_config"])
    bos = raw.get("bos_token_id")
    require(type(bos) is not int or abs(bos) < 1 << 31, f"config bos_token_id = {shown(bos)} is no token id")
    values["bos_token_id"] = bos if type(bos) is int and bos >= 0 else None
    values["eos_token_ids"] = _as_ids(raw.get("eos_token_id"))
    return ModelConfig(**values)


def _head_sizes(raw: Mapping[str, Any], kind: str, heads: int, hidden: int) -> dict[str, int]:
    """What the class takes where heads of keys and the size of a head are not given."""
    own = CLASSES[kind]
    require(heads > 0, f"config num_attention_heads = {shown(heads)} is not positive")
    usual = own.kv_heads if "num_key_value_heads" not in raw else None
    usual = usual if usual and heads % usual == 0 else heads
    size = own.head_dim if "head_dim" not in raw else None
    found = {
        "num_key_value_heads": _get(raw, "num_key_value_heads", int, usual),
        "head_dim": _get(raw, "head_dim", int, size or hidden // heads),
    }
    divides = size or raw.get("head_dim") is not None or hidden % heads == 0
    require(bool(divides), f"config num_attention_heads = {heads} do not divide hidden_size = {hidden}")
    return found


def _class_of(raw: Mapping[str, Any]) -> str:
    """Which of CLASSES a config.json describes: model_type says it, architectures only where there is none.
    Raises ConfigError, also where the two name different kinds (software differs in which it goes by), and
    where architectures name what computes something else."""
    known = {name: kind for kind, one in CLASSES.items() for name in one.architectures}
    named = raw.get("architectures") or []
    require(
        isinstance(named, list | tuple) and all(isinstance(name, str) for name in named),
        f"config architectures = {shown(named)} is not a list of names",
    )
    by_name = next((known[name] for name in named if name in known), None)
    kind = _get(raw, "model_type", str, "")
    kind = _ALIASES.get(kind, kind)
    _refuse_others(named, kind)
    if kind not in CLASSES and by_name is None:
        what = shown(list(named)) if named else kind[:100] or "no architecture"
        raise ConfigError(f"config describes {what}, which is not supported", suggest(kind, list(CLASSES)))
    either = "keep the right one: --ignore-field model_type, or --ignore-field architectures"
    require(
        by_name is None or not kind or by_name == kind,
        f"config architectures = {shown(list(named))} and model_type = {shown(kind)} are two kinds of model",
        either if kind in CLASSES else "if architectures are right: --ignore-field model_type",
    )
    return by_name or kind


def _refuse_others(named: Collection[str], kind: str) -> None:
    """Raise ConfigError where one of the classes ``named`` is no causal language model."""
    for name in named:
        what = next((what for pattern, what in OTHER_CLASSES if pattern.search(name)), None)
        if what is not None:
            whole = f"if it is a {kind} language model, head included: --ignore-field architectures"
            message = f"config architectures name {name[:100]}, {what}: it does not run here"
            raise ConfigError(message, whole if kind in CLASSES else "")


_MISSING = object()


def _get(raw: Mapping[str, Any], name: str, kind: type, default: Any = _MISSING) -> Any:
    value = raw.get(name)
    if value is None:
        require(default is not _MISSING, f"config lacks {name}")
        value = default
    return check_scalar(value, kind, f"config {name}")


def _mup_scales(raw: Mapping[str, Any]) -> dict[str, float]:
    names = ("scale_emb", "scale_depth", "dim_model_base")
    missing = [name for name in names if raw.get(name) is None]
    if missing:
        raise ConfigError(
            f"this MiniCPM config lacks {', '.join(missing)}: without it every logit would be wrong",
            "add it to config.json (MiniCPM4 uses scale_emb 12, scale_depth 1.4, dim_model_base 256)",
        )
    scales = {name: _get(raw, name, float) for name in names}
    for name, value in scales.items():
        require(value > 0, f"config {name} = {value} is not positive")
    return scales
