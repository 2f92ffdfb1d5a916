"""The shape and constants of a decoder, from a Hugging Face config.json or GGUF metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.config.rope import RopeScaling, parse_rope_scaling
from minicpm4.config.sparse import SparseConfig
from minicpm4.config.strict import check_scalar, require, suggest
from minicpm4.errors import ConfigError

MODEL_TYPES = ("minicpm", "llama", "qwen2", "qwen3")
_ARCHITECTURES = {
    "MiniCPMForCausalLM": "minicpm",
    "MiniCPM4ForCausalLM": "minicpm",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_ALIASES = {"minicpm4": "minicpm", "mistral": "llama"}
MAX_SIZE = 1 << 24  # no dimension of a decoder that fits an end device is larger


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One decoder. Names are those of Hugging Face configs.

    Llama is the special case scale_emb = 1, scale_depth = sqrt(num_hidden_layers),
    dim_model_base = hidden_size. Raises ConfigError when sizes do not fit together.
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
    qk_norm: bool = False
    sparse_config: SparseConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.scale_depth:
            object.__setattr__(self, "scale_depth", math.sqrt(self.num_hidden_layers))
        if not self.dim_model_base:
            object.__setattr__(self, "dim_model_base", float(self.hidden_size))
        for name in SIZES:
            value = getattr(self, name)
            require(0 < value <= MAX_SIZE * 8, f"config {name} = {value} is out of range")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads = {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads = {self.num_key_value_heads}",
        )
        require(
            self.head_dim % 2 == 0 and self.head_dim <= 512,
            f"config head_dim = {self.head_dim} is not even, or above 512",
        )
        require(self.rope_theta > 0, f"config rope_theta = {self.rope_theta} is not positive")
        require(0 < self.rms_norm_eps < 1, f"config rms_norm_eps = {self.rms_norm_eps} is out of range")
        scaling = self.rope_scaling
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
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> ModelConfig:
        """Read a config.json (its path, its folder, or its parsed content).

        A MiniCPM config without its three muP scales is refused. Raises ConfigError.
        """
        raw = source if isinstance(source, Mapping) else read_hf_config(Path(source))
        return _from_hf(raw)


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def read_hf_config(path: Path) -> dict[str, Any]:
    """Return the content of ``path`` or ``path/config.json``, with generation_config.json's
    eos_token_id added to it. Raises ConfigError."""
    file = path / "config.json" if path.is_dir() else path
    raw = _read_json(file)
    generation = file.with_name("generation_config.json")
    if generation.is_file():
        ends = [raw.get("eos_token_id"), _read_json(generation).get("eos_token_id")]
        raw["eos_token_id"] = list(dict.fromkeys(t for e in ends for t in _as_ids(e)))
    return raw


def read_generation_config(path: Path) -> dict[str, Any]:
    """The table of generation_config.json in a checkpoint's folder; empty without one. Raises ConfigError."""
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > 1 << 24:
            raise ConfigError(f"{file} is larger than 16 MiB")
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} holds a {type(raw).__name__}, not a table")
    return raw


def _as_ids(value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for item in items:
        require(
            type(item) is int and 0 <= item < 1 << 31, f"config eos_token_id holds {item!r}, not a token id"
        )
    return tuple(items)


def _from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    model_type = detect_model_type(raw)
    if raw.get("mixer_types"):
        raise ConfigError("config has mixer_types (SALA hybrid layers), which are not supported")
    values: dict[str, Any] = {"model_type": model_type}
    for name in SIZES:
        if name not in ("head_dim", "num_key_value_heads"):
            values[name] = _get(raw, name, int)
    heads = values["num_attention_heads"]
    require(heads > 0, f"config num_attention_heads = {heads} is not positive")
    values["num_key_value_heads"] = _get(raw, "num_key_value_heads", int, heads)
    values["head_dim"] = _get(raw, "head_dim", int, values["hidden_size"] // heads)
    values["rms_norm_eps"] = _get(raw, "rms_norm_eps", float, 1e-6)
    act = raw.get("hidden_act", "silu")
    require(act == "silu", f"config hidden_act = {act!r} is not supported", "only silu is")
    if raw.get("use_sliding_window") and raw.get("sliding_window"):
        raise ConfigError("config asks for sliding-window attention, which is not supported")
    values |= _rope(raw, values["max_position_embeddings"])
    # MiniCPM's own class ties by default; the key is absent from MiniCPM4-0.5B's file.
    values["tie_word_embeddings"] = _get(raw, "tie_word_embeddings", bool, model_type == "minicpm")
    if model_type == "minicpm":
        values |= _mup_scales(raw)
    values["attention_bias"] = model_type == "qwen2" or _get(raw, "attention_bias", bool, False)
    values["qk_norm"] = model_type == "qwen3"
    if raw.get("sparse_config") is not None:
        values["sparse_config"] = SparseConfig.from_mapping(raw["sparse_config"])
    bos = raw.get("bos_token_id")
    values["bos_token_id"] = bos if type(bos) is int else None
    values["eos_token_ids"] = _as_ids(raw.get("eos_token_id"))
    return ModelConfig(**values)


def detect_model_type(raw: Mapping[str, Any]) -> str:
    """Return which of MODEL_TYPES a config.json describes. Raises ConfigError."""
    for name in raw.get("architectures") or []:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    kind = str(raw.get("model_type", ""))
    kind = _ALIASES.get(kind, kind)
    if kind not in MODEL_TYPES:
        named = raw.get("architectures") or kind or "no architecture"
        raise ConfigError(
            f"config describes {named}, which is not supported", suggest(kind, list(MODEL_TYPES))
        )
    return kind


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


def _rope(raw: Mapping[str, Any], max_position: int) -> dict[str, Any]:
    # transformers 5 nests theta and scaling in one table, older files keep them apart.
    table = raw.get("rope_parameters") or raw.get("rope_scaling")
    theta = (raw.get("rope_parameters") or {}).get("rope_theta", raw.get("rope_theta", 10000.0))
    scaling = parse_rope_scaling(table, max_position)
    return {"rope_theta": check_scalar(theta, float, "config rope_theta"), "rope_scaling": scaling}
