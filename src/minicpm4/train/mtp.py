"""Multi-token prediction: one extra layer that predicts the token after the next; later it drafts.

At row i, with h the model's final hidden states and E its scaled embeddings (MiniCPM4 report, arXiv
2506.07900; DeepSeek-V3, arXiv 2412.19437, section 2.2):

    x_i = fc(concat(norm1(E(token i + 1)), norm2(h_i)))        norms: RMSNorm
    h'_i = final_norm(layer(x)_i),   logits = head(h'_i), for token i + 2

Embeddings, final norm and head are the model's. The loss is next-token loss + lambda * this one. The
layer's residual branches are scaled by scale_depth / sqrt(layers + 1) where the model has muP scales, else
by 1.

Beside the model it is saved as EAGLE-2 heads of MiniCPM4 are: ``fc.weight`` (hidden, 2 hidden), embeddings'
half first, ``input_norm1.weight``, ``input_norm2.weight`` and ``layers.0.*``; config.json says sizes and
scales, the residual one as scale_depth / sqrt(mup_denominator). What such a head lacks elsewhere, and this
one takes from the model, is the final norm: config.json says so (``final_norm``: "target").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.kernels.contract import Linear
from minicpm4.model.forward import decoder_layer
from minicpm4.train.layout import EXTRA_LAYER, extra_shapes
from minicpm4.train.model import (
    DecoderLayer,
    Init,
    Packed,
    TrainableModel,
    as_tensor,
    meta_tensors,
    new_tensor,
)
from minicpm4.train.tensor_files import write_file

__all__ = ["MultiToken", "fresh_extra", "second_targets"]

_FILE = "model.safetensors"


class MultiToken(nn.Module):
    """The extra layer for models of ``config``; ``tensors`` by the names above."""

    def __init__(self, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        own = {n.removeprefix(EXTRA_LAYER): t for n, t in tensors.items() if n.startswith(EXTRA_LAYER)}
        self.fc = _Weight(tensors["fc.weight"])
        self.input_norm1 = _Weight(tensors["input_norm1.weight"])
        self.input_norm2 = _Weight(tensors["input_norm2.weight"])
        self.layers = nn.ModuleList([DecoderLayer(config, EXTRA_LAYER, own)])

    @classmethod
    def new(cls, config: ModelConfig, seed: int, init: Init | None = None) -> MultiToken:
        """Fresh parameters, as TrainableModel.new makes them. ``init`` sees names such as
        mtp.layers.0.mlp.up_proj.weight."""
        return cls(config, dict(fresh_extra(config, seed, init)))

    @classmethod
    def without_values(cls, config: ModelConfig) -> MultiToken:
        """Shapes alone, as TrainableModel.without_values."""
        return cls(config, meta_tensors(extra_shapes(config)))

    def forward(self, model: TrainableModel, batch: Packed, hidden: Tensor) -> Tensor:
        """Return h' (n, hidden) from ``hidden`` (n, hidden), what ``model(batch)`` returned.

        The last row of each document has no next token: what it gives is meaningless, and read by none.
        """
        ops, weights, step = model.ops, model.weights(), model.step(batch)
        ids: Any = step.ids
        following: Any = torch.cat([ids[1:], ids[-1:]])
        e = ops.embed(weights.embed, following, self.config.scale_emb)
        eps = self.config.rms_norm_eps
        both = [
            ops.rms_norm(e, self.input_norm1.weight, eps),
            ops.rms_norm(hidden, self.input_norm2.weight, eps),
        ]
        fc: Any = model.matrix("fc.weight", self.fc.weight)
        x = ops.linear(torch.cat(both, dim=-1), Linear(weight=fc)).to(hidden.dtype)
        compute = partial(
            decoder_layer, ops, step, model.cache().layer(0), residual_scale(self.config), (None, None, None)
        )
        x = self.layers[0](x, compute, model.matrix, model.mode.recompute)
        result: Any = ops.rms_norm(x, weights.norm, eps)
        return result

    def save(self, folder: Path) -> None:
        """Write config.json and the tensors, float32, each under a temporary name first. Raises
        CheckpointError."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / _FILE, tensors)
            part = folder / "config.json.part"
            part.write_text(json.dumps(head_config(self.config), indent=2) + "\n", encoding="utf-8")
            os.replace(part, folder / "config.json")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write {folder}: {error}", "check the place and its free space"
            ) from error

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> MultiToken:
        """The layer saved in ``folder``, for a model of ``config``. Raises CheckpointError when it does not
        fit."""
        try:
            tensors = load_file(folder / _FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {folder / _FILE}: {error}", "check the path") from error
        expected = extra_shapes(config)
        for name in sorted(expected.keys() | tensors.keys()):
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            asked = expected.get(name, "no such tensor")
            if found != asked:
                raise CheckpointError(
                    f"{name} in {folder} is {found}, the model asks for {asked}",
                    "use the extra layer that was trained with this model",
                )
        return cls(config, {name: tensor.float() for name, tensor in tensors.items()})


def fresh_extra(config: ModelConfig, seed: int, init: Init | None = None) -> Iterator[tuple[str, Tensor]]:
    """The parameters of ``MultiToken.new``, one after another."""
    std = init or (lambda name, config: 0.02)
    for name, shape in extra_shapes(config).items():
        full = f"mtp.{name}"
        yield name, new_tensor(full, shape, seed, std(full, config))


class _Weight(nn.Module):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor)


def residual_scale(config: ModelConfig) -> float:
    """The factor of the extra layer's residual branches."""
    return (
        1.0 if config.residual_scale == 1.0 else config.scale_depth / math.sqrt(config.num_hidden_layers + 1)
    )


def head_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of the extra layer."""
    plain = config.residual_scale == 1.0
    same: tuple[str, ...] = (
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
    )
    same += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    same += ("scale_emb", "dim_model_base", "tie_word_embeddings")
    return {
        "architectures": ["EagleForCausalLM"],
        **{name: getattr(config, name) for name in same},
        "num_hidden_layers": 1,
        "scale_depth": 1.0 if plain else config.scale_depth,
        "mup_denominator": 1 if plain else config.num_hidden_layers + 1,
        "final_norm": "target",
        "torch_dtype": "float32",
    }


def second_targets(
    targets: Any, cu_rows: Any, weight: Any = None, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """Targets (n,) and weights of the extra layer: those of the next row, -1 in the last row of each
    document."""
    place = device or torch.device("cpu")
    found = torch.roll(as_tensor(targets, place), -1)
    ends = as_tensor(cu_rows, place)[1:].long() - 1
    found[ends[ends >= 0]] = -1
    return found, None if weight is None else torch.roll(as_tensor(weight, place), -1)
