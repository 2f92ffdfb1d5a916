"""A draft layer: one decoder layer beside a model that finds the token after next in its hidden states.

At row i, with h the model's final hidden states and E its scaled embeddings (EAGLE-2, arXiv 2406.16858;
DeepSeek-V3, arXiv 2412.19437, section 2.2; MiniCPM4 report, arXiv 2506.07900):

    x_i = fc(concat(norm1(E(token i + 1)), norm2(h_i)))        norms: RMSNorm
    h'_i = final_norm(layer(x)_i),   logits = head(h'_i), for token i + 2

Embeddings, final norm and head are the model's. The layer's residual branches are scaled by scale_depth /
sqrt(layers + 1) where the model has muP scales, else by 1. The trainer (multi-token prediction,
``train/mtp.py``) and the engine run the same ``draft``, each on its table of ops.

A folder (``head_files`` reads it) holds it as EAGLE-2 heads of MiniCPM4 are held: ``fc.weight`` (hidden, 2
hidden), embeddings' half first, ``input_norm1.weight``, ``input_norm2.weight`` and ``layers.0.*``;
config.json says sizes and scales, the residual one as scale_depth / sqrt(mup_denominator). What such a head
lacks elsewhere, and this one takes from the model, is the final norm: config.json says so (``final_norm``:
"target").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.formats.names import layer_tensors
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Array, Floats, Ints, KVLayer, Step
from minicpm4.model.forward import Compute, decoder_layer
from minicpm4.model.weights import LayerWeights, ModelWeights, build_layer

__all__ = [
    "LAYER",
    "DraftWeights",
    "build_draft",
    "draft",
    "draft_config",
    "draft_shapes",
    "residual_scale",
    "shared_config",
]

LAYER = "layers.0."  # before the names of the layer's tensors
Run = Callable[[Compute, LayerWeights, Array], Array]
# What a head shares with the model that it was trained beside, of what config.json says of both.
_SAME = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "scale_emb",
    "dim_model_base",
    "tie_word_embeddings",
)
# Of its config.json what does not say whose head it is: a later stage of training may have raised the length.
_OTHERS = ("architectures", "torch_dtype", "max_position_embeddings")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DraftWeights:
    """``fc`` (hidden, 2 hidden); norms (hidden,) of the next token's embedding and of the hidden states;
    ``residual`` multiplies the layer's branches; ``final_norm``: whether the model's comes behind it."""

    fc: Linear
    norm_embed: Floats
    norm_hidden: Floats
    layer: LayerWeights
    residual: float
    final_norm: bool = True


def draft(
    ops: OpTable,
    weights: ModelWeights,
    head: DraftWeights,
    step: Step,
    following: Ints,
    hidden: Array,
    kv: KVLayer,
    run: Run | None = None,
) -> Array:
    """Return h' (n, hidden), from which the model's head takes logits for the token after next.

    ``weights``: the model's; ``hidden`` (n, hidden): its final hidden states at the rows of ``step``;
    ``following`` (n,): the token after each row's. Keys and values are appended to ``kv``, a layer of the
    draft's own. ``run(compute, layer, x)`` returns ``compute(layer, x)`` in its own way, as of ``forward``.
    """
    config = weights.config
    e = ops.embed(weights.embed, following, config.scale_emb)
    eps = config.rms_norm_eps
    both = ops.join([ops.rms_norm(e, head.norm_embed, eps), ops.rms_norm(hidden, head.norm_hidden, eps)])
    x = ops.linear(both, head.fc)
    compute = partial(decoder_layer, ops, step, kv, head.residual, (None, None, None))
    x = compute(head.layer, x) if run is None else run(compute, head.layer, x)
    return ops.rms_norm(x, weights.norm, eps) if head.final_norm else x


def draft_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a draft layer for models of ``config``."""
    width = config.hidden_size
    found: dict[str, tuple[int, ...]] = {"fc.weight": (width, 2 * width)}
    found |= {"input_norm1.weight": (width,), "input_norm2.weight": (width,)}
    return found | {LAYER + name: shape for name, shape in layer_tensors(config).items()}


def build_draft(
    config: ModelConfig, vector: Callable[[str], Floats], linear: Callable[[str], Linear]
) -> DraftWeights:
    """A draft layer from its tensors, as ``build_layer`` makes one of a model's."""
    return DraftWeights(
        fc=linear("fc"),
        norm_embed=vector("input_norm1.weight"),
        norm_hidden=vector("input_norm2.weight"),
        layer=build_layer(config, LAYER, vector, linear),
        residual=residual_scale(config),
    )


def residual_scale(config: ModelConfig) -> float:
    """The factor of a draft layer's residual branches."""
    scale, denominator = _residual(config)
    return scale / math.sqrt(denominator)


def _residual(config: ModelConfig) -> tuple[float, int]:
    plain = config.residual_scale == 1.0
    return (1.0, 1) if plain else (config.scale_depth, config.num_hidden_layers + 1)


def draft_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a draft layer for models of ``config``."""
    scale, denominator = _residual(config)
    return {
        "architectures": ["EagleForCausalLM"],
        **{name: getattr(config, name) for name in _SAME},
        "num_hidden_layers": 1,
        "scale_depth": scale,
        "mup_denominator": denominator,
        "final_norm": "target",
        "torch_dtype": "float32",
    }


def shared_config(config: ModelConfig) -> dict[str, Any]:
    """What the config.json of a draft layer says of the model that it was trained beside."""
    return {name: value for name, value in draft_config(config).items() if name not in _OTHERS}
