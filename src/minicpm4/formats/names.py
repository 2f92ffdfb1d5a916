"""Tensor names: GGUF's to Hugging Face's, and which tensors a config asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minicpm4.config import ModelConfig
from minicpm4.errors import ConfigError

__all__ = [
    "EMBED",
    "HEAD",
    "NORM",
    "O_BIAS",
    "expected_tensors",
    "gguf_name",
    "gguf_to_hf",
    "hf_name",
    "is_ignorable",
    "layer_tensors",
    "no_matrix",
    "pattern_of",
]

O_BIAS = "self_attn.o_proj.bias"
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"

_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)")
_PREFIXED = re.compile(r"(?:model\.)*((?:embed_tokens|layers\.[0-9]+|norm|lm_head)\..+)")
# Tables that can be computed (rotary ones, masks, positions), and rotary factors, which belong to the
# configuration.
_IGNORABLE = re.compile(
    r"(.*\.)?(rotary_emb|rope|rotary|rotary_pos_emb)\.((original_|long_|short_)?inv_freq|cos|sin|cos_cached|sin_cached"
    r"|_cos_cached|_sin_cached|freqs|scale)"
    r"|(.*\.)?(rotary_emb|rope_freqs|freqs_cis|inv_freq|cos_cached|sin_cached)"
    r"|(.*\.)?(self_attn|attn|attention)\.(bias|masked_bias|mask|causal_mask|attn_mask|tril)"
    r"|(.*\.)?(causal_mask|attention_mask|attn_mask|position_ids|masked_bias)"
    r"|rope_(freqs|factors_long|factors_short)\.weight"
)


def gguf_to_hf(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor; a name that has none is returned as it is."""
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _IN_LAYER:
        return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{_GLOBAL[stem]}.{kind}" if stem in _GLOBAL else name


_TO_GGUF = {hf: gguf for gguf, hf in (_GLOBAL | _IN_LAYER).items()}
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")


def no_matrix(pattern: str, names: Iterable[str]) -> ConfigError:
    """That no matrix of ``names`` has a name with ``pattern``."""
    ends = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names)
    return ConfigError(
        f"no matrix has a name with {pattern!r}",
        f"names end in {', '.join(ends)}, those of layers begin with model.layers.0 and so on",
    )


def gguf_name(name: str) -> str:
    """The inverse of ``gguf_to_hf``, of a tensor of ``expected_tensors``."""
    match = _LAYER.fullmatch(name)
    stem, _, kind = (match[2] if match else name).rpartition(".")
    own = f"{_TO_GGUF[stem]}.{kind}"
    return f"blk.{match[1]}.{own}" if match else own


def hf_name(name: str) -> str:
    """The usual name of a tensor whose prefix "model." is absent, doubled or before the head, as folders
    saved from the inner model or a wrapper have it, and transformers reads it; other names as they are."""
    match = _PREFIXED.fullmatch(name)
    return name if match is None else match[1] if match[1].startswith("lm_head.") else f"model.{match[1]}"


def is_ignorable(name: str) -> bool:
    """Whether a tensor that no config asks for can be left alone."""
    return _IGNORABLE.fullmatch(name) is not None


def layer_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name (without "model.layers.0." or the like) -> shape of the tensors of one layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.attention_bias:
        layer |= {"self_attn.q_proj.bias": (queries,)}
        layer |= {"self_attn.k_proj.bias": (keys,), "self_attn.v_proj.bias": (keys,)}
    if config.output_bias:
        layer |= {O_BIAS: (hidden,)}
    if config.mlp_bias:
        layer |= {"mlp.gate_proj.bias": (inner,), "mlp.up_proj.bias": (inner,)}
        layer |= {"mlp.down_proj.bias": (hidden,)}
    if config.qk_norm:
        layer |= {
            "self_attn.q_norm.weight": (config.head_dim,),
            "self_attn.k_norm.weight": (config.head_dim,),
        }
    return layer


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a model of ``config`` has."""
    hidden, layer = config.hidden_size, layer_tensors(config)
    found: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    found[NORM] = (hidden,)
    if not config.tie_word_embeddings:
        found[HEAD] = (config.vocab_size, hidden)
    return found


def pattern_of(names: Iterable[str]) -> str:
    """A regular expression found in the names of these matrices, and of those alike in other layers."""
    return "|".join(dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names))
