"""What a recipe would take: operations, traffic, memory of a GPU, days. Needs no torch.

Operations are counted as usual: 2 a multiplication and addition, the backward twice the forward, nothing
for norms and softmax. What activation checkpointing computes again is told apart, and no share of peak
counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.strict import require
from minicpm4.formats.names import expected_tensors, layer_tensors
from minicpm4.train.footprint import F32, Memory, matrices, memory, parameters, trained
from minicpm4.train.head_plan import heads_of
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.settings import Adapter
from minicpm4.train.stages import (
    lengths,
    pair_shapes,
    passes,
    rule_of,
    sparse_of,
    stage_config,
)

__all__ = ["Cluster", "Flops", "StageEstimate", "attended", "estimate", "flops_per_token", "traffic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """``gpus`` processes of ``gpu_bytes`` and ``peak`` operations a second each, of which training reaches
    the share ``mfu`` (of the model's operations, not counting what is computed again); ``link``: bytes a
    second that each sends, and receives, at a time. Raises ConfigError."""

    gpus: int = 8
    gpu_bytes: float = 80e9
    peak: float = 989e12
    mfu: float = 0.4
    link: float = 450e9

    def __post_init__(self) -> None:
        require(1 <= self.gpus <= 1 << 16, f"--gpus {self.gpus} is not from 1 to {1 << 16}")
        require(0 < self.mfu <= 1, f"--mfu {self.mfu:g} is not above 0 and at most 1")
        for name, value in (("--gpu-memory", self.gpu_bytes), ("--peak-tflops", self.peak)):
            require(0 < value < 1e24, f"{name} is not positive, or beyond reason")


# Operations


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Operations for a token, forward and backward: ``products`` with matrices, ``attention`` (scores and
    values), ``selection`` of blocks (forward alone), ``extra``: of extra heads, ``again``:
    what checkpointing of activations computes a second time."""

    products: float
    attention: float
    selection: float
    extra: float
    again: float

    @property
    def model(self) -> float:
        """What a share of peak counts: all but ``again``."""
        return self.products + self.attention + self.selection + self.extra


def flops_per_token(config: ModelConfig, stage: Stage, recompute: bool = False) -> Flops:
    """Operations for a token of ``stage``, documents taken to be as long as its context, or its buckets,
    allow."""
    read, scored = attended(config, stage)
    width = config.num_attention_heads * config.head_dim
    layer = matrices(layer_tensors(config))
    head = config.vocab_size * config.hidden_size  # looking a row of embeddings up is no product
    attention, selection = 12.0 * width * read, 2.0 * width * scored
    count = config.num_hidden_layers
    products = 6.0 * (count * layer + head)
    if stage.lora is not None:  # no gradients of what stays as it is, and those of the pairs
        pairs = pair_shapes(expected_tensors(config), stage.lora)
        products = 4.0 * (count * layer + head) + 6.0 * matrices(pairs)
    heads, extra = heads_of([stage]), 0.0
    for one in heads:
        extra += 6.0 * (matrices(one.shapes(config)) + head) + one.layers * (attention + selection)
    layers = count + sum(one.layers for one in heads)
    again = 2.0 * layer + attention / 3
    return Flops(
        products=products,
        attention=count * attention,
        selection=count * selection,
        extra=extra,
        again=layers * again if recompute else 0.0,
    )


def attended(config: ModelConfig, stage: Stage) -> tuple[float, float]:
    """Means over a stage's tokens: tokens that a query reads, and compressed keys that it scores."""
    sparse = sparse_of(config, stage)
    read = scored = 0.0
    for share, length in lengths(stage):
        if sparse is None:
            read += share * (length + 1) / 2
        else:
            read += share * _read(sparse, length) / length
            scored += share * _scored(sparse, length) / length
    return read, scored


def _read(sparse: SparseConfig, length: int) -> float:
    """Tokens that all queries of a document read: of each chosen block all, of a query's own those up to
    it."""
    first = min(sparse.first_choosing, length)
    others = (length - first) * (sparse.budget - 1) * sparse.block_size
    return first * (first + 1) / 2 + others + _own(sparse, length) - _own(sparse, first)


def _own(sparse: SparseConfig, length: int) -> int:
    """Tokens of their own blocks that the first ``length`` queries read."""
    whole, rest = divmod(length, sparse.block_size)
    return whole * sparse.block_size * (sparse.block_size + 1) // 2 + rest * (rest + 1) // 2


def _scored(sparse: SparseConfig, length: int) -> float:
    """Compressed keys that the queries which choose score, coarse ones of the LSE approximation
    included."""
    first = min(sparse.first_choosing, length)
    seen = (length**2 - first**2) / 2 / sparse.kernel_stride
    return seen * (1.25 if sparse.lse_approx else 1.0)


# Traffic and time


def traffic(
    recipe: Recipe, config: ModelConfig, passes: int, processes: int, adapter: Adapter | None = None
) -> float:
    """Bytes that each process receives in a step of ``passes`` micro-batches: layers gathered for forward
    and backward and their gradients dealt out, the root gathered once; under Muon the layers' gradients
    gathered as well. With an ``adapter`` (LoRA) the gradients of pairs are summed up, and no others."""
    heads = heads_of(recipe.stages)
    counts = parameters(config, heads)
    root = counts.total - counts.layers
    if adapter is not None:
        pairs = sum(prod(shape) for shape in pair_shapes(expected_tensors(config), adapter).values())
        return F32 * (passes * (2 * counts.layers + root) + 2 * pairs) * (processes - 1) / processes
    moved: float = passes * (3 * counts.layers + 2 * root)
    if recipe.optimiser.kind == "muon":
        shapes = trained(config, heads)
        moved += sum(prod(s) for name, s in shapes.items() if rule_of(name, s, "muon") == "muon")
    return F32 * moved * (processes - 1) / processes


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """One stage on a cluster. ``pass_tokens``: tokens of a forward pass in each process; ``passes``: how many
    make a step; ``bytes_moved``: received by each process in a step."""

    stage: Stage
    pass_tokens: int
    passes: int
    flops: Flops
    memory: Memory
    bytes_moved: float
    seconds: float

    @property
    def tokens(self) -> int:
        return self.stage.steps * self.stage.batch_tokens


def estimate(recipe: Recipe, config: ModelConfig, machine: Cluster) -> list[StageEstimate]:
    """Every stage of ``recipe`` on ``machine``, the model being of ``config`` at the start. Raises
    ConfigError."""
    found = []
    for stage in recipe.stages:
        config = stage_config(config, stage)
        step = passes(stage, machine.gpus)
        flops = flops_per_token(config, stage, recipe.checkpoint_activations)
        found.append(
            StageEstimate(
                stage=stage,
                pass_tokens=step.tokens,
                passes=step.count,
                flops=flops,
                memory=memory(recipe, config, stage, machine.gpus, step.tokens),
                bytes_moved=traffic(recipe, config, step.count, machine.gpus, stage.lora),
                seconds=flops.model * stage.batch_tokens / (machine.gpus * machine.peak * machine.mfu),
            )
        )
    return found
