"""From a model in training to a folder that the engine, and transformers, run with the same logits.

    export(model, folder)                 the model as it is: MiniCPM with its three scales, or Llama, Qwen
    export(model, folder, llama=True)     muP's scales folded in: a Llama that knows nothing of them

What training rounded is written rounded (BitCPM4's way: ordinary tensors whose values lie on the grid) and
keeps every bit, whatever ``dtype`` says of the rest; the loader finds the grid again, packs the matrices
and reports it. LoRA pairs are merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, distributed

from minicpm4.kernels.autograd import TorchMatrix
from minicpm4.kernels.straight_through import rounded
from minicpm4.model.weights import ModelWeights
from minicpm4.train.hf_folder import fold_scales, stored, write_folder
from minicpm4.train.model import TrainableModel

__all__ = ["export", "final_tensors", "matrices"]

_PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def export(
    model: TrainableModel,
    folder: Path,
    *,
    llama: bool = False,
    dtype: str = "float32",
    tokenizer: Path | None = None,
) -> None:
    """Write ``model`` into ``folder``, with the files of the tokenizer in the folder ``tokenizer``.

    ``dtype``: of the matrices that were not rounded. ``llama``: fold the scales (``fold_scales``). All
    processes of a run call it, the first one writes. Raises CheckpointError, ConfigError.
    """
    tensors, kinds = final_tensors(model)  # by all processes: it gathers what is sharded
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
        return
    config = model.config
    if llama:
        config, tensors = fold_scales(config, tensors)
    written = {name: stored(tensor, kinds.get(name), dtype) for name, tensor in tensors.items()}
    write_folder(folder, config, written, dtype=dtype, tokenizer=tokenizer)


@torch.no_grad()
def final_tensors(model: TrainableModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights that the forward multiplies by, float32 on the CPU, under their checkpoint's names; and
    for those that are rounded, to what kind."""
    tensors = {name: _whole(tensor) for name, tensor in model.state_dict().items()}
    kinds: dict[str, str] = {}
    for name, matrix in matrices(model.weights()):
        if name not in tensors:
            continue  # a head that is tied
        tensors[name] = _final(matrix)
        # What a pair was added to is on no grid any more.
        if matrix.fake is not None and matrix.low_rank is None:
            kinds[name] = matrix.fake.kind
    return tensors, kinds


def matrices(weights: ModelWeights) -> Iterator[tuple[str, TorchMatrix]]:
    """Every matrix of a tree by its name in a checkpoint."""
    found: dict[str, object] = {"model.embed_tokens.weight": weights.embed}
    for index, layer in enumerate(weights.layers):
        for name, linear in zip(_PROJECTIONS, layer.linears(), strict=True):
            found[f"model.layers.{index}.{name}.weight"] = linear.weight
    found["lm_head.weight"] = weights.head
    for name, matrix in found.items():
        assert isinstance(matrix, TorchMatrix), name
        yield name, matrix


def _final(matrix: TorchMatrix) -> Tensor:
    value = _whole(matrix.tensor)
    if matrix.fake is not None:
        value = rounded(value, matrix.fake)
    if matrix.low_rank is not None:
        pair = matrix.low_rank
        value = value + pair.scale * (_whole(pair.b) @ _whole(pair.a))
    return value


def _whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)  # of a DTensor (FSDP2)
    return (full() if full is not None else tensor).detach().float().cpu()
