"""Sums for plans that are not built: one long document over several GPUs (docs/parallel.md).

``context``: so many GPUs hold a part of its rows each and gather keys and values; ``tensor``: so many hold a
part of each matrix, and of the rows between them (sequence parallelism). All GPUs shard weights, gradients
and moments as FSDP2 does. One pass: forward and backward of the documents that the GPUs hold at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.train.estimate import Cluster, flops_per_token, traffic
from minicpm4.train.footprint import BF16, F32, memory
from minicpm4.train.recipe import Recipe, Stage

__all__ = ["Split", "split"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One pass: ``documents`` at a time; of each GPU its ``rows``, memory in bytes (``total`` and, of it,
    ``activations``), bytes that it receives (``fsdp``, ``context``, ``tensor``), ``seconds`` of computing."""

    documents: int
    rows: int
    activations: int
    total: int
    fsdp: float
    context: float
    tensor: float
    seconds: float


def split(
    recipe: Recipe, config: ModelConfig, stage: Stage, machine: Cluster, *, context: int = 1, tensor: int = 1
) -> Split:
    """Documents of ``stage.context`` tokens on ``machine``, each on ``context * tensor`` GPUs; products in
    bf16. Raises ConfigError where the numbers do not divide, or key/value heads would be replicated."""
    ways = context * tensor
    require(
        machine.gpus % ways == 0 and stage.context % ways == 0,
        f"{machine.gpus} GPUs and {stage.context} tokens do not divide by {context} x {tensor}",
    )
    require(
        config.num_key_value_heads % tensor == 0,
        f"tensor = {tensor} exceeds the {config.num_key_value_heads} key/value heads",
        "more ways hold copies of them: split the context instead",
    )
    rows = stage.context // ways
    # Of a part as long as its rows what is kept is a part of what the whole keeps: every term is per row.
    own = memory(recipe, config, replace(stage, buckets=()), machine.gpus, rows)
    keys = 2 * BF16 * config.num_key_value_heads * config.head_dim * stage.context // tensor
    gathered = keys if context > 1 else 0
    layers = config.num_hidden_layers
    # Keys and values are gathered for forward and again for backward, their gradients dealt out.
    moved = layers * 3 * gathered * (context - 1) / context
    # Rows x hidden gathered and dealt out around attention and feed-forward: forward, again, backward.
    around = BF16 * config.hidden_size * stage.context // context
    shared = layers * 3 * 2 * 2 * around * (tensor - 1) / tensor
    documents = machine.gpus // ways
    speed = machine.gpus * machine.peak * machine.mfu
    tokens = documents * stage.context
    whole = replace(stage, buckets=())
    # Tensor parallelism gathers its part of a layer alone, from those that hold the same part.
    part = machine.gpus // tensor
    fsdp = traffic(recipe, config, 1, part) / tensor
    return Split(
        documents=documents,
        rows=rows,
        activations=own.activations,
        total=own.total - own.gathered + own.gathered // tensor + 2 * gathered * F32 // BF16,
        fsdp=fsdp,
        context=moved,
        tensor=shared,
        seconds=flops_per_token(config, whole).model * tokens / speed,
    )
