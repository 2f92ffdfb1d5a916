"""From a model in training to a folder that the engine, and transformers, run with the same logits.

    export(model, folder)                 the model as it is: MiniCPM with its three scales, or Llama, Qwen
    export(model, folder, llama=True)     muP's scales folded in: a Llama that knows nothing of them

What training rounded is written rounded (BitCPM4's way: ordinary tensors whose values lie on the grid) and
keeps every bit, whatever ``dtype`` says of the rest; the loader finds the grid again, packs the matrices
and reports it. LoRA pairs are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from minicpm4.formats.hf_write import fold_scales, stored, with_end_ids, write_folder
from minicpm4.formats.tensor_source import TensorSource, array_source
from minicpm4.kernels.autograd import TorchMatrix
from minicpm4.kernels.straight_through import rounded
from minicpm4.text.model_text import tokenizer_files
from minicpm4.train.model import TrainableModel

__all__ = ["export", "final_tensors"]


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
    processes of a run call it, the first one writes; a process alone holds one tensor more than the model.
    Raises CheckpointError, ConfigError.
    """
    tensors, kinds = final_tensors(model)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        # Gathering what is sharded takes all processes, in one order.
        first, whole = distributed.get_rank() == 0, {}
        for name, source in tensors.items():
            values = source.read()
            if first:
                whole[name] = array_source(values)
        if not first:
            return
        tensors = whole
    config = model.config
    if llama:
        config, tensors = fold_scales(config, tensors)
    written = {name: stored(source, kinds.get(name), dtype) for name, source in tensors.items()}
    beside, ends = tokenizer_files(tokenizer)
    write_folder(folder, with_end_ids(config, ends), written, dtype=dtype, beside=beside)


def final_tensors(model: TrainableModel) -> tuple[dict[str, TensorSource], dict[str, str]]:
    """The weights that the forward multiplies by, float32, under their checkpoint's names, made one at a
    time (of a sharded model by all processes together); and for those that are rounded, to what kind."""
    found = {name: _source(tensor, partial(_whole, tensor)) for name, tensor in model.state_dict().items()}
    kinds: dict[str, str] = {}
    for name, one in model.weights().named_matrices():
        matrix = cast(TorchMatrix, one)
        if name not in found:
            continue  # a head that is tied
        found[name] = _source(matrix.tensor, partial(_final, matrix))
        # What a pair was added to is on no grid any more.
        if matrix.fake is not None and matrix.low_rank is None:
            kinds[name] = matrix.fake.kind
    return found, kinds


def _source(tensor: Tensor, make: Callable[[], Tensor]) -> TensorSource:
    def values() -> NDArray[np.float32]:
        found: NDArray[np.float32] = make().numpy()
        return found

    return TensorSource(shape=tuple(tensor.shape), dtype="F32", make=values)


@torch.no_grad()
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
