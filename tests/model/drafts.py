"""A draft layer beside a random model, on any op table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.model.draft import draft, draft_config, draft_shapes
from minicpm4.model.forward import forward, logits
from minicpm4.model.head_files import HeadFile, read_draft
from minicpm4.model.weights import ModelWeights
from tests.model.driver import Driver


def make_draft(folder: Path, config: ModelConfig, leave_out: str = "", **changed: Any) -> Path:
    """Write a random draft layer for models of ``config``: without the tensor ``leave_out``, and with other
    settings than its config.json has."""
    rng, tensors = np.random.default_rng(7), {}
    for name, shape in draft_shapes(config).items():
        values = rng.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        tensors[name] = values if len(shape) == 2 else 1 + values
    tensors.pop(leave_out, None)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**draft_config(config), **changed}))
    return folder


def make_eagle3(folder: Path, config: ModelConfig, tokens: int, leave_out: str = "", **changed: Any) -> Path:
    """Write a random EAGLE-3 head for models of ``config`` that knows ``tokens`` of its tokens."""
    rng, width, d, heads = np.random.default_rng(11), config.hidden_size, config.head_dim, 4
    shapes = {
        "fc": (width, 3 * width),
        "lm_head": (tokens, width),
        "midlayer.self_attn.o_proj": (width, heads * d),
    }
    shapes |= {f"midlayer.self_attn.{n}_proj": (h * d, 2 * width) for n, h in (("q", 4), ("k", 2), ("v", 2))}
    shapes |= {f"midlayer.mlp.{name}_proj": (96, width) for name in ("gate", "up")}
    shapes |= {"midlayer.mlp.down_proj": (width, 96)}
    tensors: dict[str, Any] = {
        f"{name}.weight": rng.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        for name, shape in shapes.items()
    }
    norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    for name in (*(f"midlayer.{one}" for one in norms), "norm"):
        tensors[f"{name}.weight"] = 1 + rng.standard_normal(width).astype(np.float32) / 8
    chosen = np.sort(rng.permutation(config.vocab_size)[:tokens])
    tensors |= {"d2t": chosen - np.arange(tokens), "t2d": np.isin(np.arange(config.vocab_size), chosen)}
    tensors.pop(leave_out, None)
    raw = {"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": config.vocab_size, "hidden_size": width}
    raw |= {"num_attention_heads": heads, "num_key_value_heads": 2, "head_dim": d, "intermediate_size": 96}
    raw |= {"draft_vocab_size": tokens, "rms_norm_eps": 1e-5}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**raw, **changed}))
    return folder


class Drafter:
    """One op table, one model and the draft layer in ``folder``, each with pages of its own."""

    def __init__(
        self, ops: OpTable, weights: ModelWeights, folder: Path, sparse: SparseConfig | None = None
    ) -> None:
        self.ops, self.weights = ops, weights
        self.head = read_draft(HeadFile(folder), weights.config, ops)
        self.model, self.own = (Driver(ops, weights, context=512, sparse=sparse, seed=n) for n in range(2))

    def feed(self, ids: Sequence[int], sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The model's hidden states at all ``ids`` but the last, h' there and its logits; read in pieces of
        ``sizes``."""
        parts, at = [], 0
        for size in sizes:
            rows = ids[at : at + size]
            hidden = forward(self.ops, self.weights, self.model.step(rows), self.model.pool)
            after = np.asarray(ids[at + 1 : at + size + 1], np.int32)
            kv = self.own.pool.layer(0)
            found = draft(self.ops, self.weights, self.head, self.own.step(rows), after, hidden, kv)
            scores = logits(self.ops, self.weights, found)
            parts.append([np.array(self.ops.get(array)) for array in (hidden, found, scores)])
            at += size
        assert at == len(ids) - 1
        hidden, found, scores = map(np.concatenate, zip(*parts, strict=True))
        return hidden, found, scores
