"""A draft layer: one decoder layer beside a model that finds the token after next in its hidden states.

At row i, with h the model's final hidden states and E its scaled embeddings (EAGLE-2, arXiv 2406.16858;
DeepSeek-V3, arXiv 2412.19437, section 2.2; MiniCPM4 report, arXiv 2506.07900):

    x_i = fc(concat(norm1(E(token i + 1)), norm2(h_i)))        norms: RMSNorm
    h'_i = final_norm(layer(x)_i),   logits = head(h'_i), for token i + 2

Embeddings, final norm and head are the model's. The layer's residual branches are scaled by scale_depth /
sqrt(layers + 1) where the model has muP scales, else by 1. The trainer (multi-token prediction,
``train/mtp.py``) and the engine run the same ``draft``, each on its table of ops.

A folder holds it as EAGLE-2 heads of MiniCPM4 are held: ``fc.weight`` (hidden, 2 hidden), embeddings' half
first, ``input_norm1.weight``, ``input_norm2.weight`` and ``layers.0.*``; config.json says sizes and scales,
the residual one as scale_depth / sqrt(mup_denominator). What such a head lacks elsewhere, and this one takes
from the model, is the final norm: config.json says so (``final_norm``: "target").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, UnsupportedError
from minicpm4.formats.names import layer_tensors
from minicpm4.formats.safetensors import SafetensorsCheckpoint
from minicpm4.kernels.contract import Array, Floats, Ints, KVLayer, OpTable, Step
from minicpm4.kernels.layer_weights import Linear
from minicpm4.model.forward import Compute, decoder_layer
from minicpm4.model.weights import LayerWeights, ModelWeights, build_layer

__all__ = [
    "LAYER",
    "DraftWeights",
    "build_draft",
    "draft",
    "draft_config",
    "draft_shapes",
    "read_draft",
    "residual_scale",
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
_LENGTH = "max_position_embeddings"  # which a later stage of training may have raised


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


def read_draft(folder: Path, config: ModelConfig, ops: OpTable) -> DraftWeights:
    """Read the draft layer in ``folder``, for ``ops`` and a model of ``config``.

    Raises CheckpointError for one of another model, UnsupportedError for a kind that cannot be run,
    ConfigError.
    """
    source = SafetensorsCheckpoint(folder, as_stored=True)
    _check_config(source.hf_config() or {}, config, folder)
    shapes = draft_shapes(config)
    for name in sorted(shapes.keys() | source.tensors.keys()):
        found = source.tensors[name].shape if name in source.tensors else "missing"
        asked = shapes.get(name, "no such tensor")
        if found != asked:
            raise _foreign(f"{name} in {folder} is {found}, the model asks for {asked}")

    def linear(name: str) -> Linear:
        bias = source.load_vector(f"{name}.bias") if f"{name}.bias" in shapes else None
        return Linear(weight=ops.prepare(source.load(f"{name}.weight")), bias=bias)

    return build_draft(config, source.load_vector, linear)


def _check_config(raw: Mapping[str, Any], config: ModelConfig, folder: Path) -> None:
    if raw.get("final_norm") != "target":
        raise UnsupportedError(
            f"the draft layer in {folder} has final_norm = {raw.get('final_norm')!r}, and so needs another "
            "forward than the one that there is",
            "use one that `minicpm4 train` wrote",
        )
    for name, wanted in draft_config(config).items():
        if name not in ("architectures", "torch_dtype", _LENGTH) and raw.get(name) != wanted:
            raise _foreign(f"config.json in {folder} has {name} = {raw.get(name)!r}, the model {wanted!r}")


def _foreign(condition: str) -> CheckpointError:
    return CheckpointError(condition, "use the draft layer that was trained with this model")
