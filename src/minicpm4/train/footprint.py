"""How many weights a model has, and what a stage of training takes in memory: arithmetic on shapes, no torch.

Tests hold parameters, moments and what the backward keeps to what torch really holds. Bytes are of one
process (one GPU), sharded by FSDP2: rows of each parameter, gradient and moment are dealt out, layers are
gathered when they are needed, the root (embeddings, final norm, head) for the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod

from minicpm4.config import ModelConfig
from minicpm4.formats.names import expected_tensors, layer_tensors
from minicpm4.train.head_plan import HeadPlan, heads_of
from minicpm4.train.recipe import Recipe, Stage
from minicpm4.train.settings import STATES
from minicpm4.train.stages import (
    CHUNK,
    fitting,
    lengths,
    pair_shapes,
    rule_of,
    sparse_of,
    spec_of,
)

__all__ = [
    "BF16",
    "F32",
    "Memory",
    "Parameters",
    "Shapes",
    "activations",
    "matrices",
    "memory",
    "moments",
    "parameters",
    "trained",
]

F32, BF16 = 4, 2  # bytes
FP8_BLOCK = 128  # rows and columns that share a scale (kernels/fp8.py)
Shapes = Mapping[str, tuple[int, ...]]
_SHARED = {"q_proj": "in", "k_proj": "in", "v_proj": "in", "gate_proj": "in", "up_proj": "in"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of weights. ``layer``: of one; ``head`` 0: it is the embeddings; ``extra``: all extra heads
    (train/head_plan.py)."""

    embeddings: int
    head: int
    layer: int
    layers: int
    extra: int
    total: int


def parameters(config: ModelConfig, heads: Sequence[HeadPlan] = ()) -> Parameters:
    """Count the weights of a model of ``config`` with extra ``heads``."""
    layer = _count(layer_tensors(config))
    embeddings = config.vocab_size * config.hidden_size
    return Parameters(
        embeddings=embeddings,
        head=0 if config.tie_word_embeddings else embeddings,
        layer=layer,
        layers=layer * config.num_hidden_layers,
        extra=sum(_count(head.shapes(config)) for head in heads),
        total=_count(trained(config, heads)),
    )


def trained(config: ModelConfig, heads: Sequence[HeadPlan] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that is trained, by the names that the optimiser knows."""
    found = dict(expected_tensors(config))
    for head in heads:
        found |= head.trained(config)
    return found


def _count(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def matrices(shapes: Shapes) -> int:
    """Weights of all matrices, which products are made with."""
    return sum(prod(shape) for shape in shapes.values() if len(shape) == 2)


# Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one process. ``weights`` (float32), ``gradients`` and ``moments`` are its share; ``gathered``:
    the root, two layers (in use, and on its way) and their gradients, whole; ``activations``: what the
    backward needs; ``loss``: a chunk of logits and the gradients of head and hidden states.

    The last three reach their peaks at different times: the total is what a step cannot exceed by much,
    allocator and kernels' scratch (a few GB) apart.
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def kept(self) -> int:
        """What stays between steps."""
        return self.weights + self.moments


def memory(recipe: Recipe, config: ModelConfig, stage: Stage, processes: int, rows: int) -> Memory:
    """What ``stage`` takes in each of ``processes`` at ``rows`` tokens a forward pass."""
    heads = heads_of(recipe.stages)
    shapes = trained(config, heads)
    weights = F32 * sum(_shard(shape, processes) for shape in shapes.values())
    gradients, state = weights, moments(shapes, recipe.optimiser.kind, processes)
    if stage.lora is not None:  # pairs are whole in every process, what they stand beside has no gradient
        pairs = pair_shapes(expected_tensors(config), stage.lora)
        gradients, state = F32 * _count(pairs), moments(pairs, stage.lora.optimiser)
        weights += gradients
    frozen = stage.lora is not None
    return Memory(
        weights=weights,
        gradients=gradients,
        moments=state,
        gathered=_gathered(config, heads, frozen) if processes > 1 else 0,
        activations=activations(recipe, config, stage, rows),
        loss=_loss(config, rows, recipe.precision == "bf16", len(heads_of([stage])), frozen),
    )


def moments(shapes: Shapes, kind: str, processes: int = 1) -> int:
    """Bytes of the moments and step counts of parameters of ``shapes`` under optimiser ``kind``, in one
    process."""
    total = 0
    for name, shape in shapes.items():
        total += len(STATES[rule_of(name, shape, kind)]) * F32 * _shard(shape, processes) + 8
    return total


def _shard(shape: tuple[int, ...], processes: int) -> int:
    """Weights of a parameter that the fullest process holds: FSDP2 deals out its rows."""
    return -(-shape[0] // processes) * prod(shape[1:])


def _gathered(config: ModelConfig, heads: Sequence[HeadPlan], frozen: bool) -> int:
    counts = parameters(config, heads)
    root = counts.embeddings + counts.head + config.hidden_size + counts.extra
    return F32 * (1 if frozen else 2) * (root + 2 * counts.layer)


def activations(
    recipe: Recipe, config: ModelConfig, stage: Stage, rows: int, fused_norms: bool = True
) -> int:
    """Bytes that the forward of ``rows`` tokens keeps for the backward; with checkpointing of activations
    each layer's input and choice of blocks, and one layer's whole. ``fused_norms``: as on GPUs; the CPU's
    keep one array more."""
    wide = F32 * config.hidden_size
    whole = rows * layer_row_bytes(config, stage, recipe.precision == "bf16", fused_norms)
    whole += _weight_copies(config, stage, recipe.precision == "bf16")
    heads = heads_of([stage])
    count = config.num_hidden_layers + sum(head.layers for head in heads)
    rest = rows * (wide * (1 if fused_norms else 2) + 2 * F32)  # the final norm, tokens
    rest += sum(_around(head, config, stage, rows, recipe.precision == "bf16", fused_norms) for head in heads)
    if not recipe.checkpoint_activations:
        return int(count * whole + rest)
    kept = wide
    sparse = sparse_of(config, stage)
    if sparse is not None:
        kept += 4 * config.num_key_value_heads * (sparse.budget + 1)
    return int(count * rows * kept + whole + rest)


def _around(
    head: HeadPlan, config: ModelConfig, stage: Stage, rows: int, bf16: bool, fused_norms: bool
) -> int:
    """Bytes that an extra head keeps beside its layers: its norms, what its other matrices read, tokens."""
    shapes = {n: shape for n, shape in head.shapes(config).items() if len(shape) == 2 and "layers." not in n}
    norms = head.norms * F32 * (config.hidden_size * (1 if fused_norms else 2) + 1)
    read = (BF16 if bf16 or stage.fp8 else F32) * sum(shape[1] for shape in shapes.values())
    own = {n: s for n, s in shapes.items() if bf16 or stage.fp8 or spec_of(n, stage.specs) is not None}
    return rows * (norms + read + F32) + _copies(own.values(), stage, bf16)


def layer_row_bytes(config: ModelConfig, stage: Stage, bf16: bool, fused_norms: bool = True) -> float:
    """Bytes that one layer keeps of one row. Under autocast every product keeps its own bf16 copy of what
    it read."""
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, k = config.num_attention_heads * d, config.num_key_value_heads * d
    size = BF16 if bf16 else F32
    read = BF16 if bf16 or stage.fp8 else F32
    norms = 2 * F32 * (hidden * (1 if fused_norms else 2) + 1)
    if config.qk_norm:
        norms += F32 * (q + k)
    inputs = _inputs(config, stage, read)
    rotary = 4 * F32 * d // 2
    attention: float = size * (2 * q + 2 * k) + F32 * config.num_attention_heads
    sparse = sparse_of(config, stage)
    if sparse is not None:
        chooses = sum(share * max(0, n - sparse.first_choosing) / n for share, n in lengths(stage))
        pairs = config.num_key_value_heads * sparse.budget
        attention += (size * 2 * k if chooses else 0) + chooses * 8 * (pairs + 1)
    return norms + inputs + rotary + attention + 3 * size * inner


def _inputs(config: ModelConfig, stage: Stage, read: int) -> float:
    """Bytes of what a row's products read in one layer (a mean), kept for the gradients of matrices; of
    low-rank pairs, what those read and what is between the two."""
    every = expected_tensors(config)
    names = [name for name, shape in every.items() if len(shape) == 2]
    between = 0
    if stage.lora is not None:
        names = fitting(names, stage.lora.targets, "lora target")
        between = read * stage.lora.rank * len(names)
    inside = [name for name in names if ".layers." in name]
    if read == BF16:  # a copy for each
        sizes = [BF16 * every[name][1] for name in inside]
    else:  # the array itself: one for all matrices that read the same
        sources = {_source(name): every[name][1] for name in inside}
        sizes = [F32 * size for size in sources.values()]
    return (between + sum(sizes)) / config.num_hidden_layers


def _source(name: str) -> str:
    """What matrix ``name`` reads, with its layer: equal for those that read the same."""
    layer, _, own = name.removesuffix(".weight").rpartition(".")
    return f"{layer}.{_SHARED.get(own, own)}"


def _weight_copies(config: ModelConfig, stage: Stage, bf16: bool) -> int:
    """Bytes of the weights as one layer's products see them, where that is not the parameter itself."""
    shapes = [shape for shape in layer_tensors(config).values() if len(shape) == 2]
    pairs = 0
    if bf16 and stage.lora is not None:
        pairs = BF16 * _count(pair_shapes(expected_tensors(config), stage.lora)) // config.num_hidden_layers
    return pairs + _copies(shapes, stage, bf16)


def _copies(shapes: Iterable[tuple[int, ...]], stage: Stage, bf16: bool) -> int:
    """Bytes of matrices of ``shapes`` as products see them."""
    if stage.fp8:  # whole blocks of codes
        return sum(prod(size + -size % FP8_BLOCK for size in shape) for shape in shapes)
    return (BF16 if bf16 else F32 if stage.rounding else 0) * sum(map(prod, shapes))


def _loss(config: ModelConfig, rows: int, bf16: bool, heads: int, frozen: bool) -> int:
    head = 0 if frozen else config.vocab_size * config.hidden_size
    logits = min(CHUNK["cuda"], rows * config.vocab_size) * (F32 + (BF16 if bf16 else 0))
    # The head's gradient, once as it is summed up and once scaled; a loss more for each extra head.
    return logits + F32 * ((2 + heads) * head + (2 + heads) * rows * config.hidden_size)
