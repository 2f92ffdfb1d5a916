"""The released layouts of heads that draft: names and shapes of tensors, config.json, and how a head is built
from them. ``head_files`` reads folders of them, the trainer (``train/draft_head.py``) makes new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.formats.names import layer_tensors
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Floats, Ints
from minicpm4.model.draft import build_draft, draft_config, draft_shapes
from minicpm4.model.heads import Eagle3Head, Eagle3Weights, Head, StateHead
from minicpm4.model.weights import ModelWeights, build_layer

__all__ = ["FORMS", "HeadLayout", "build_eagle3", "eagle3_shapes", "usual_states"]

FORMS = ("eagle3", "eagle2")  # that can be trained beside a model that is there
LEAST_LAYERS = 3  # of a model that EAGLE-3 reads three states of


def usual_states(layers: int) -> tuple[int, ...]:
    """After how many of the model's layers EAGLE-3 takes its three states, where nobody says."""
    return 2, layers // 2, layers - 3


def eagle3_shapes(config: ModelConfig, tokens: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what is trained of an EAGLE-3 head whose layer is of ``config``."""
    width = config.hidden_size
    found = {f"midlayer.{name}": shape for name, shape in layer_tensors(config).items()}
    for name in ("q_proj", "k_proj", "v_proj"):
        key = f"midlayer.self_attn.{name}.weight"
        found[key] = (found[key][0], 2 * width)
    found |= {"midlayer.hidden_norm.weight": (width,), "norm.weight": (width,)}
    return found | {"fc.weight": (width, 3 * width), "lm_head.weight": (tokens, width)}


def build_eagle3(
    config: ModelConfig, vector: Callable[[str], Floats], linear: Callable[[str], Linear]
) -> Eagle3Weights:
    """An EAGLE-3 head from its tensors, as ``build_layer`` makes a layer."""
    return Eagle3Weights(
        fc=linear("fc"),
        norm_hidden=vector("midlayer.hidden_norm.weight"),
        layer=build_layer(config, "midlayer.", vector, linear),
        norm=vector("norm.weight"),
        head=linear("lm_head"),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadLayout:
    """A new head beside a model of ``model``. ``form``: one of FORMS; ``tokens``: the model's token of each
    of an EAGLE-3 head's, ascending (EAGLE-2 has the model's own). Raises ConfigError."""

    form: str
    model: ModelConfig
    tokens: Ints

    def __post_init__(self) -> None:
        layers = self.model.num_hidden_layers
        require(
            self.form != "eagle3" or layers >= LEAST_LAYERS,
            f"an EAGLE-3 head reads three states, and the model has {layers} layers",
            "train one of the older form: --form eagle2",
        )

    @property
    def config(self) -> ModelConfig:
        """Of its layer."""
        own = replace(self.model, num_hidden_layers=1, windows=(), sparse_config=None)
        if self.form == "eagle2":
            return own
        plain: dict[str, Any] = {
            "attention_bias": False,
            "output_bias": False,
            "mlp_bias": False,
            "qk_norm": False,
        }
        return replace(own, rope_scaling=None, **plain)

    @property
    def hidden(self) -> tuple[int, ...]:
        """After how many of the model's layers it wants states."""
        layers = self.model.num_hidden_layers
        return usual_states(layers) if self.form == "eagle3" else (layers,)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what is trained."""
        return (
            eagle3_shapes(self.config, len(self.tokens))
            if self.form == "eagle3"
            else draft_shapes(self.model)
        )

    def maps(self) -> dict[str, Any]:
        """The tensors that are not trained."""
        if self.form == "eagle2":
            return {}
        offsets = self.tokens.astype(np.int64) - np.arange(len(self.tokens))
        return {"d2t": offsets, "t2d": np.isin(np.arange(self.model.vocab_size), self.tokens)}

    def json(self, dtype: str) -> dict[str, Any]:
        """The content of config.json, the tensors being of ``dtype``."""
        if self.form == "eagle2":
            shared = {name: value for name, value in draft_config(self.model).items() if name != "final_norm"}
            return {**shared, "torch_dtype": dtype}
        own = self.config
        same: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        same += (
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        )
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            **{name: getattr(own, name) for name in same},
            "draft_vocab_size": len(self.tokens),
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
        }

    def build(
        self,
        ops: OpTable,
        weights: ModelWeights,
        vector: Callable[[str], Floats],
        linear: Callable[[str], Linear],
    ) -> Head:
        """The head, from its tensors, on ``ops`` beside the model of ``weights``."""
        own: dict[str, Any] = {"ops": ops, "weights": weights, "config": self.config, "hidden": self.hidden}
        if self.form == "eagle3":
            return Eagle3Head(**own, own=build_eagle3(self.config, vector, linear), tokens=self.tokens)
        return StateHead(**own, layer=replace(build_draft(self.model, vector, linear), final_norm=False))
