"""ModelConfig from GGUF metadata."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minicpm4.config.fields import is_nothing, refuse_fields, without
from minicpm4.config.model import MAX_SIZE, MODEL_TYPES, ModelConfig
from minicpm4.config.rope import RopeScaling
from minicpm4.config.strict import check_scalar, require, suggest
from minicpm4.errors import ConfigError

__all__ = ["ROPE_VECTORS", "SAMPLING_KEYS", "config_from_gguf", "same_in_layers"]

SAMPLING_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""Of metadata the settings of sampling that a file suggests, and their names in generation_config.json."""

LONG, SHORT, FREQS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
ROPE_VECTORS = (LONG, SHORT, FREQS)  # tensors that belong to the configuration
_SCALES = ("embedding_scale", "residual_scale", "logit_scale")
_MAX_LAYERS = 1 << 12


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensor_shapes: Mapping[str, tuple[int, ...]],
    rope_vectors: Mapping[str, Sequence[float]] | None = None,
    ignore_fields: Collection[str] = (),
) -> ModelConfig:
    """Build the config that GGUF ``metadata`` describes.

    ``tensor_shapes`` (Hugging Face names) tells vocabulary, tying and biases. ``rope_vectors`` holds the
    values of those of ROPE_VECTORS that the file has, head_dim / 2 numbers each; ``ignore_fields``: keys that
    are taken for absent. Raises ConfigError when a key is missing, absurd or not known; a MiniCPM file
    without its three scales is refused.
    """
    metadata = without(metadata, ignore_fields) if ignore_fields else metadata
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in MODEL_TYPES:
        raise ConfigError(
            f"GGUF general.architecture = {reprlib.repr(arch)} is not supported",
            suggest(str(arch)[:64], list(MODEL_TYPES)),
        )
    keys = _Keys(metadata, arch)
    _check_keys(metadata, arch)
    layers = keys.size("block_count", limit=_MAX_LAYERS)
    hidden = keys.size("embedding_length")
    heads = keys.size("attention.head_count")
    require(hidden % heads == 0 or keys.has("attention.key_length"), f"{heads} heads do not divide {hidden}")
    head_dim = _head_dim(keys, hidden, heads)
    context = keys.size("context_length", limit=1 << 27)
    values: dict[str, Any] = {
        "model_type": arch,
        "vocab_size": _vocab_size(keys, tensor_shapes),
        "hidden_size": hidden,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": _shortest(keys.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(keys.number("rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(keys, tensor_shapes, rope_vectors or {}, context, head_dim),
        "tie_word_embeddings": "lm_head.weight" not in tensor_shapes,
        **_biases(tensor_shapes),
        "qk_norm": arch == "qwen3",
        "bos_token_id": keys.token("bos"),
        "eos_token_ids": _ends(keys),
    }
    if arch == "minicpm":
        values |= _mup_scales(keys, layers, hidden)
    return ModelConfig(**values)


# Metadata of an architecture that is read, by the part of the key after its name.
_READ = (
    *("block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
# Of these, what converters may write as a list with an entry for each layer.
_IN_LAYERS = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
# Labels, and what says nothing of a model's logits.
_HARMLESS = (
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "training",
    "quantization_version",
    "pooling_type",
)
# Metadata that is not obeyed -> values, beside nought, false and nothing, at which it does nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True, 1),
    "use_parallel_residual": (),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (),
    "expert_used_count": (),
    **dict.fromkeys(_SCALES, (1.0,)),
}

_SWITCHED_ON = ("attention.causal",)  # absent it is true: false says something


def _check_keys(metadata: Mapping[str, Any], arch: str) -> None:
    """Raise ConfigError for metadata of the architecture that is not known, by name: it may change every
    logit."""
    read = (*_READ, *(_SCALES if arch == "minicpm" else ()))
    wrong = {}
    for key, value in metadata.items():
        name = key.removeprefix(f"{arch}.")
        if name == key or name in read or name in _HARMLESS or value is None:
            continue
        if is_nothing(value) and name not in _SWITCHED_ON:
            continue
        if not (type(value) in (bool, int, float) and value in _NEUTRAL.get(name, ())):
            wrong[key] = value
    refuse_fields("GGUF", f"architecture {arch}", wrong)


def same_in_layers(metadata: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of ``key``; of a list with an entry for each layer, all the same, that entry."""
    value = metadata.get(key, default)
    layers = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    if not isinstance(value, list) or len(value) != layers or any(one != value[0] for one in value):
        return value
    return value[0] if value else value


def _biases(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, bool]:
    """Which projections have biases: as the first layer's; that all layers agree is looked at later."""
    first = "model.layers.0."
    groups = {
        "attention_bias": [f"self_attn.{name}_proj" for name in "qkv"],
        "output_bias": ["self_attn.o_proj"],
        "mlp_bias": [f"mlp.{name}_proj" for name in ("gate", "up", "down")],
    }
    return {group: any(f"{first}{name}.bias" in shapes for name in names) for group, names in groups.items()}


class _Keys:
    """Checked access to metadata by the part of the key after the architecture."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self.metadata, self.arch = metadata, arch

    def has(self, name: str) -> bool:
        return self.metadata.get(f"{self.arch}.{name}") is not None

    def get(self, name: str, kind: type, default: Any) -> Any:
        key = f"{self.arch}.{name}"
        value = self.metadata.get(key, default)
        require(value is not None, f"GGUF metadata lacks {key}", "convert the model to GGUF again")
        if isinstance(value, list) and name in _IN_LAYERS:
            value = same_in_layers(self.metadata, key)
            layers = self.metadata.get(f"{self.arch}.block_count")
            require(
                not isinstance(value, list) or len(value) != layers,
                f"GGUF {key} = {reprlib.repr(value)}: layers of different sizes are not supported",
            )
        if isinstance(value, list) or (isinstance(value, str) and (kind is not str or len(value) > 64)):
            # Such a value can be megabytes long: it must not become the message.
            raise ConfigError(f"GGUF {key} = {reprlib.repr(value)} is not a valid {kind.__name__}")
        return check_scalar(value, kind, f"GGUF {key}")

    def size(self, name: str, *, default: int | None = None, limit: int = MAX_SIZE) -> int:
        value: int = self.get(name, int, default)
        require(0 < value <= limit, f"GGUF {self.arch}.{name} = {value} is outside 1 to {limit}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value: float = self.get(name, float, default)
        return value

    def token(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        ok = value is None or (type(value) is int and 0 <= value < 1 << 31)
        require(ok, f"GGUF {key} = {reprlib.repr(value)} is not a token id")
        return value


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    rotary = keys.size("rope.dimension_count") if keys.has("rope.dimension_count") else None
    head_dim = keys.size("attention.key_length", default=rotary or hidden // heads)
    if rotary not in (None, head_dim):
        raise ConfigError(
            f"GGUF {keys.arch}.rope.dimension_count = {rotary} is not the head size {head_dim}: "
            "rotary positions on a part of each head are not supported"
        )
    value_dim = keys.size("attention.value_length", default=head_dim)
    require(
        value_dim == head_dim,
        f"GGUF value heads of size {value_dim} beside keys of {head_dim} are not supported",
    )
    return head_dim


def _vocab_size(keys: _Keys, shapes: Mapping[str, tuple[int, ...]]) -> int:
    embed = shapes.get("model.embed_tokens.weight")
    if embed is not None and len(embed) == 2:
        return embed[0]
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    return keys.size("vocab_size", default=len(tokens) if isinstance(tokens, list) else None)


def _ends(keys: _Keys) -> tuple[int, ...]:
    found = [keys.token(name) for name in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _mup_scales(keys: _Keys, layers: int, hidden: int) -> dict[str, float]:
    """Invert what converters write: scale_emb, scale_depth / sqrt(layers), hidden / dim_model_base."""
    missing = [f"{keys.arch}.{name}" for name in _SCALES if not keys.has(name)]
    if missing:
        raise ConfigError(
            f"this MiniCPM GGUF file lacks {', '.join(missing)}: without it every logit would be wrong",
            "convert the model again with a converter that writes the three scales",
        )
    embedding, residual, logit = (keys.number(name) for name in _SCALES)
    for name, value in zip(_SCALES, (embedding, residual, logit), strict=True):
        require(0 < value < 1e6, f"GGUF {keys.arch}.{name} = {value} is out of range")
    if logit < 1:
        raise ConfigError(
            f"GGUF {keys.arch}.logit_scale = {logit} is below 1: it should be hidden_size / dim_model_base, "
            "but some old files hold the inverse, and the two cannot be told apart for certain",
            "convert the model again",
        )
    # float32 in the file: snap dim_model_base, which is a whole number, to undo its rounding.
    base = hidden / logit
    base = float(round(base)) if abs(base - round(base)) < 1e-3 else base
    return {
        "scale_emb": embedding,
        "scale_depth": _shortest(residual * math.sqrt(layers)),
        "dim_model_base": base,
    }


def _shortest(value: float) -> float:
    """The six-digit decimal if ``value`` is that within float32 rounding (1.4, not 1.4000000238)."""
    short = float(f"{value:.6g}")
    return short if abs(short - value) <= 1e-7 * abs(value) else value


def _rope_scaling(
    keys: _Keys,
    shapes: Mapping[str, tuple[int, ...]],
    vectors: Mapping[str, Sequence[float]],
    context: int,
    head_dim: int,
) -> RopeScaling | None:
    for name in ROPE_VECTORS:
        require(
            name not in shapes or name in vectors, f"the values of {name} were not given to the config reader"
        )
    kind = keys.get("rope.scaling.type", str, "linear")
    # As in llama.cpp: nought says nothing, and the old key counts where there is no new one.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    original = keys.size("rope.scaling.original_context_length", default=context, limit=1 << 27)
    # Converters of MiniCPM write the factors without naming the type.
    if LONG in vectors or SHORT in vectors or kind == "longrope":
        return _longrope(keys, vectors, original, head_dim)
    if FREQS in vectors:
        # Llama 3's scaling, already worked out: divisors of each frequency, at any length.
        require(
            kind == "none" or factor == 1.0,
            f"GGUF {FREQS} beside {keys.arch}.rope.scaling.factor = {factor}: two scalings at once",
            "convert the model again",
        )
        divisors = _factors(vectors, FREQS, head_dim)
        return RopeScaling(
            rope_type="longrope",
            short_factor=divisors,
            long_factor=divisors,
            attention_factor=1.0,
            original_max_position_embeddings=context,
        )
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return RopeScaling(rope_type="linear", factor=factor, original_max_position_embeddings=original)
    if kind == "yarn":
        return _yarn(keys, factor, original)
    raise ConfigError(
        f"GGUF {keys.arch}.rope.scaling.type = {kind!r} is not supported",
        suggest(kind, ["none", "linear", "yarn", "longrope"]),
    )


def _factors(vectors: Mapping[str, Sequence[float]], name: str, head_dim: int) -> tuple[float, ...]:
    factors = tuple(float(value) for value in vectors.get(name, ()))
    half = head_dim // 2
    require(len(factors) == half, f"GGUF tensor {name} has {len(factors)} factors, head_dim / 2 is {half}")
    require(all(0 < f < 1e30 for f in factors), f"GGUF tensor {name} holds a factor that is not positive")
    return factors


def _longrope(
    keys: _Keys, vectors: Mapping[str, Sequence[float]], original: int, head_dim: int
) -> RopeScaling:
    name = "rope.scaling.attn_factor"
    return RopeScaling(
        rope_type="longrope",
        short_factor=_factors(vectors, SHORT, head_dim),
        long_factor=_factors(vectors, LONG, head_dim),
        original_max_position_embeddings=original,
        attention_factor=keys.number(name) if keys.has(name) else None,
    )


def _yarn(keys: _Keys, factor: float, original: int) -> RopeScaling:
    require(factor >= 1, f"GGUF {keys.arch}.rope.scaling.factor = {factor} is below 1")
    # GGUF's factor multiplies YaRN's own 0.1 ln(s) + 1; a config.json's replaces it.
    own = 0.1 * math.log(factor) + 1
    name = next(
        (n for n in ("rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor") if keys.has(n)), None
    )
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=keys.number(name) * own if name else None,
    )
