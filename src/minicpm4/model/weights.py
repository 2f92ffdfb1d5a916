"""The weight tree of a decoder. Every matrix carries its own format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear, StoredKV
from minicpm4.kernels.step import Floats
from minicpm4.model.stored_prefix import StoredPrefix

PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
"""Names of a layer's matrices, in the order of ``LayerWeights.linears``."""


@dataclass(slots=True)
class WeightState:
    """See ``ModelWeights.version``."""

    version: int = 0
    whole: bool = True


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerWeights:
    """One decoder layer."""

    attention: AttentionWeights
    feed_forward: FeedForwardWeights

    def linears(self) -> Iterator[Linear]:
        """The seven projections: q, k, v, o, gate, up, down."""
        a, f = self.attention, self.feed_forward
        yield from (a.q, a.k, a.v, a.o, f.gate, f.up, f.down)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelWeights:
    """A whole decoder; ``head`` is the same object as ``embed`` when they are tied. ``stored``: keys and
    values of the tokens with which a text may begin, which its layers have."""

    config: ModelConfig
    embed: PackedTensor
    layers: tuple[LayerWeights, ...]
    norm: Floats
    head: PackedTensor
    stored: StoredPrefix | None = None
    state: WeightState = field(default_factory=WeightState)

    @property
    def version(self) -> int:
        """Which weights these are: it counts up when others are put in their place. Raises CheckpointError
        while that is half done."""
        if not self.state.whole:
            raise CheckpointError(
                "weights were to be replaced, which failed halfway: some are new, some old",
                "replace them again, or load the model anew",
            )
        return self.state.version

    def named_matrices(self) -> Iterator[tuple[str, PackedTensor]]:
        """Every distinct weight matrix once, by its name in a checkpoint."""
        yield EMBED, self.embed
        for index, layer in enumerate(self.layers):
            for name, linear in zip(PROJECTIONS, layer.linears(), strict=True):
                yield f"model.layers.{index}.{name}.weight", linear.weight
        if self.head is not self.embed:
            yield HEAD, self.head

    def named_vectors(self) -> Iterator[tuple[str, Floats]]:
        """Every norm and bias, by its name in a checkpoint."""
        for index, layer in enumerate(self.layers):
            prefix, a, f = f"model.layers.{index}.", layer.attention, layer.feed_forward
            found = {"input_layernorm": a.norm, "post_attention_layernorm": f.norm}
            if a.q_norm is not None and a.k_norm is not None:
                found |= {"self_attn.q_norm": a.q_norm, "self_attn.k_norm": a.k_norm}
            yield from ((f"{prefix}{name}.weight", vector) for name, vector in found.items())
            for name, linear in zip(PROJECTIONS, layer.linears(), strict=True):
                if linear.bias is not None:
                    yield f"{prefix}{name}.bias", linear.bias
        yield "model.norm.weight", self.norm

    def matrices(self) -> Iterator[PackedTensor]:
        """Every distinct weight matrix once."""
        for _, matrix in self.named_matrices():
            yield matrix

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices; norms and biases are too small to count."""
        return sum(matrix.nbytes for matrix in self.matrices())

    @property
    def num_parameters(self) -> int:
        """Weights in all matrices, tied ones once."""
        return sum(matrix.shape[0] * matrix.shape[1] for matrix in self.matrices())

    def formats(self) -> Counter[str]:
        """Weights held in each format."""
        counts: Counter[str] = Counter()
        for matrix in self.matrices():
            counts[str(matrix.spec)] += matrix.shape[0] * matrix.shape[1]
        return counts


def build_layer(
    config: ModelConfig,
    prefix: str,
    vector: Callable[[str], Floats],
    linear: Callable[[str], Linear],
    stored: StoredKV | None = None,
) -> LayerWeights:
    """One layer from its tensors: ``vector`` gives norms by full name, ``linear`` projections by their name
    without ``.weight``; ``prefix`` is "model.layers.0." or the like; ``stored``: of the stored prefix."""
    attention, eps = prefix + "self_attn.", config.rms_norm_eps
    return LayerWeights(
        attention=AttentionWeights(
            norm=vector(prefix + "input_layernorm.weight"),
            q=linear(attention + "q_proj"),
            k=linear(attention + "k_proj"),
            v=linear(attention + "v_proj"),
            o=linear(attention + "o_proj"),
            q_norm=vector(attention + "q_norm.weight") if config.qk_norm else None,
            k_norm=vector(attention + "k_norm.weight") if config.qk_norm else None,
            stored=stored,
            eps=eps,
        ),
        feed_forward=FeedForwardWeights(
            norm=vector(prefix + "post_attention_layernorm.weight"),
            gate=linear(prefix + "mlp.gate_proj"),
            up=linear(prefix + "mlp.up_proj"),
            down=linear(prefix + "mlp.down_proj"),
            eps=eps,
        ),
    )
