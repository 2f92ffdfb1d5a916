"""MiniCPM's decoder in plain torch, float32, one full pass: small enough to check by eye.

    x = scale_emb * embed(ids)
    x = x + (scale_depth / sqrt(layers)) * attention(norm(x))       and so for the feed-forward
    logits = head(norm(x) * dim_model_base / hidden_size)

Weights go by their Hugging Face names. Rotary: default or longrope.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotary_tables(config: dict, n: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (n, head_dim), each half twice; longrope's factors and scale applied."""
    half = config["head_dim"] // 2
    exponent = torch.arange(half, dtype=torch.float64) / half
    frequency = config["rope_theta"] ** -exponent
    scale, scaling = 1.0, config.get("rope_scaling")
    if scaling is not None:
        assert scaling["rope_type"] == "longrope"
        original = scaling["original_max_position_embeddings"]
        factors = scaling["long_factor" if n > original else "short_factor"]
        frequency = frequency / torch.tensor(factors, dtype=torch.float64)
        ratio = config["max_position_embeddings"] / original
        scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return (angle.cos() * scale).float(), (angle.sin() * scale).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d / 2) of x (heads, n, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attention(x: Tensor, weights: dict[str, Tensor], config: dict, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Causal grouped-query attention over x (n, hidden)."""
    n, d = x.shape[0], config["head_dim"]
    q, k, v = (
        linear(x, weights[f"self_attn.{name}_proj.weight"]).view(n, -1, d).transpose(0, 1) for name in "qkv"
    )
    q, k = rotate(q, *tables), rotate(k, *tables)
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = q @ k.transpose(1, 2) / math.sqrt(d)
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    out = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    return linear(out.transpose(0, 1).reshape(n, -1), weights["self_attn.o_proj.weight"])


def feed_forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """down(silu(gate(x)) * up(x))"""
    gated = silu(linear(x, weights["mlp.gate_proj.weight"])) * linear(x, weights["mlp.up_proj.weight"])
    return linear(gated, weights["mlp.down_proj.weight"])


@torch.inference_mode()
def logits(weights: dict[str, Tensor], config: dict, ids: Tensor) -> Tensor:
    """Return (n, vocab) logits of ids (n,); ``config`` as in config.json."""
    residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    eps = config["rms_norm_eps"]
    tables = rotary_tables(config, len(ids))
    x = weights["model.embed_tokens.weight"][ids] * config["scale_emb"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        x = x + residual * attention(rms_norm(x, own["input_layernorm.weight"], eps), own, config, tables)
        x = x + residual * feed_forward(rms_norm(x, own["post_attention_layernorm.weight"], eps), own)
    x = rms_norm(x, weights["model.norm.weight"], eps) * (config["dim_model_base"] / config["hidden_size"])
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return linear(x, head)
